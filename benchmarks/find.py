"""Every figure of finding, one JSON object a line on standard output and nothing else.

`python -m benchmarks.find [PART ...]`, or `make bench-find`. Each part runs by itself too, as
`python -m benchmarks.find_daemons`. QUICK=1 takes some minutes, the full form hours: simulated
swarms of up to 100,000 nodes, and two hours of churn among 10,000. PLOT=FILE draws hops.
"""

import sys

from benchmarks import find_daemons, find_sim
from benchmarks.report import run_parts

PARTS = {"daemons": find_daemons.main, **find_sim.PARTS}


if __name__ == "__main__":
    run_parts("find", PARTS, sys.argv[1:])
