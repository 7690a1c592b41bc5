"""Syncs: a newcomer's first one between two daemons, and what a difference costs in a large store.

`python -m benchmarks.agree_sync` prints one JSON object a line.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trio

from benchmarks.agree_entries import by_chain, corpus
from benchmarks.agree_store import NAMESPACE, STRANGER, Direct, frames, opened, push
from benchmarks.forge import READY_S, Forged
from benchmarks.orders import Child
from benchmarks.report import QUICK, progress, report
from crdt.shown import SyncReport
from wire.clock import SystemClock

COUNT = 10_000 if QUICK else 100_000  # entries that both have, or that a newcomer lacks
COLD_ROUNDS = 1 if QUICK else 3
COLD_S = 120.0
POLL_S = 0.05  # between two looks at how far the newcomer is
SETTLE_S = 1.0  # for the first daemon to be done with what it was given
COLD_GOAL_S, COLD_GOAL_RATIO = 5.0, 1.3
GOALS = {"0": (400, 1), "10_recent": (2_000, 3), "100_recent": (4_000, 3)}
SCATTERED_GOAL = (60_000, 3)


class Forge:
    """Starts daemons one at a time."""

    def __init__(self, folder: Path, child: Child) -> None:
        self._folder, self._child = folder, child

    def up(self, name: str, *args: str, fresh: bool = False) -> Forged:
        """Start one more daemon."""
        home = self._folder / name
        order = {"homes": [str(home)], "args": args, "fresh": fresh}
        return Forged(home, self._child.ask("up", timeout_s=READY_S, **order)["pids"][0])


@contextmanager
def forged() -> Generator[Forge]:
    """Start daemons in the block; none is left behind it."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Child("forge", [sys.executable, "-m", "benchmarks.forge"]) as child,
    ):
        yield Forge(Path(folder), child)


def figures(daemon: Forged) -> dict[str, float]:
    """Read a daemon's metrics."""
    page = daemon.client.call("GET", "/metrics", reply=bytes).decode()
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def _cold() -> None:
    """A daemon that is new in the swarm gets all that another one holds."""
    seconds, starts, ratios = list[float](), list[float](), list[float]()
    with forged() as forge:
        first = forge.up("first", fresh=True)
        ticket, address = first.client.ticket(), first.client.id().addresses[0]
        forge.up("warm", "--join", ticket)  # the forge loads the program for it
        for number in range(COLD_ROUNDS):  # there is nothing to sync yet
            began = time.perf_counter()
            alone = forge.up(f"alone{number}", "--join", ticket)
            alone.client.wait(peers=1, timeout_s=READY_S)
            starts.append(time.perf_counter() - began)
            os.kill(alone.pid, signal.SIGKILL)  # or newcomers serve it, and that is counted
        argv = [sys.executable, "-m", "benchmarks.agree_member", address, ticket]
        with Child("member", argv) as member:
            loaded = member.ask("load", count=COUNT, timeout_s=COLD_S)
        progress(f"a daemon took {COUNT} entries from a member in {loaded['seconds']:.1f} s")
        time.sleep(SETTLE_S)
        for number in range(COLD_ROUNDS):
            held = figures(first)["shoal_store_entries"]
            began = time.perf_counter()
            newcomer = forge.up(f"new{number}", "--join", ticket)
            while figures(newcomer)["shoal_store_entries"] < held:
                if time.perf_counter() - began > COLD_S:
                    raise RuntimeError(f"no sync within {COLD_S:g} s")
                time.sleep(POLL_S)
            seconds.append(time.perf_counter() - began)
            after = figures(newcomer)
            moved = after["shoal_bytes_in_total"] + after["shoal_bytes_out_total"]
            ratios.append(moved / loaded["bytes"])
            progress(f"a newcomer had them after {seconds[-1]:.2f} s")
    report("agree.cold_sync", seconds, "s", goal=COLD_GOAL_S)
    report(
        *("agree.cold_sync_beside_start", seconds, "s"),
        against="start and join alone",
        against_values=starts,
    )
    report("agree.cold_sync_bytes", ratios, "x entry bytes", goal=COLD_GOAL_RATIO)


def _report(case: str, sync: SyncReport, goal_bytes: int, goal_trips: int) -> None:
    report(f"agree.sync_{case}_bytes", [sync.overhead_bytes], "B", goal=goal_bytes)
    report(f"agree.sync_{case}_round_trips", [sync.round_trips], "round trips", goal=goal_trips)


async def _difference(folder: Path) -> None:
    """Two stores of one process: what is counted does not depend on what lies between them."""
    links, now_ms = Direct(STRANGER), SystemClock().wall_ms()
    async with opened(folder / "a.db", "a", links) as a, opened(folder / "b.db", "b", links) as b:
        peer = next(peer for peer, answer in links.answers.items() if answer == a.answer)
        made = list(corpus(a.namespace(NAMESPACE).id, COUNT + 110, now_ms))
        common = made[:COUNT]
        holes = set(random.Random(7).sample(range(COUNT), 100))
        some = [record for number, record in enumerate(common) if number not in holes]
        await push(a, frames(by_chain(common)))
        await push(b, frames(by_chain(some)))
        progress(f"two stores of {COUNT} entries, one lacks 100 of them")
        scattered = await b.sync_with(peer)
        nothing = await b.sync_with(peer)
        await push(a, frames(by_chain(made[COUNT : COUNT + 10])))
        ten = await b.sync_with(peer)
        await push(a, frames(by_chain(made[COUNT + 10 :])))
        hundred = await b.sync_with(peer)
        if b.root(NAMESPACE) != a.root(NAMESPACE):
            raise RuntimeError("the stores differ after their syncs")
    for (case, goals), sync in zip(GOALS.items(), (nothing, ten, hundred), strict=True):
        _report(case, sync, *goals)
    _report("100_scattered", scattered, *SCATTERED_GOAL)


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        trio.run(_difference, Path(folder))
    _cold()


if __name__ == "__main__":
    main()
