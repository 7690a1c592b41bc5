"""What this node keeps of models whatever the swarm does with them: HOME/models/pins.json."""

import os
from pathlib import Path

import msgspec

from protocols.sharding.records import ModelRecord, is_name
from wire.errors import ShoalError

PINS_MAX = 1024  # models pinned on one node
FILE_MAX = 4 * 1024 * 1024  # bytes; a pin takes 600


class Pin(msgspec.Struct, frozen=True):
    """Blocks [start, end) of a model that stay, with its tokenizer; `record` finds the rest."""

    record: ModelRecord
    spans: list[tuple[int, int]]


class Pins:
    """By the model's name. Changes are on disk when `put` and `drop` return."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pins: dict[str, Pin] = {}

    def load(self) -> None:
        """Read them at the start. Raises ShoalError if they cannot be read."""
        try:
            data = self._path.read_bytes()
            if len(data) > FILE_MAX:
                raise ShoalError(f"{self._path} is over {FILE_MAX} B")
            pins = msgspec.json.decode(data, type=dict[str, Pin])
        except FileNotFoundError:
            pins = {}
        except msgspec.MsgspecError as error:
            raise ShoalError(f"{self._path}: {error}", hint="move it away") from error
        self._pins = {name: pin for name, pin in pins.items() if is_name(name)}

    def all(self) -> list[tuple[str, Pin]]:
        """Return all."""
        return list(self._pins.items())

    def get(self, name: str) -> Pin | None:
        """Return that of a model."""
        return self._pins.get(name)

    def put(self, name: str, record: ModelRecord, spans: list[tuple[int, int]]) -> None:
        """Keep blocks of a model, besides those that are kept already. Raises ShoalError."""
        before = self._pins.get(name)
        if before is None and len(self._pins) >= PINS_MAX:
            raise ShoalError(f"{PINS_MAX} models are pinned here already")
        kept = before.spans if before is not None and before.record.model == record.model else []
        self._pins[name] = Pin(record, merged([*kept, *spans]))
        self._save()

    def drop(self, name: str) -> None:
        """Keep nothing of a model any more."""
        if self._pins.pop(name, None) is not None:
            self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self._path.with_suffix(".new")
        with unfinished.open("wb") as file:
            file.write(msgspec.json.encode(self._pins))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self._path)


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
