"""Averaging beside hivemind and gloo in the same rounds; what control costs; memory of a daemon;
8-bit errors; traffic.

`python -m benchmarks.learn_average` prints one JSON object a line. Each round of measurement has
one averaging of each system, so noise of the machine hits all alike. QUICK=1: fewer rounds.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.learn_swarm import (
    Swarm,
    everybody,
    gloo,
    hivemind,
    seconds,
    step,
    swarm,
)
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, progress, report
from benchmarks.systems import Missing
from protocols.modelsync.codecs import codec_named

COUNT = 3 if QUICK else ROUNDS
MILLION = 1_000_000
EVERY = 25  # local steps between two rounds, of the traffic goal
CONTROL_ELEMENTS = 100_000
PAUSE_TRIES = 2  # of a rival's group that was not whole


class Rivals:
    """Groups of rivals; one that fails is out, with the reason in `why`."""

    def __init__(self, stack: ExitStack) -> None:
        self.groups = dict[str, list[Child]]()
        self.why = dict[str, str]()
        self._stack = stack

    def enter(self, name: str, start: Callable[[], AbstractContextManager[list[Child]]]) -> None:
        """Start a group; it ends with the stack."""
        try:
            self.groups[name] = self._stack.enter_context(start())
        except (Missing, Failed) as error:
            self._exclude(name, error)

    def step(self, name: str) -> tuple[float, float] | None:
        """One averaging: seconds of the slowest for all of it, and for its all-reduce alone."""
        group = self.groups.get(name)
        if group is None:
            return None
        try:
            for _ in range(PAUSE_TRIES):
                answers = step(group)
                if all(a.get("group", len(group)) == len(group) for a in answers):
                    return seconds(answers), max(a.get("reduce_s", 0.0) for a in answers)
            raise Failed(f"{name}: {answers[0].get('failure') or 'the group was not whole'}")
        except Failed as error:
            self._exclude(name, error)
            return None

    def _exclude(self, name: str, error: Exception) -> None:
        progress(f"{name} is out: {error}")
        self.groups.pop(name, None)
        self.why[name] = str(error)


class Series:
    """Times of one system."""

    def __init__(self) -> None:
        self.whole, self.reduce = list[float](), list[float]()

    def add(self, one: tuple[float, float] | None) -> None:
        """Take in one round, if there was one."""
        if one is not None:
            self.whole.append(one[0])
            self.reduce.append(one[1])


def _contest(
    ours: Sequence[Child], rivals: Rivals, count: int = COUNT
) -> tuple[list[float], dict[str, Series]]:
    """Measure all in turn, one round to warm up not counted."""
    mine, theirs = list[float](), {name: Series() for name in rivals.groups}
    for number in range(count + 1):
        everybody(ours, "fill", value=1.0)
        took = seconds(step(ours))
        if number:
            mine.append(took)
        for name, series in theirs.items():
            one = rivals.step(name)
            if number:
                series.add(one)
    return mine, theirs


def _report_average(
    name: str, ours: list[float], rival: Series, why: str, *, speed: float | None, against: str
) -> None:
    report(
        *(f"learn.average_{name}", ours, "s"),
        against=against,
        against_values=rival.whole,
        goal_ratio=None if speed is None else round(1 / speed, 4),
        why=why,
    )
    if any(rival.reduce):
        report(
            *(f"learn.average_{name}_reduce_only", ours, "s"),
            against=f"{against}, its all-reduce alone",
            against_values=rival.reduce,
        )


def _average(swarm_: Swarm, size: int, millions: int, wire: str) -> None:
    """One size on one wire. Goals are those of the issue; the stretch is gloo's time."""
    name, rival = f"{size}x{millions}m_{wire}", "uniform8" if wire == "int8" else wire
    progress(f"averaging {name}")
    goals = {(4, "float32"): (3.0, 1.5), (4, "int8"): (5.0, 1.0), (2, "float32"): (4.0, None)}
    speed, stretch = goals.get((size, wire), (None, None))
    elements = millions * MILLION
    with ExitStack() as stack:
        swarm_.attach(f"average-{name.replace('_', '-')}", elements, wire=wire)
        rivals = Rivals(stack)
        rivals.enter("hivemind", partial(hivemind, size, elements, rival))
        rivals.enter("gloo", partial(gloo, size, elements))
        ours, theirs = _contest(swarm_.children, rivals)
        _report_average(
            *(name, ours, theirs.get("hivemind", Series()), rivals.why.get("hivemind", "")),
            speed=speed,
            against=f"hivemind {rival}",
        )
        report(
            *(f"learn.average_{name}_over_gloo", ours, "s"),
            against="gloo float32, not encrypted",
            against_values=theirs["gloo"].whole if "gloo" in theirs else [],
            goal_ratio=stretch,
            why=rivals.why.get("gloo", ""),
        )
        if wire == "int8":
            _error(swarm_, rivals, elements)
        swarm_.leave()


