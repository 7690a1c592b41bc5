"""What a daemon costs that does nothing but have 20 peers: processor and memory.

`python -m benchmarks.talk_idle`. All are real daemons of one swarm; the measured one is a fresh
process. QUICK=1 watches it for 5 s.
"""

import time

from benchmarks.forge import daemons
from benchmarks.report import QUICK, ROUNDS, progress, report

PEERS = 20
SPARE = 2  # daemons beyond, for a member of a swarm need not be connected to all of it
SETTLE_S = 1.0 if QUICK else 15.0  # joining is not idling
WINDOW_S = 5.0 if QUICK else 20.0
STEP_S = 1.0 if QUICK else 5.0  # between the beginnings of two windows, which overlap


def main() -> None:
    """Watch one daemon."""
    progress(f"starting {1 + PEERS + SPARE} daemons")
    with daemons(1 + PEERS + SPARE, first_peers=PEERS) as (daemon, *_):
        time.sleep(SETTLE_S)
        progress(f"watching one of them, which has {len(daemon.client.peers())} peers")
        marks, sizes = list[tuple[float, float]](), list[float]()
        width = round(WINDOW_S / STEP_S)
        for number in range(ROUNDS + width):
            if number:
                time.sleep(STEP_S)
            marks.append((time.monotonic(), daemon.cpu_s))
            sizes.append(daemon.rss_mb)
        windows = [
            100 * (after_cpu - before_cpu) / (after - before)
            for (before, before_cpu), (after, after_cpu) in zip(marks, marks[width:], strict=False)
        ]
        has_torch = daemon.has_loaded("libtorch")
    report("talk.idle_cpu", windows, "% of a core", goal=1.0)
    report("talk.idle_rss", sizes, "MB", goal=120.0)
    report("talk.idle_torch_loaded", [int(has_torch)], "libraries", goal=0)


if __name__ == "__main__":
    main()
