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
from benchmarks.report import run_parts

PARTS = {
    "writes": agree_writes.main,
    "sync": agree_sync.main,
    "proofs": agree_proofs.main,
    "rivals": agree_rivals.main,
    "hostile": agree_hostile.main,
    "convergence": agree_converge.main,
}


if __name__ == "__main__":
    run_parts("agree", PARTS, sys.argv[1:])
