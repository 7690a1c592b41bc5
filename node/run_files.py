"""Files of a run: metrics, what is kept of its states, the end of its log."""

import os
import shutil
import signal
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from node.checkpoints import FOLDER, lane_path
from node.tensor_file import BadFile, find_tensor
from protocols.modelsync.state import State

T = TypeVar("T")

METRICS, CERTIFICATES = "metrics.jsonl", "certificates.jsonl"
_TAIL_BYTES = 4096  # read from the end of a log to find its last line


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a file of JSON lines; one cut off by a crash is left out."""
    if not path.exists():
        return []
    found: list[T] = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError:
            continue
    return found


def append_line(path: Path, item: msgspec.Struct) -> None:
    """Add one line of JSON to a file. Raises OSError."""
    with path.open("ab") as lines:
        lines.write(msgspec.json.encode(item) + b"\n")


def kept_states(directory: Path, states: list[State]) -> list[NDArray[np.float32]]:
    """Return what was announced of each lane, to be given to others after its trainer's end.

    It is mapped from the checkpoint if that has it, else copied: the trainer's memory goes away.
    """
    kept: list[NDArray[np.float32]] = []
    for lane, state in enumerate(states):
        try:
            found = find_tensor(lane_path(directory, lane), "state")
            is_it = found.metadata.get("root") == state.root.hex()
            kept.append(found.mapped() if is_it else state.vector.copy())
        except (OSError, BadFile):
            kept.append(state.vector.copy())
    return kept


def begin_anew(directory: Path) -> None:
    """Move what an earlier run of this name has left aside; what it had moved aside is removed."""
    for name in (FOLDER, CERTIFICATES):
        path, aside = directory / name, directory / f"{name}.old"
        if path.exists():
            if aside.is_dir():
                shutil.rmtree(aside)
            os.replace(path, aside)


def how_it_ended(status: int, log_path: Path) -> str:
    """Say why a script failed: the signal that killed it, or its last words."""
    if status < 0:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    return last_line(log_path) or f"exit status {status}"


def last_line(path: Path) -> str:
    """Return the last line of a log that says something; "" if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
