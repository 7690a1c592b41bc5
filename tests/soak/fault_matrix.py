"""`python -m tests.soak.fault_matrix 50 [FIRST]`: the whole fault matrix so many times, each with
another seed: other latencies, other trainers' speeds, faults at another message of the state.

Prints each failure on standard error as it comes, and one line of JSON at the end.
"""

import json
import sys
import time

from tests.sim.test_fault_matrix import CELLS, run

MESSAGE_MAX = 160  # characters of a failure


def main(count: int, first: int = 0) -> int:
    """Run the matrix with `count` seeds; the status is 1 if a cell failed."""
    began, failures = time.monotonic(), dict[str, str]()
    for seed in range(first, first + count):
        for fault, phase, role in CELLS:
            try:
                run(fault, phase, role, seed)
            except Exception as error:  # a boundary: the other cells are run all the same
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                name = f"{fault}-{phase}-{role}-{seed}"
                failures[name] = f"{type(error).__name__}: {error}".partition("\n")[0][:MESSAGE_MAX]
                print(name, failures[name], file=sys.stderr, flush=True)
        print(f"seed {seed}: {len(failures)} failures so far", file=sys.stderr, flush=True)
    took_s = round(time.monotonic() - began, 1)
    told = {"matrices": count, "cells": count * len(CELLS), "failures": failures, "seconds": took_s}
    print(json.dumps(told))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
