"""Every figure of how peers are reached, one JSON object a line on standard output, nothing else.

`python -m benchmarks.reach [PART ...]`, or `make bench-reach`. Each part runs by itself too, as
`python -m benchmarks.reach_pairs`. It needs root, nftables and iproute2; where a lab cannot be
built each part says why in a line. QUICK=1 takes less than 50 s on two free cores, the full form an
hour: fifty trials of each of 42 pairs.
"""

import subprocess
import sys

from benchmarks import reach_pairs, reach_relay, reach_repair
from benchmarks.report import QUICK, run_parts

REPAIR_S = 300.0


def _pairs_beside_repair() -> None:
    """The quick form: both wait for networks most of the time, so they do it together."""
    argv = [sys.executable, "-m", "benchmarks.reach_repair"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as repair:
        try:
            reach_pairs.main()
            lines, _ = repair.communicate(timeout=REPAIR_S)
        finally:
            repair.kill()
    sys.stdout.buffer.write(lines)
    sys.stdout.flush()
    if repair.returncode:
        raise RuntimeError(f"benchmarks.reach_repair ended with status {repair.returncode}")


FULL = {"relay": reach_relay.main, "pairs": reach_pairs.main, "repair": reach_repair.main}
PARTS = {"relay": reach_relay.main, "pairs and repair": _pairs_beside_repair} if QUICK else FULL


if __name__ == "__main__":
    run_parts("reach", PARTS, sys.argv[1:])
