"""Every figure of how peers talk, one JSON object a line on standard output and nothing else.

`python -m benchmarks.talk`, or `make bench-talk`. Each part runs by itself too, as
`python -m benchmarks.talk_rpc`. QUICK=1 takes less than 50 s on two free cores.
"""

import subprocess
import sys

from benchmarks import (
    talk_blobs,
    talk_bulk,
    talk_connect,
    talk_hostile,
    talk_link,
    talk_rpc,
    talk_swarm,
)
from benchmarks.report import progress, report

PARTS = {
    "rpc": talk_rpc.main,
    "connect": talk_connect.main,
    "bulk": talk_bulk.main,
    "link": talk_link.main,
    "blobs": talk_blobs.main,
    "swarm": talk_swarm.main,
    "hostile": talk_hostile.main,
}
SIMULATION_S = 900.0


def _simulation() -> None:
    """The 1,000 simulated nodes are a program of their own, which prints its own lines."""
    argv = [sys.executable, "-m", "benchmarks.gossip_sim"]
    subprocess.run(argv, check=True, timeout=SIMULATION_S)


def main() -> None:
    """Run all parts; one that fails says why in a line of its own, and the next one runs."""
    failed = 0
    for name, part in {**PARTS, "gossip_sim": _simulation}.items():
        progress(f"== {name}")
        try:
            part()
        except Exception as error:  # a boundary: the other figures are not its fault
            failed += 1
            report(f"talk.{name}", [], "", why=f"{type(error).__name__}: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
