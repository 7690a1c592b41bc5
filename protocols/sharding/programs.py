"""No program comes with a model: `auto_map` names Python files of its folder to be run.

transformers runs them only when asked to (`trust_remote_code`, false wherever we load). This is the
second lock: a folder that was received and names programs is not loaded at all. No torch.
"""

import json
from pathlib import Path
from typing import cast

from protocols.sharding.manifest import CONFIG
from wire.errors import BadMessage

KEY = "auto_map"


def refuse_programs(folder: Path) -> None:
    """Raise BadMessage if a configuration in the folder names programs, or is no JSON."""
    for path in sorted(folder.glob(f"*{CONFIG}")):  # of the model, its tokenizer, its generation
        try:
            document: object = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"{path.name} is no JSON: {error}") from error
        if without_programs(document) != document:
            raise BadMessage(f"{path.name} names programs ({KEY}); they are never run")


def without_programs(document: object) -> object:
    """Return a configuration without what names programs, in it and in what it holds."""
    if isinstance(document, dict):
        items = cast("dict[str, object]", document).items()
        return {key: without_programs(value) for key, value in items if key != KEY}
    return document
