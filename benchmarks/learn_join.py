"""A joiner: what it adds to the others' rounds, and how long until it takes part.

`python -m benchmarks.learn_join` prints one JSON object a line. Three daemons average in rounds of
fixed pace while a fourth loads the state and enters. Donors and corrupted chunks: learn_state.py.
"""

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.learn_swarm import swarm
from benchmarks.orders import Answer, Child
from benchmarks.report import QUICK, progress, report

ELEMENTS, STATE = 1_000_000, 5_000_000  # of a contribution, and of the state that is loaded
ROUNDS = 15 if QUICK else 40  # of each kind
PAUSE_S = 0.2  # the others' own work between two rounds: a stall shows beside it
WAIT_S = 300.0
TRIES = 10  # of the joiner to take part: rounds go on while it loads


def _rounds(ends: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(ends)]


def main() -> None:
    """Measure rounds before, during and after."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        swarm(Path(folder), 4) as four,
    ):
        *members, joiner = four.nodes
        shape = {"run": "join", "elements": ELEMENTS, "state": STATE}
        for node in members:
            node.child.tell("attach", min_members=3, **shape)
        for node in members:
            node.child.wait(WAIT_S)
        progress("rounds without a joiner")
        alone = _train(four.children[:3], ROUNDS)
        progress("rounds while one joins")
        for child in four.children[:3]:
            child.tell("steps", count=ROUNDS, pause_s=PAUSE_S)
        joined: Answer = joiner.child.ask("attach", min_members=1, timeout_s=WAIT_S, **shape)
        tries = [_enter(joiner.child)]
        while tries[-1]["outcome"] != "committed" and len(tries) < TRIES:
            tries.append(_enter(joiner.child))
        joiner.child.ask("leave")
        beside = [_rounds(child.wait(WAIT_S)["ends"]) for child in four.children[:3]]
    during = [max(each) for each in zip(*beside, strict=True)]
    report(
        *("learn.joiner_stall", during, "s a round"),
        against="the same rounds without a joiner",
        against_values=alone,
        goal_ratio=1.05,
    )
    worst = max(during) - statistics.median(alone)
    report("learn.joiner_worst_stall", [worst], "s")
    report("learn.joiner_load", [joined["seconds"]], "s")
    is_in = tries[-1]["outcome"] == "committed"
    why = "" if is_in else f"behind {len(tries)} times: rounds went on meanwhile"
    entered = [sum(one["seconds"] for one in tries)] if is_in else []
    report("learn.joiner_enters", entered, "s", why=why)


def _enter(child: Child) -> Answer:
    """Take part in a round without data; if it was behind, it then has the newer state."""
    return child.ask("step", weight=0.0, is_new=True, timeout_s=WAIT_S, patience_s=WAIT_S)


def _train(children: list[Child], count: int) -> list[float]:
    for child in children:
        child.tell("steps", count=count, pause_s=PAUSE_S)
    answers = [_rounds(child.wait(WAIT_S)["ends"]) for child in children]
    return [max(each) for each in zip(*answers, strict=True)]


if __name__ == "__main__":
    main()
