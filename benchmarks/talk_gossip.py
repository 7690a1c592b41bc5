"""A burst on a channel of 30 daemons: who got it, when, and what it cost; and the simulated 1,000.

`python -m benchmarks.talk_gossip` prints one JSON object a line. QUICK=1 starts 8 daemons.
"""

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.forge import Forged, daemons
from benchmarks.gossip_node import stamped
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report

DAEMONS = 8 if QUICK else 30
BURST = 60
SIZE = 1024
TOPIC = "bench"
COLLECT_S = 5.0 if QUICK else 20.0
SIMULATION_S = 600.0
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


def _daemons() -> None:
    found: dict[str, list[float]] = {name: [] for name, _ in NAMES}
    progress(f"starting {DAEMONS} daemons")
    with daemons(DAEMONS) as members:
        homes = [str(daemon.home) for daemon in members[1:]]
        with Child("listeners", [sys.executable, "-m", "benchmarks.gossip_node", *homes]) as child:
            child.ask("listen", topic=TOPIC)
            for number in range(ROUNDS + 1):
                figures = _burst(members, child)
                progress(f"burst {number} of {ROUNDS}: {figures}")
                for name, value in figures.items():
                    if number:
                        found[name].append(value)
    for name, unit in NAMES:
        report(
            f"talk.gossip_{DAEMONS}_{name}",
            found[name] if name != "delivered" else [min(found[name])],
            unit,
            better="higher" if name == "delivered" else "lower",
            goal=GOALS[name],
        )


def _simulation() -> None:
    """The 1,000 nodes are a program of their own, which prints its own lines."""
    progress("simulating 1,000 nodes")
    argv = [sys.executable, "-m", "benchmarks.gossip_sim"]
    try:
        subprocess.run(argv, check=True, timeout=SIMULATION_S)
    except (OSError, subprocess.SubprocessError) as error:
        report("talk.gossip_sim", [], "%", better="higher", goal=99.99, why=str(error))


def main() -> None:
    """Measure both."""
    try:
        _daemons()
    except Failed as error:
        for name, unit in NAMES:
            report(f"talk.gossip_{DAEMONS}_{name}", [], unit, goal=GOALS[name], why=str(error))
    sys.stdout.flush()
    _simulation()


if __name__ == "__main__":
    main()
