"""What strategies and codecs cost in learning: nats on Shakespeare, all members in one process.

python -m benchmarks.nats [NAME ...]: rows whose name begins so. By the simulation that the swarm
equals bit for bit on the float32 wire. No time is measured, so other load does not matter.
The rows `int4 of 240k` and `float32 of 240k` have the goal: a model of 240,832 parameters, batches
of 16, which is the size that the goal was set with; all others have 111,424 and 8.
"""

import sys
from functools import partial
from typing import Any

import torch

from benchmarks.report import QUICK, progress, report
from tests.learning.convergence import Trained, train
from tests.learning.toys import Shakespeare

MEMBERS, STEPS, EVERY = (2, 150, 15) if QUICK else (4, 300, 25)
GOAL_NATS = 0.005  # that int4 with error feedback may lose
LARGER = partial(Shakespeare, width=96, batch=16)

ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "float32 of 240k": ("diloco", {"make_model": LARGER}),
    "int4 of 240k": ("diloco", {"make_model": LARGER, "codec": "int4", "feedback": 1.0}),
    "diloco, float32": ("diloco", {}),
    "diloco, int4 + feedback": ("diloco", {"codec": "int4", "feedback": 1.0}),
    "diloco, int4": ("diloco", {"codec": "int4"}),
    "diloco, int8": ("diloco", {"codec": "int8"}),
    "diloco, topk + feedback": ("diloco", {"codec": "topk", "feedback": 0.95}),
    "diloco, fedzip + feedback": ("diloco", {"codec": "fedzip", "feedback": 0.95}),
    "diloco, published rates": ("diloco", {"momentum": 0.9}),
    "localsgd": ("localsgd", {}),
    "streaming": ("streaming", {}),
    "streaming, mixing by a half": ("streaming", {"mixing": 0.5}),
    "eager": ("eager", {}),
    "eager, published rates": ("eager", {"momentum": 0.9}),
    "naive delay": ("eager", {"keep": 0.0}),
    "naive delay, published rates": ("eager", {"keep": 0.0, "momentum": 0.9}),
    "dilocox, int4": ("dilocox", {"codec": "int4"}),
    "finalmerge": ("finalmerge", {"every": 2 * EVERY}),
    "dsgd, exponential": ("dsgd", {"every": 1}),
}


def measure(name: str, options: dict[str, object]) -> Trained:
    """Train by one row."""
    every = int(str(options.get("every", EVERY)))
    rest: dict[str, Any] = {key: value for key, value in options.items() if key != "every"}
    return train(name, members=MEMBERS, steps=STEPS, every=every, **rest)


def main(wanted: list[str]) -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    found: dict[str, Trained] = {}
    for row, (name, options) in ROWS.items():
        if wanted and not row.startswith(tuple(wanted)):
            continue
        progress(row)
        found[row] = measure(name, options)
        where = f"nats, {row}: {MEMBERS} members, {STEPS} steps"
        report(where, [found[row].loss], "nats")
        report(f"bytes a member sent, {row}", [found[row].bytes_sent / 1e6], "MB")
    exact, coarse = found.get("float32 of 240k"), found.get("int4 of 240k")
    if exact is not None and coarse is not None:
        lost = coarse.loss - exact.loss
        report("nats lost by int4 with error feedback", [lost], "nats", goal=GOAL_NATS)


if __name__ == "__main__":
    main(sys.argv[1:])
