"""The DHT between real daemons on loopback, beside hivemind's and Lattica's: get, put, providers.

`python -m benchmarks.find_daemons` prints one JSON object a line. All three swarms run at the same
time and are asked in turn, each by a program on this machine through what it gives programs. Of
each key one node is the writer, another the reader: no system answers from a cache of the reader.
QUICK=1: 20 nodes only.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import mean, median
from typing import Any

from benchmarks.forge import Forged, daemons
from benchmarks.learn_swarm import HIVEMIND, RIVALS, TORCH
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report
from benchmarks.systems import Missing, lattica_python, rival_python

SIZES = (20,) if QUICK else (20, 50)
CALLS = 10 if QUICK else 25  # of each kind in a round
DATA = "x" * 64
START_S = 240.0  # for fifty hivemind peers: a second each
MEET_S = 60.0
KNOWN = 20  # servers in every table before it begins: k, as a lookup needs; or 0.7 of all others
GET_GOAL_MS = 20.0  # p50 at 50 daemons (the issue)

Times = dict[str, list[float]]  # ms by kind of call
KINDS = ("put", "get", "provide", "providers")


class Ours:
    """A swarm of daemons, asked over their control sockets."""

    def __init__(self, nodes: Sequence[Forged]) -> None:
        self._dht = [one.client.dht for one in nodes]
        self._peers = [one.client.id().peer for one in nodes]

    def meet(self) -> None:
        """Wait until their tables are as full as may be. Raises Failed."""
        wanted = min(KNOWN, 0.7 * (len(self._dht) - 1))
        end = time.monotonic() + MEET_S
        while any(one.table().contacts < wanted for one in self._dht):
            if time.monotonic() > end:
                raise Failed(f"not all daemons know {wanted:.0f} others after {MEET_S:g} s")
            time.sleep(0.5)

    def put(self, node: int, key: str) -> bool:
        """Store a value of a node's own."""
        return self._dht[node].put(f"/shoal/head/{key}", DATA.encode()).kept > 0

    def get(self, node: int, key: str, author: int) -> bool:
        """Read it."""
        found = self._dht[node].get(f"/shoal/head/{self._peers[author]}/{key}").values
        return [one.data for one in found] == [DATA.encode()]

    def provide(self, node: int, key: str) -> bool:
        """Say that it has it."""
        return self._dht[node].provide(f"/{key}").kept > 0

    def providers(self, node: int, key: str, author: int) -> bool:
        """Ask who has it."""
        found = self._dht[node].providers(f"/{key}").providers
        return [one.peer for one in found] == [self._peers[author]]

    def hops(self, node: int, key: str, author: int) -> float:
        """Read it, and count the answers in a row that led to the first that had it."""
        found = self._dht[node].get(f"/shoal/head/{self._peers[author]}/{key}", trace=True)
        hops = found.effort.hops or []
        depths = [hop.depth for hop in hops if hop.found]
        return min(depths, default=0) + 1.0

    def measure(self, rng: random.Random, count: int, tag: str) -> Times:
        """Call so many times of each kind."""
        times: Times = {kind: [] for kind in (*KINDS, "hops")}
        for number in range(count):
            key = f"{tag}-{number}"
            writer, reader = rng.sample(range(len(self._dht)), 2)
            times["put"].append(_timed(partial(self.put, writer, key)))
            times["get"].append(_timed(partial(self.get, reader, key, writer)))
            times["provide"].append(_timed(partial(self.provide, writer, key)))
            times["providers"].append(_timed(partial(self.providers, reader, key, writer)))
            times["hops"].append(self.hops(reader, key, writer))
        return times


def _timed(call: Callable[[], bool]) -> float:
    """Return how many ms a call took that must succeed. Raises Failed."""
    began = time.perf_counter()
    if not call():
        raise Failed("a daemon of ours did not find, or keep, what it should")
    return (time.perf_counter() - began) * 1e3


class Rival:
    """A rival's swarm in a child. What it does not find is counted, not timed."""

    def __init__(self, child: Child, size: int, kinds: Sequence[str]) -> None:
        self._child, self._size, self._kinds = child, size, kinds
        self.missed = dict.fromkeys(kinds, 0)

    def measure(self, rng: random.Random, count: int, tag: str) -> Times:
        """As `Ours.measure`, of what it can do."""
        times: Times = {kind: [] for kind in self._kinds}
        for number in range(count):
            writer, reader = rng.sample(range(self._size), 2)
            for kind in self._kinds:
                is_write = kind in ("put", "provide")
                more: dict[str, Any] = {"data": DATA} if kind in KINDS[:2] else {}
                key = f"{tag}-{number}"
                node = writer if is_write else reader
                answer = self._child.ask(kind, node=node, key=key, **more)
                if answer["ok"]:
                    times[kind].append(answer["ms"])
                else:
                    self.missed[kind] += 1
        return times


