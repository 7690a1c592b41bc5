"""Every figure of how peers talk, one JSON object a line on standard output and nothing else.

`python -m benchmarks.talk`, or `make bench-talk`. Each part runs by itself too, as
`python -m benchmarks.talk_rpc`. QUICK=1 takes less than 50 s on two free cores.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import (
    talk_blobs,
    talk_bulk,
    talk_connect,
    talk_gossip,
    talk_hostile,
    talk_idle,
    talk_link,
    talk_rpc,
)
from benchmarks.contest import Contest
from benchmarks.report import run_parts
from benchmarks.systems import lattica_pair, plain_pair, shoal_pair, socket_pair

SIMULATION_S = 900.0


def _between_two() -> None:
    """What two nodes of each system do, one after the other, so that they start once."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        contest = Contest(stack)
        contest.enter("shoal", shoal_pair)
        contest.enter("lattica", lattica_pair)
        contest.enter("plain", plain_pair)
        talk_rpc.measure(contest)
        talk_connect.measure(contest.pairs["shoal"])
        contest.enter("sockets", partial(socket_pair, folder))
        talk_bulk.measure(contest)


def _blobs_and_simulation() -> None:
    """The 1,000 simulated nodes are counted, not timed, so they run beside the slow providers."""
    argv = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.gossip_sim"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as simulation:
        try:
            talk_blobs.main()
            lines, _ = simulation.communicate(timeout=SIMULATION_S)
        finally:
            simulation.kill()
    sys.stdout.buffer.write(lines)
    sys.stdout.flush()
    if simulation.returncode:
        raise RuntimeError(f"benchmarks.gossip_sim ended with status {simulation.returncode}")


PARTS = {
    "calls and bulk": _between_two,
    "link": talk_link.main,
    "blobs and simulated gossip": _blobs_and_simulation,
    "idle": talk_idle.main,
    "gossip": talk_gossip.main,
    "hostile": talk_hostile.main,
}


if __name__ == "__main__":
    run_parts("talk", PARTS, sys.argv[1:])
