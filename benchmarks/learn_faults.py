"""Death and frost in the middle of a round: when the survivors go on, and what they then hold.

`python -m benchmarks.learn_faults` prints one JSON object a line. A trial kills (kill -9) or
freezes (SIGSTOP) one peer, daemon and trainer, while four average; every other victim is the
proposer of the round. Hivemind has the time-outs of its Optimizer. QUICK=1: few trials, and no
frozen hivemind.
"""

import random
import signal
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.learn_swarm import LEAD_S, Node, Swarm, everybody, hivemind, seconds, step, swarm
from benchmarks.orders import Answer, Child, Failed
from benchmarks.report import QUICK, progress, report
from benchmarks.systems import Missing
from protocols.modelsync.ballots import order_of

SIZE, ELEMENTS = 4, 4_000_000
KILLS, FREEZES = (4, 2) if QUICK else (100, 10)
RIVAL_KILLS = 1 if QUICK else 3
RIVAL_WAIT_S = 150.0  # for a hivemind step with a frozen peer: it took 40 to 60 s
NORMAL_ROUNDS = 3
EARLY, LATE = 0.1, 0.9  # of a normal round: between these a fault is in its middle
OVER_S = 0.02  # a round that ends so soon after the fault had its certificate before
THAW_S = 60.0  # in which who was frozen has caught up
RUN = "faults"


@dataclass
class Trials:
    """What came of trials of one kind."""

    normal_s: float
    rng: random.Random
    after_s: list[float] = field(default_factory=list[float])  # from the fault to the last commit
    equal: int = 0
    count: int = 0


def _proposer(swarm_: Swarm, round_: int) -> Node:
    """Whose turn it is: known to all, so a trial can aim at it."""
    return min(swarm_.nodes, key=lambda node: order_of(RUN, 0, round_, 0, node.peer))


def _normal(swarm_: Swarm) -> float:
    """Seconds of a round in which nothing happens, the median of some."""
    times = list[float]()
    for _ in range(NORMAL_ROUNDS):
        everybody(swarm_.children, "fill", value=1.0)
        times.append(seconds(step(swarm_.children)))
    return float(np.median(times))


def _strike(swarm_: Swarm, victim: Node, number: int, trials: Trials) -> list[Answer]:
    """Begin a round, hit the victim in the middle of it; return what the others say."""
    others = [node for node in swarm_.nodes if node is not victim]
    for value, node in enumerate(swarm_.nodes):
        node.child.ask("fill", value=float(value))
    at = time.monotonic() + LEAD_S
    for node in swarm_.nodes:
        node.child.tell("step", at=at)
    struck = at + trials.normal_s * trials.rng.uniform(EARLY, LATE)
    time.sleep(max(0.0, struck - time.monotonic()))
    victim.signal(number)
    struck = time.monotonic()
    answers = [node.child.wait(THAW_S) for node in others]
    means = [node.child.ask("mean")["sha256"] for node in others]
    trials.count += 1
    roots = {(a.get("root"), a["outcome"], mean) for a, mean in zip(answers, means, strict=True)}
    trials.equal += len(roots) == 1 and answers[0]["outcome"] == "committed"
    ended = max(answer["ended"] for answer in answers)
    if ended > struck + OVER_S:  # the round was not over yet
        trials.after_s.append(ended - struck)
    progress(f"{ended - struck:.2f} s to commit, {answers[0].get('members')} members")
    return answers


def _enter(swarm_: Swarm, node: Node) -> None:
    """A node that is back takes part in a round without data, as any joiner."""
    node.child.ask("attach", run=RUN, elements=ELEMENTS, min_members=SIZE)
    everybody([other.child for other in swarm_.nodes if other is not node], "fill", value=1.0)
    at = time.monotonic() + LEAD_S
    for other in swarm_.nodes:
        new = {"weight": 0.0, "is_new": True} if other is node else {}
        other.child.tell("step", at=at, **new)
    for other in swarm_.nodes:
        other.child.wait(THAW_S)


def _victim(swarm_: Swarm, trial: int, rng: random.Random) -> Node:
    if trial % 2:
        return rng.choice(swarm_.nodes)
    return _proposer(swarm_, swarm_.children[0].ask("hash")["round"])


