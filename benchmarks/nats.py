"""What strategies and codecs cost in learning: nats on Shakespeare, all members in one process.

python -m benchmarks.nats [NAME ...]: rows whose name begins so. By the simulation that the swarm
equals bit for bit on the float32 wire. No time is measured, so other load does not matter.
"""

import sys

import torch

from benchmarks.report import QUICK, progress, report
from tests.learning.convergence import Trained, train

MEMBERS, STEPS, EVERY = (2, 150, 15) if QUICK else (4, 300, 25)
GOAL_NATS = 0.005  # that int4 with error feedback may lose

ROWS: dict[str, tuple[str, dict[str, object]]] = {
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
    rest = {key: value for key, value in options.items() if key not in ("every", "codec")}
    codec = str(options.get("codec", "float32"))
    return train(name, members=MEMBERS, steps=STEPS, codec=codec, every=every, **rest)


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
    exact, coarse = found.get("diloco, float32"), found.get("diloco, int4 + feedback")
    if exact is not None and coarse is not None:
        lost = coarse.loss - exact.loss
        report("nats lost by int4 with error feedback", [lost], "nats", goal=GOAL_NATS)


if __name__ == "__main__":
    main(sys.argv[1:])
