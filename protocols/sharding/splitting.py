"""What the programs split.py and hub.py tell the daemon, in files: it imports neither."""

import os
import time
from pathlib import Path
from typing import TypeVar

import msgspec

RESULT = "split.json"  # its presence says that every other file is whole
DOWNLOAD = "download.json"
PROGRESS = "progress.json"
DISK_RESERVE_BYTES = 1 << 30  # never filled with models: the store, the logs and others need it
TELL_INTERVAL_S = 0.2  # between two words on the progress

S = TypeVar("S", bound="Said")


class Unsuitable(Exception):
    """The source is not a model that we can cut; the message says why."""


class Said(msgspec.Struct, frozen=True):
    """Common options: a JSON document; with `error` it says why there is nothing else."""

    error: str = ""


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """One written file; it becomes a `Part` once it is a blob."""

    role: str
    block: int
    name: str


class Split(Said, frozen=True):
    """A model that was cut."""

    family: str = ""
    dtype: str = ""
    n_layers: int = 0
    hidden_size: int = 0
    vocab_size: int = 0
    context: int = 0
    parameters: int = 0
    eos: list[int] = []
    cuts: list[Cut] = []


class Download(Said, frozen=True):
    """A model of the hub that is on this machine: its folder in the hub's cache."""

    path: str = ""


class Progress(Said, frozen=True):
    """How far it is; 0 of 0 is not known."""

    done_bytes: int = 0
    total_bytes: int = 0


class Teller:
    """Writes the progress into the folder, not too often."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        self._path, self._total_bytes = folder / PROGRESS, total_bytes
        self._done_bytes, self._told_at = 0, 0.0

    def add(self, size_bytes: int) -> None:
        """So much more is done."""
        self.tell(self._done_bytes + size_bytes)

    def tell(self, done_bytes: int) -> None:
        """So much is done in all."""
        self._done_bytes = done_bytes
        now = time.monotonic()
        if now - self._told_at >= TELL_INTERVAL_S:
            self._told_at = now
            write(self._path, Progress("", done_bytes, self._total_bytes))


def write(path: Path, said: Said) -> None:
    """Write a document; it appears as a whole."""
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.encode(said))
    os.replace(unfinished, path)


def read(path: Path, kind: type[S]) -> S | None:
    """Read what our own child wrote; None if it has not written it yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def missing_room(size_bytes: int, free_bytes: int) -> str:
    """Return why so much cannot be written to a disk; "" if it can."""
    free_bytes = max(0, free_bytes - DISK_RESERVE_BYTES)
    if size_bytes <= free_bytes:
        return ""
    return f"{size_bytes >> 20} MiB of disk are needed, {free_bytes >> 20} MiB can be had here"
