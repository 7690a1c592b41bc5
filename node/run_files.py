"""Files of a run: metrics, what is kept of its states, the end of its log."""

import os
import re
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
from shoal.runs import Contribution, Metric

T = TypeVar("T")

METRICS, CERTIFICATES = "metrics.jsonl", "certificates.jsonl"  # in a run's folder
CONTRIBUTIONS = "contributions.json"
_OUR_ERROR = re.compile(r"^shoal\.[\w.]+: ")  # whose text is enough: a person reads it
_TAIL_BYTES = 4096  # read from the end of a log to find its last line
_METRICS_BYTES = 16 * 1024  # of metrics.jsonl: some thirty lines, among them a held-out loss


def read_lines(path: Path, kind: type[T], tail_bytes: int | None = None) -> list[T]:
    """Read a file of JSON lines, or its end; what a crash or the cut spoilt is left out."""
    try:
        with path.open("rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            return _lines_in(file.read(), kind)
    except FileNotFoundError:
        return []


def _lines_in(data: bytes, kind: type[T]) -> list[T]:
    found: list[T] = []
    for line in data.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError:
            continue
    return found


def last_metrics(directory: Path) -> list[Metric]:
    """Return what the end of metrics.jsonl has."""
    return read_lines(directory / METRICS, Metric, _METRICS_BYTES)


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


def save_contributions(directory: Path, table: list[Contribution]) -> None:
    """Keep what peers have done for a run. Raises OSError."""
    partial = directory / f"{CONTRIBUTIONS}.partial"
    partial.write_bytes(msgspec.json.encode(table))
    os.replace(partial, directory / CONTRIBUTIONS)


def load_contributions(directory: Path) -> list[Contribution]:
    """Return what was kept; nothing if that is no table."""
    try:
        data = (directory / CONTRIBUTIONS).read_bytes()
        return msgspec.json.decode(data, type=list[Contribution])
    except (OSError, msgspec.DecodeError):
        return []


def begin_anew(directory: Path) -> None:
    """Move what an earlier run of this name has left aside; what it had moved aside is removed."""
    for name in (FOLDER, CERTIFICATES, CONTRIBUTIONS):
        path, aside = directory / name, directory / f"{name}.old"
        if path.exists():
            if aside.is_dir():
                shutil.rmtree(aside)
            os.replace(path, aside)


def how_it_ended(status: int, log_path: Path) -> str:
    """Say why a script failed: the signal that killed it, or its last words."""
    if status < 0:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    return _OUR_ERROR.sub("", last_line(log_path)) or f"exit status {status}"


def last_line(path: Path) -> str:
    """Return the last line of a log that says something; "" if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