def _kills(swarm_: Swarm) -> Trials:
    trials = Trials(_normal(swarm_), random.Random(1))
    for trial in range(KILLS):
        victim = _victim(swarm_, trial, trials.rng)
        progress(f"kill {trial + 1} of {KILLS}")
        _strike(swarm_, victim, signal.SIGKILL, trials)
        victim.kill()
        swarm_.restart(victim)
        _enter(swarm_, victim)
    return trials


def _freezes(swarm_: Swarm) -> Trials:
    trials = Trials(_normal(swarm_), random.Random(2))
    for trial in range(FREEZES):
        victim = _victim(swarm_, trial, trials.rng)
        progress(f"freeze {trial + 1} of {FREEZES}")
        try:
            _strike(swarm_, victim, signal.SIGSTOP, trials)
        finally:
            victim.signal(signal.SIGCONT)
        victim.child.wait(THAW_S)  # it learns how the round ended, and loads what it missed
        while len({node.child.ask("hash")["round"] for node in swarm_.nodes}) > 1:
            step([node.child for node in swarm_.nodes])
    return trials


def _report(name: str, trials: Trials, goal_s: float) -> None:
    extra = [after - trials.normal_s for after in trials.after_s]
    report(f"learn.{name}_beyond_a_round", extra, "s", goal=goal_s)
    report(f"learn.{name}_beyond_a_round_worst", [max(extra)] if extra else [], "s", goal=goal_s)
    share = 100 * trials.equal / trials.count
    report(
        *(f"learn.{name}_equal", [share], f"% of {trials.count} trials"),
        better="higher",
        goal=100.0,
    )


def _rival_fault(number: int, folder: Path) -> tuple[float, float]:
    """One fault in a hivemind group: seconds to the last survivor's return, share of equal."""
    with ExitStack() as stack:
        group = stack.enter_context(hivemind(SIZE, ELEMENTS, "float32"))
        rounds = list[tuple[float, float]]()
        for _ in range(NORMAL_ROUNDS):
            answers = step(group)
            rounds.append((seconds(answers), max(a["reduce_s"] for a in answers)))
        normal = min(rounds)
        for value, child in enumerate(group):
            child.ask("fill", seed=0, value=float(value + 1))
        at = time.monotonic() + LEAD_S
        for child in group:
            child.tell("step", at=at)
        time.sleep(max(0.0, at + normal[0] - 0.6 * normal[1] - time.monotonic()))
        group[-1].signal(number)
        struck = time.monotonic()
        answers = [child.wait(RIVAL_WAIT_S) for child in group[:-1]]
        if max(answer["ended"] for answer in answers) < struck + OVER_S:
            raise Failed("the all-reduce was over before the fault")
        progress("; ".join(str(a["failure"] or f"group of {a['group']}") for a in answers))
        beyond = max(answer["ended"] for answer in answers) - struck - normal[0]
        return beyond, _agreement(group[:-1], folder)


def _agreement(group: list[Child], folder: Path) -> float:
    """Percent of elements that all survivors have alike."""
    tensors = list[np.ndarray[tuple[int], np.dtype[np.float32]]]()
    for number, child in enumerate(group):
        child.ask("save", path=str(folder / f"{number}.bin"))
        tensors.append(np.fromfile(folder / f"{number}.bin", np.float32))
    same = np.all([np.abs(one - tensors[0]) < 1e-3 for one in tensors], axis=0)
    return 100 * float(same.mean())


def _rivals(folder: Path) -> None:
    kinds = {"kill": (signal.SIGKILL, RIVAL_KILLS), "freeze": (signal.SIGSTOP, 0 if QUICK else 1)}
    for name, (number, count) in kinds.items():
        beyond, equal, why = list[float](), list[float](), ""
        for _ in range(count):
            progress(f"hivemind: {name}")
            try:
                one = _rival_fault(number, folder)
            except (Missing, Failed) as error:
                why = str(error)
                continue
            beyond.append(one[0])
            equal.append(one[1])
        why = why or ("" if count else "takes a minute: not in the short form")
        report(f"learn.{name}_hivemind_beyond_a_round", beyond, "s", why=why)
        report(f"learn.{name}_hivemind_equal", equal, "% of elements", better="higher", why=why)


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with swarm(Path(folder) / "swarm", SIZE) as four:
            four.attach(RUN, ELEMENTS)
            _report("kill", _kills(four), 1.0)
            _report("freeze", _freezes(four), 3.0)
        _rivals(Path(folder))


if __name__ == "__main__":
    main()
