"""Every figure of the store, one JSON object a line on standard output and nothing else.

`python -m benchmarks.agree`, or `make bench-agree`. Each part runs by itself too, as
`python -m benchmarks.agree_writes`. QUICK=1 takes a minute or so on two free cores.
"""

import sys

from benchmarks import (
    agree_converge,
    agree_hostile,
    agree_proofs,
    agree_rivals,
    agree_sync,
    agree_writes,
)
from benchmarks.report import progress, report

PARTS = {
    "writes": agree_writes.main,
    "sync": agree_sync.main,
    "proofs": agree_proofs.main,
    "rivals": agree_rivals.main,
    "hostile": agree_hostile.main,
    "convergence": agree_converge.main,
}


def main() -> None:
    """Run all parts; one that fails says why in a line of its own, and the next one runs."""
    failed = 0
    for name, part in PARTS.items():
        progress(f"== {name}")
        try:
            part()
        except Exception as error:  # a boundary: the other figures are not its fault
            failed += 1
            report(f"agree.{name}", [], "", why=f"{type(error).__name__}: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
