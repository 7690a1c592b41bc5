"""Which files of a Hugging Face folder hold the model's tensors. No torch."""

import json
from pathlib import Path

from protocols.sharding.splitting import Unsuitable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILES_MAX = 4096  # of one checkpoint; the largest known has 191


def checkpoint_files(source: Path) -> list[Path]:
    """Return the files that hold a folder's tensors. Raises Unsuitable if one is missing."""
    if (source / INDEX).is_file():
        try:
            index = json.loads((source / INDEX).read_bytes())
            names = sorted({str(name) for name in index["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise Unsuitable(f"{INDEX} is no index: {error}") from error
    elif (source / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        raise Unsuitable(
            f"{source} has no {WEIGHTS}, nor its index (other formats can run programs)"
        )
    if len(names) > FILES_MAX:
        raise Unsuitable(f"{len(names)} files are over {FILES_MAX}")
    for name in names:
        if Path(name).name != name or not (source / name).is_file():
            raise Unsuitable(f"{name[:100]!r} of {INDEX} is not in {source}")
    return [source / name for name in names]
