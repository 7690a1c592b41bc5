"""The DHT in simulated swarms: hops, the dead, churn, liars and Sybils, at up to 100,000 nodes.

Each figure comes from a file in configs/sim/ and does not depend on the machine; the wall time
does. Two scenarios run at a time. Run: `python -m benchmarks.find_sim [PART …]`; QUICK=1 for small
swarms; PLOT=docs/find.svg draws hops and messages over the size of the swarm.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.orders import Failed
from benchmarks.report import QUICK, progress, report, run_parts

AT_ONCE = 2  # processes: one of 100,000 nodes takes 3 GB
LIMIT_S = 3 * 3600.0  # for one scenario; the longest takes half an hour
SIZES = {"1k": 1000, "10k": 10_000, "100k": 100_000}
QUICK_CHANGES = ("swarm.nodes=300", "work.looks=50", "work.records=20")
QUICK_TRIALS = ("work.records=1", "work.trials=2", "work.looks=10")


@dataclass(frozen=True)
class Figure:
    """One line of the report. bench: after `find.sim_`. key: of the scenario's figures."""

    bench: str
    scenario: str
    key: str
    unit: str
    goal: float | None = None
    better: str = "lower"


def _gets(bench: str, scenario: str, goal: float) -> Figure:
    return Figure(bench, scenario, "correct", "% of gets", goal, "higher")


HOPS = [
    figure
    for size, count in SIZES.items()
    for figure in (
        Figure(f"found_{size}", f"calm_{size}", "found", "% of lookups", 100.0, "higher"),
        Figure(f"hops_{size}", f"calm_{size}", "hops", "hops", 3.0 if count > 10_000 else None),
        Figure(
            f"hops_{size}_p99", f"calm_{size}", "hops_p99", "hops", 4.0 if count > 10_000 else None
        ),
        Figure(f"messages_{size}", f"calm_{size}", "messages", "messages", 40.0),
    )
]
WALL = [Figure("wall_10k", "calm_10k", "wall_s", "s", 120.0)]
DEAD = [
    figure
    for share, goal in ((30, 99.9), (70, 99.0))
    for figure in (
        _gets(f"dead_{share}", f"dead_{share}", goal),
        Figure(f"dead_{share}_p95", f"dead_{share}", "timeouts_p95", "time-outs", 3.0),
    )
]
CHURN = [
    _gets("churn_10k", "churn_10k", 99.9),
    Figure("churn_10k_requests", "churn_10k", "requests_per_node_hour", "requests/node/hour"),
]
HOSTILE = [
    _gets(f"{name}_{size}", f"{name}_{size}", goal)
    for name, goal in (("hostile", 99.9), ("sybils_45", 100.0), ("sybils_200", 90.0))
    for size in ("1k", "10k")
]
MANY = [
    _gets("many_found", "many", 99.9),
    Figure("many_messages", "many", "store_messages", "messages"),
]


def _play(scenario: str) -> dict[str, float]:
    """Run a scenario in a process of its own; its figures."""
    changes: tuple[str, ...] = ()
    if QUICK:
        changes = QUICK_TRIALS if scenario.startswith("sybils") else QUICK_CHANGES
        changes += ("hours=0.2",) if scenario.startswith("churn") else ()
    command = [sys.executable, "-m", "tests.sim.run", scenario, "--json", *changes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False)
    if done.returncode not in (0, 1):  # 1: a goal is missed
        raise Failed(f"{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    figures = {row["figure"]: row["value"] for row in result["figures"]}
    progress(f"{scenario}: {figures['wall_s']:.0f} s, {len(result['failures'])} failures")
    for failure in result["failures"][:5]:
        progress(f"  {failure}")
    return figures


def measure(wanted: list[Figure], *, at_once: int = AT_ONCE) -> dict[str, dict[str, float]]:
    """Run what the figures need, and report them; returns the figures of each scenario."""
    names = list(dict.fromkeys(figure.scenario for figure in wanted))
    with ThreadPoolExecutor(at_once) as pool:
        found = dict(zip(names, pool.map(_play, names), strict=True))
    for one in wanted:
        value = found[one.scenario].get(one.key)
        values = [] if value is None else [value]
        report(f"find.sim_{one.bench}", values, one.unit, goal=one.goal, better=one.better)
    return found


def _hops() -> None:
    found = measure(HOPS)
    if path := os.environ.get("PLOT"):
        _plot({size: found[f"calm_{size}"] for size in SIZES}, path)


def _plot(found: dict[str, dict[str, float]], path: str) -> None:
    """Draw hops and messages over the number of nodes."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "shoal"  # the same figures, the same file
    from matplotlib import pyplot

    sizes = [SIZES[size] for size in found]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axes, key, limits in ((left, "hops", (3.0, 4.0)), (right, "messages", (40.0, None))):
        mean = [one[key] for one in found.values()]
        high = [one[f"{key}_p99"] for one in found.values()]
        for values, mark, limit in ((mean, "mean", limits[0]), (high, "p99", limits[1])):
            (line,) = axes.semilogx(sizes, values, "o-", label=mark)
            if limit is not None:
                colour = line.get_color()
                axes.axhline(limit, color=colour, linestyle=":", label=f"goal for the {mark}")
        axes.set(xlabel="nodes", ylabel=f"{key} per lookup", ylim=(0, None))
        axes.legend()
    figure.savefig(path, metadata={"Date": None})
    progress(f"drew {path}")


PARTS = {
    "wall": lambda: measure(WALL, at_once=1),
    "hops": _hops,
    "dead": lambda: measure(DEAD),
    "hostile": lambda: measure(HOSTILE),
    "many": lambda: measure(MANY),
    "churn": lambda: measure(CHURN),
}


def main() -> None:
    """Measure the parts that are named, or all."""
    run_parts("find.sim", PARTS, sys.argv[1:])


if __name__ == "__main__":
    main()
