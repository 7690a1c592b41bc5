"""Files of a run: metrics, the final state, the end of its log."""

import json
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocols.modelsync.state import State
from shoal.runs import Metric

_TAIL_BYTES = 4096  # read from the end of a log to find its last line


def read_metrics(directory: Path) -> list[Metric]:
    """Read metrics.jsonl; a line cut off by a crash is left out."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    found: list[Metric] = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Metric))
        except msgspec.DecodeError:
            continue
    return found


def save_state(directory: Path, state: State) -> NDArray[np.float32]:
    """Write a state as state.f32 and state.json; return it mapped from the file."""
    path = directory / "state.f32"
    partial = path.with_suffix(".partial")
    partial.write_bytes(state.vector.astype("<f4", copy=False).data)
    os.replace(partial, path)
    head = {
        "round": state.round,
        "root": state.root.hex(),
        "elements": len(state.vector) // 2,
        "layout": "parameters then outer momentum, little-endian float32",
    }
    (directory / "state.json").write_text(json.dumps(head, indent=1))
    return np.memmap(path, dtype=np.float32, mode="r")


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
