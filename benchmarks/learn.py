"""Every figure of learning together, one JSON object a line on standard output and nothing else.

`python -m benchmarks.learn [PART ...]`, or `make bench-learn`. Each part runs by itself too, as
`python -m benchmarks.learn_faults`. QUICK=1 takes some minutes, the full form about an hour: a
hundred kills, each with a daemon that comes back.
"""

import sys

from benchmarks import (
    learn_average,
    learn_byzantine,
    learn_faults,
    learn_join,
    learn_same,
    learn_sampled,
    learn_state,
    nats,
)
from benchmarks.report import run_parts

PARTS = {
    "averaging": learn_average.main,
    "faults": learn_faults.main,
    "joiner": learn_join.main,
    "state": learn_state.main,
    "same": learn_same.main,
    "nats": lambda: nats.main(["diloco, float32", "diloco, int4 + feedback"]),
    "byzantine": learn_byzantine.main,
    "sampled": learn_sampled.main,
}


if __name__ == "__main__":
    run_parts("learn", PARTS, sys.argv[1:])
