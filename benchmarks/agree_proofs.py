"""Proofs for third parties: how large, how long to make and to check.

`python -m benchmarks.agree_proofs` prints one JSON object a line.
"""

import tempfile
from pathlib import Path

from benchmarks.agree_writes import OPEN, Files, ask
from benchmarks.report import QUICK, percentile, progress, report

KEYS = 50 if QUICK else 1_000
SIZE_GOAL = 1_500  # bytes of a proof at a million entries (facts: state, 1.4)


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Files(Path(folder)).new()
        ask("fill", path=path, count=OPEN)
        progress(f"proofs of {KEYS} keys in a store of {OPEN}")
        done = ask("prove", path=path, count=KEYS)
    for case, sizes in done["bytes"].items():
        report(f"agree.proof_{case}_max", [percentile(sizes, 1)], "B", goal=SIZE_GOAL)
    for what in ("root", "prove", "verify"):
        name = "root_after_open" if what == "root" else f"proof_{what}"
        report(f"agree.{name}", done["ms"][what], "ms")


if __name__ == "__main__":
    main()
