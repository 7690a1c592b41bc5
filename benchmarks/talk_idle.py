"""What a daemon costs that does nothing but have 20 peers: processor and memory.

`python -m benchmarks.talk_idle`. All are real daemons of one swarm; the measured one is a fresh
process. QUICK=1 gives it 4 peers and watches it for 4 s.
"""

import time

from benchmarks.forge import Forged, daemons
from benchmarks.report import QUICK, ROUNDS, progress, report

PEERS = 4 if QUICK else 20
SPARE = 1  # daemons beyond, for a member of a swarm need not be connected to all of it
SETTLE_S = 1.0 if QUICK else 15.0  # joining is not idling
WINDOW_S = 1.5 if QUICK else 20.0
STEP_S = 0.5 if QUICK else 5.0  # between the beginnings of two windows, which overlap


def measure(daemon: Forged) -> None:
    """Watch one daemon of a running swarm."""
    time.sleep(SETTLE_S)
    peers = len(daemon.client.peers())
    progress(f"watching a daemon that has {peers} peers")
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
    report(f"talk.idle_cpu_{peers}_peers", windows, "% of a core", goal=1.0)
    report(f"talk.idle_rss_{peers}_peers", sizes, "MB", goal=120.0)
    report("talk.idle_torch", [int(daemon.has_loaded("libtorch"))], "libraries loaded", goal=0)


def main() -> None:
    """Watch one in a swarm of its own."""
    progress(f"starting {1 + PEERS + SPARE} daemons")
    with daemons(1 + PEERS + SPARE, first_peers=PEERS) as (daemon, *_):
        measure(daemon)


if __name__ == "__main__":
    main()
