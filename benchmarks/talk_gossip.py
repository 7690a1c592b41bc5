"""A burst on a channel of 30 daemons: who got it, when, and what it cost.

`python -m benchmarks.talk_gossip` prints one JSON object a line. QUICK=1 starts 7 daemons.
"""

import sys
from collections.abc import Sequence

from benchmarks.forge import Forged, daemons
from benchmarks.gossip_node import stamped
from benchmarks.orders import Child
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report

DAEMONS = 7 if QUICK else 30
BURSTS = 3 if QUICK else ROUNDS
BURST = 60
SIZE = 1024
TOPIC = "bench"
COLLECT_S = 5.0 if QUICK else 20.0
NAMES = (("delivered", "%"), ("p99", "ms"), ("cpu_per_delivery", "ms"))
GOALS = {"delivered": 100.0, "p99": 500.0, "cpu_per_delivery": 1.5}


def _burst(members: Sequence[Forged], listeners: Child) -> dict[str, float]:
    """One program at one daemon publishes as fast as it can."""
    before_s = sum(daemon.cpu_s for daemon in members)
    publisher = members[0].client
    for _ in range(BURST):
        publisher.publish(TOPIC, stamped(SIZE))
    got = listeners.ask("collect", count=BURST, seconds=COLLECT_S)
    cpu_s = sum(daemon.cpu_s for daemon in members) - before_s
    times: list[float] = got["ms"]
    return {
        "delivered": 100 * len(times) / got["wanted"],
        "p99": percentile(times, 0.99) if times else COLLECT_S * 1e3,
        "cpu_per_delivery": cpu_s * 1e3 / max(1, len(times)),
    }


def measure(members: Sequence[Forged]) -> None:
    """Send bursts through a running swarm."""
    found: dict[str, list[float]] = {name: [] for name, _ in NAMES}
    homes = [str(daemon.home) for daemon in members[1:]]
    with Child("listeners", [sys.executable, "-m", "benchmarks.gossip_node", *homes]) as child:
        child.ask("listen", topic=TOPIC)
        for number in range(BURSTS + 1):
            figures = _burst(members, child)
            progress(f"burst {number} of {BURSTS}: {figures}")
            for name, value in figures.items():
                if number:
                    found[name].append(value)
    found["delivered"] = [min(found["delivered"])]  # no median: none may be missing
    for name, unit in NAMES:
        better = "higher" if name == "delivered" else "lower"
        bench = f"talk.gossip_{len(members)}_{name}"
        report(bench, found[name], unit, better=better, goal=GOALS[name])


def main() -> None:
    """Measure it in a swarm of its own."""
    progress(f"starting {DAEMONS} daemons")
    with daemons(DAEMONS) as members:
        measure(members)


if __name__ == "__main__":
    main()
