"""The model that a run has trained, as a folder that Hugging Face's libraries load."""

import shutil
from pathlib import Path

import msgspec

from node.checkpoints import Exported, export_state
from node.tensor_file import BadFile
from shoal.pytorch.described import FOLDER, PREFIX
from wire.errors import UsageError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HINT = (
    "give shoal.Trainer the Hugging Face model itself (and its tokenizer), train a round, and try "
    "again; without --serve its parameters can be exported as they are"
)


def export_model(directory: Path, run: str, folder: Path) -> Exported:
    """Write it into an empty folder; blocking.

    Raises UsageError if the trainer did not say what model it is, NotFound without checkpoints,
    BadFile, OSError.
    """
    described = directory / FOLDER
    if not (described / CONFIG).is_file():
        raise UsageError(f"run {run} does not say what model it trains", hint=HINT)
    try:
        prefix = msgspec.json.decode((described / PREFIX).read_bytes(), type=str)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadFile(f"{described / PREFIX}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in described.iterdir():
        if path.is_file() and path.name != PREFIX:
            shutil.copyfile(path, folder / path.name)
    return export_state(directory, run, folder / WEIGHTS, prefix=prefix)
