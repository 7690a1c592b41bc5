"""Replicas that must end up equal: generated histories, simulated swarms, a swarm that was cut in
half; and stores that are killed at random moments.

`python -m benchmarks.agree_converge` prints one JSON object a line. LONG=1, or `make soak-agree`,
runs as many as the issue asks for, a quarter of an hour; otherwise it is a fifth of that.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import trio
import trio.testing

from benchmarks.report import QUICK, progress, report
from tests.sim.replicas import Links, signer, start_store

LONG = os.environ.get("LONG") == "1"
HISTORIES, SWARMS, KILLS = 100_000, 10_000, 1_000
SHARE = 1 if LONG else 500 if QUICK else 5  # one in so many of them
PROCESSES = 2
SOAK_S = 3600.0
NODES = 30 if QUICK else 100
WRITERS = 5  # each so manieth node writes: a simulated flood costs n² deliveries a write
HEAL_GOAL_S = 60.0
APART_S = 90.0  # longer than what a sync brings counts as news (crdt/live.py)
LOOK_S = 0.5  # of virtual time, between two looks
NAMESPACE = "kv"


async def _heal(nodes: int) -> float:
    """Cut a swarm in half, let both halves write, heal it; virtual seconds until all are equal.

    Nobody is told that the link is back, as daemons are: the next syncs by chance find it.
    """
    links = Links()
    async with trio.open_nursery() as nursery:
        stores = [await start_store(nursery, links, number) for number in range(1, nodes + 1)]
        names = [signer(number).peer for number in range(1, nodes + 1)]
        left, right = names[: nodes // 2], names[nodes // 2 :]
        await stores[0].put(NAMESPACE, "before", 0)
        await trio.sleep(5)
        links.split(left, right)
        for number, store in enumerate(stores[::WRITERS]):
            await store.put(NAMESPACE, f"apart/{number}", number)
            await store.put(NAMESPACE, "same", number)
        await trio.sleep(APART_S)
        assert len({store.root(NAMESPACE) for store in stores}) == 2, "two halves"
        links.cut.clear()
        healed = trio.current_time()
        while len({store.root(NAMESPACE) for store in stores}) > 1:  # noqa: ASYNC110 - no event
            await trio.sleep(LOOK_S)
        seconds = trio.current_time() - healed
        nursery.cancel_scope.cancel()
    return seconds


def _soak(module: str, *runs: Sequence[int]) -> list[dict[str, Any]]:
    """Run a module of tests/soak several times at once; each prints a line of JSON at its end."""
    argv = [sys.executable, "-m", f"tests.soak.{module}"]
    started = [
        subprocess.Popen([*argv, *(str(one) for one in run)], stdout=subprocess.PIPE)
        for run in runs
    ]
    found = list[dict[str, Any]]()
    try:
        for process in started:
            said, _ = process.communicate(timeout=SOAK_S)
            if not said.strip():
                raise RuntimeError(f"{module} ended with status {process.returncode}")
            found.append(json.loads(said.splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
    return found


def _divergences(module: str, wanted: int, what: str) -> None:
    """Check so many, numbered from a random place on; report how many went wrong."""
    each, first = wanted // SHARE // PROCESSES, random.randrange(10**9)
    progress(f"{PROCESSES * each} {what} from number {first}")
    runs = _soak(module, *((each, first + number * each) for number in range(PROCESSES)))
    wrong = [one for run in runs for one in run["divergences"].items()]
    for number, problem in wrong:
        progress(f"DIVERGENCE in number {number}: {problem}")
    unit = f"divergences in {PROCESSES * each}"
    report(f"agree.{what}", [len(wrong)], unit, goal=0, why=_how_many(wanted))
    if "healed_s" in runs[0]:
        healed = [run["healed_s"] for run in runs]
        report("agree.heal_with_losses", healed, "virtual s", goal=HEAL_GOAL_S)


def _how_many(wanted: int) -> str:
    return "" if SHARE == 1 else f"`make soak-agree` runs {wanted:,}"


def _kills() -> None:
    count = KILLS // min(SHARE, 50)
    progress(f"{count} kills of a store under load")
    (done,) = _soak("store_kill", [count])
    progress(f"{done['acknowledged']} writes were acknowledged; seed {done['seed']}")
    for what in ("lost", "unreadable", "damaged_rows", "forks"):
        unit = f"in {done['kills']} kills"
        report(f"agree.kill_{what}", [done[what]], unit, goal=0, why=_how_many(KILLS))


def main() -> None:
    """Measure all of it."""
    progress(f"{NODES} simulated nodes, cut in half")
    clock = trio.testing.MockClock(autojump_threshold=0)
    seconds = trio.run(_heal, NODES, clock=clock)
    report(f"agree.heal_{NODES}_nodes", [seconds], "virtual s", goal=HEAL_GOAL_S)
    _divergences("crdt_histories", HISTORIES, "histories")
    _divergences("crdt_swarms", SWARMS, "simulations")
    _kills()


if __name__ == "__main__":
    main()