def lattica(stack: ExitStack, size: int) -> Rival:
    """Start a swarm of Lattica nodes. Raises Missing, Failed."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-lattica-"))
    argv = [lattica_python(), "-m", "benchmarks.rivals.lattica_dht", folder, str(size)]
    child = stack.enter_context(Child("lattica", argv, has_children=True))
    _ = child.hello
    return Rival(child, size, KINDS)


def hivemind(stack: ExitStack, size: int) -> Rival:
    """Start a swarm of hivemind's. It has no provider records. Raises Missing, Failed."""
    python = rival_python(RIVALS / "hivemind", *HIVEMIND, before=(TORCH,))
    argv = [python, "-m", "benchmarks.rivals.hivemind_dht"]
    child = stack.enter_context(Child("hivemind", argv, has_children=True))
    child.ask("start", count=size, timeout_s=START_S)
    return Rival(child, size, KINDS[:2])


class Swarms:
    """All that are measured, and their times by name and kind, a list for each round."""

    def __init__(self, stack: ExitStack, size: int) -> None:
        self.rivals, self.why = dict[str, Rival](), dict[str, str]()
        progress(f"starting {size} daemons")
        self.ours = Ours(stack.enter_context(daemons(size)))
        self.ours.meet()
        for name, start in (("lattica", lattica), ("hivemind", hivemind)):
            progress(f"starting {size} nodes of {name}")
            try:
                self.rivals[name] = start(stack, size)
            except (Missing, Failed) as error:
                self._exclude(name, error)
        self.rounds: dict[str, list[Times]] = {"shoal": [], "lattica": [], "hivemind": []}

    def measure(self, rng: random.Random, number: int) -> None:
        """One round; the first is to warm up and not counted."""
        found = {"shoal": self.ours.measure(rng, CALLS, f"k{number}")}
        for name, rival in list(self.rivals.items()):
            try:
                found[name] = rival.measure(rng, CALLS, f"k{number}")
            except Failed as error:
                self._exclude(name, error)
        for name, times in found.items():
            progress(f"{name}: { ({k: round(median(v), 2) for k, v in times.items() if v}) }")
            if number:
                self.rounds[name].append(times)

    def medians(self, name: str, kind: str) -> list[float]:
        """Of each round."""
        return [median(times[kind]) for times in self.rounds[name] if times.get(kind)]

    def all(self, name: str, kind: str) -> list[float]:
        """Of all rounds together."""
        return [one for times in self.rounds[name] for one in times.get(kind, [])]

    def _exclude(self, name: str, error: Exception) -> None:
        progress(f"{name} is out: {error}")
        self.rivals.pop(name, None)
        self.why[name] = str(error)


def _report(swarms: Swarms, size: int) -> None:
    for kind, goal in (("get", GET_GOAL_MS), ("put", None), ("provide", None), ("providers", None)):
        ours = swarms.medians("shoal", kind)
        bench = f"find.{kind}_p50_{size}"
        report(bench, ours, "ms", goal=goal)
        for name in ("lattica", "hivemind"):
            if name == "hivemind" and kind not in KINDS[:2]:
                continue
            rival = swarms.medians(name, kind)
            why = swarms.why.get(name, "")
            if missed := name in swarms.rivals and swarms.rivals[name].missed[kind]:
                why = f"{name} did not find {missed} of {CALLS * (ROUNDS + 1)}"
            goal_ratio = 1.0 if kind == "get" else None
            report(
                *(f"{bench}_over_{name}", ours, "ms"),
                against=name,
                against_values=rival,
                goal_ratio=goal_ratio,
                why=why,
            )
    for name in ("shoal", "lattica", "hivemind"):
        if all_of := swarms.all(name, "get"):
            suffix = "" if name == "shoal" else f"_{name}"
            report(f"find.get_p99_{size}{suffix}", [percentile(all_of, 0.99)], "ms")
    report(f"find.get_hops_{size}", [mean(swarms.all("shoal", "hops"))], "hops")


def main() -> None:
    """Measure swarms of each size."""
    for size in SIZES:
        rng = random.Random(size)
        with ExitStack() as stack:
            swarms = Swarms(stack, size)
            for number in range(ROUNDS + 1):
                swarms.measure(rng, number)
            _report(swarms, size)


if __name__ == "__main__":
    main()
