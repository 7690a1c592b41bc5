"""What the people of this node want of it: `shoal host` and `shoal unhost`, kept in HOME."""

import os
import threading
from pathlib import Path

import msgspec

from protocols.sharding.placement import Wish
from protocols.sharding.records import is_name

FILE_MAX_BYTES = 256 * 1024  # bytes read; a wish takes some 60
WISHES_MAX = 1024  # models that one node may have an opinion about


class Wishes:
    """The wishes by model name. They survive a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wishes = _load(path)
        self._turn = threading.Lock()  # threads write: no wish is lost to another's

    def get(self, name: str, model: str) -> Wish | None:
        """Return the wish for a model; None: as the swarm needs it.

        That nothing be hosted holds for the name, whatever model has it; all else for the model.
        """
        wish = self._wishes.get(name)
        return wish if wish is not None and (wish.never or wish.model == model) else None

    def put(self, name: str, wish: Wish) -> None:
        """Keep a wish. Raises OSError if it cannot be written."""
        with self._turn:
            self._save({**self._wishes, name: wish})

    def _save(self, wishes: dict[str, Wish]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = self._path.with_name(self._path.name + ".new")
        with scratch.open("wb") as file:
            file.write(msgspec.json.encode(wishes))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._path)
        self._wishes = wishes


def _load(path: Path) -> dict[str, Wish]:
    """Read the file; one that is spoilt is as good as none: people can wish again."""
    try:
        with path.open("rb") as file:
            wishes = msgspec.json.decode(file.read(FILE_MAX_BYTES), type=dict[str, Wish])
    except (OSError, msgspec.DecodeError):
        return {}
    return {name: wishes[name] for name in list(wishes)[:WISHES_MAX] if is_name(name)}