def _error(swarm_: Swarm, rivals: Rivals, elements: int) -> None:
    """How far the mean of normal vectors is from the exact one, ours and hivemind's."""
    seeds = list(range(swarm_.size))
    for seed, child in zip(seeds, swarm_.children, strict=True):
        child.ask("fill", seed=seed)
    step(swarm_.children)
    ours = [swarm_.children[0].ask("error", seeds=seeds)["rms"]]
    theirs, group = list[float](), rivals.groups.get("hivemind")
    if group is not None:
        for seed, child in zip(seeds, group, strict=True):
            child.ask("fill", seed=seed)
        if rivals.step("hivemind") is not None:
            theirs = [float(child.ask("distance", seeds=seeds)["rms"]) for child in group]
    report(
        *("learn.int8_error", ours, "rms of normal vectors"),
        against="hivemind uniform8",
        against_values=theirs,
        goal_ratio=0.75,
        why=rivals.why.get("hivemind", ""),
    )
    for codec, goal in (("int8", 1.01), ("int4", None)):
        size = len(codec_named(codec).encode(np.ones(elements, np.float32))) / elements
        report(f"learn.{codec}_bytes", [size], "B/parameter", goal=goal)


def _control(swarm_: Swarm) -> None:
    """A round whose data is next to nothing."""
    progress("control")
    swarm_.attach("control", CONTROL_ELEMENTS)
    times = [seconds(step(swarm_.children)) * 1e3 for _ in range(COUNT * 4 + 1)]
    report("learn.control", times[1:], "ms", goal=30.0)
    swarm_.leave()


def _memory(swarm_: Swarm, millions: int) -> None:
    """What a daemon has at most, without the trainer's own memory and what it had before."""
    progress("memory")
    tensor_bytes = 4 * millions * MILLION
    before = {node.pid: _status(node.pid)["RssAnon"] for node in swarm_.nodes}
    swarm_.attach("memory", millions * MILLION)
    for node in swarm_.nodes:
        Path(f"/proc/{node.pid}/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(3):
        everybody(swarm_.children, "fill", value=1.0)
        step(swarm_.children)
    shares = list[float]()
    for node in swarm_.nodes:
        now = _status(node.pid)
        above = now["VmHWM"] - now["RssShmem"] - now["RssFile"] - before[node.pid]
        shares.append(above / tensor_bytes)
    report("learn.memory", [max(shares)], "x tensor bytes", goal=2.0)
    swarm_.leave()


def _status(pid: int) -> dict[str, int]:
    """Bytes of a process's memory, by kind."""
    found = dict[str, int]()
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if value.endswith("kB"):
            found[key] = int(value.split()[0]) * 1024
    return found


def _traffic(swarm_: Swarm) -> None:
    """Bytes that members sent for EVERY local steps: a float32 round each, or one of int4."""
    progress("traffic")
    spent = dict[str, list[float]]()
    for wire in ("float32", "int4"):
        swarm_.attach(f"traffic-{wire}", MILLION, wire=wire)
        everybody(swarm_.children, "fill", seed=1)
        spent[wire] = [float(answer["bytes_out"]) for answer in step(swarm_.children)]
        swarm_.leave()
    ratio = EVERY * sum(spent["float32"]) / sum(spent["int4"])
    report("learn.traffic", [ratio], "x less than per-step averaging", better="higher", goal=200.0)


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with swarm(Path(folder), 4) as four:
            _control(four)
            _average(four, 4, 10, "float32")
            _average(four, 4, 10, "int8")
            _memory(four, 10)
            _traffic(four)
        with swarm(Path(folder) / "two", 2) as two:
            _average(two, 2, 50, "float32")


if __name__ == "__main__":
    main()
