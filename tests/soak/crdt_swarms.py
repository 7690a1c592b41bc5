"""`python -m tests.soak.crdt_swarms 10000 [FIRST]`: so many swarms live through partitions, losses
and restarts; prints one line of JSON. Stops at nothing: a seed that diverges is listed, to be run
again alone.
"""

import json
import sys
import time

from tests.sim.crdt_swarm import live


def main(count: int, first: int = 0) -> int:
    """Run the swarms of `count` numbers."""
    start_s, divergences = time.monotonic(), dict[int, str]()
    for seed in range(first, first + count):
        problem = live(seed)
        if problem:
            divergences[seed] = problem
    seconds = round(time.monotonic() - start_s, 1)
    print(json.dumps({"swarms": count, "seconds": seconds, "divergences": divergences}))
    return 1 if divergences else 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
