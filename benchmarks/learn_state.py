"""A state from three donors and from one, where the donors' links are the limit; a spoilt chunk;
and what a joiner costs those who train.

`python -m benchmarks.learn_state` prints one JSON object a line. QUICK=1 moves half.
"""

import re
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from benchmarks.learn_swarm import Node, Swarm, swarm
from benchmarks.orders import Answer, Child, Failed
from benchmarks.report import QUICK, ROUNDS, progress, report

MEMBERS = 3
RATE_MB_S = 5.0  # of each donor's link, 40 Mbit/s: far below what a busy processor encrypts
RUN = "joined"
JOIN_ELEMENTS = 4_000_000  # of contributions and of states: 16 MB
JOIN_ROUNDS = 8
LEARN_S = 1.0  # seconds that a trainer learns between two rounds
ELEMENTS = 4_000_000 if QUICK else 8_000_000


def _behind_a_line(stack: ExitStack, node: Child) -> str:
    """Put a node behind a line of limited rate; return its address there."""
    address = str(node.hello["address"])
    port = re.search(r"/tcp/(\d+)", address)
    assert port is not None, address
    argv = [sys.executable, "-m", "benchmarks.rate_line", port[1], str(RATE_MB_S)]
    line = stack.enter_context(Child("rate line", argv))
    return address.replace(port[0], f"/tcp/{line.hello['port']}")


def _load(joiner: Child, root: str, donors: int) -> Answer:
    answer = joiner.ask("load", elements=ELEMENTS, donors=donors, root=root)
    if answer["root"] != root:
        raise Failed(f"a state from {donors} donors is not the one that they hold")
    return answer


def _round_seconds(members: list[Node], late: Node | None) -> list[float]:
    """Let members make rounds, and one with an empty disk join meanwhile, if there is one.

    Returns the seconds of each round at the slowest member.
    """
    for node in members:
        node.child.tell("steps", count=JOIN_ROUNDS, pause_s=LEARN_S)
    if late is not None:
        answer = late.child.ask("attach", run=RUN, elements=JOIN_ELEMENTS, state=JOIN_ELEMENTS)
        if answer["source"] != "peers":
            raise Failed(f"the joiner has its state from {answer['source']}")
        late.child.ask("step", weight=0.0, is_new=True)  # as any joiner: none waits in vain
        late.child.ask("leave")
        shutil.rmtree(late.home / "runs" / RUN)
    ends = [node.child.wait(120.0)["ends"] for node in members]
    slowest = [max(moments) for moments in zip(*ends, strict=True)]
    return [end - begin for begin, end in pairwise(slowest)]


def _joiner(made: Swarm) -> None:
    *members, late = made.nodes
    for node in members:
        node.child.tell(
            "attach", run=RUN, elements=JOIN_ELEMENTS, state=JOIN_ELEMENTS, min_members=MEMBERS
        )
    for node in members:
        node.child.wait()
    _round_seconds(members, None)  # opens connections
    alone, beside = list[float](), list[float]()
    for number in range(1 if QUICK else 3):
        progress(f"rounds of {MEMBERS} members, alone and while one joins, {number + 1}")
        alone += _round_seconds(members, None)
        beside += _round_seconds(members, late)
    report(
        *("learn.state_joiner_round", [statistics.mean(beside)], "s"),
        against="the same rounds without a joiner",
        against_values=[statistics.mean(alone)],
        goal_ratio=1.05,
    )


def _donors() -> None:
    module = [sys.executable, "-m", "benchmarks.learn_state_node"]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(Child(f"member {number}", [*module, str(number)]))
            for number in range(MEMBERS + 1)
        ]
        *members, joiner = nodes
        roots = [m.ask("hold", elements=ELEMENTS, members=MEMBERS)["root"] for m in members]
        joiner.ask("connect", addresses=[_behind_a_line(stack, member) for member in members])
        _load(joiner, roots[0], MEMBERS)  # makes the donors' copies, opens windows
        one, three, mb = list[float](), list[float](), 4 * ELEMENTS / 1e6
        for number in range(2 if QUICK else ROUNDS):
            progress(f"{mb:.0f} MB from one donor and from three, {number + 1}")
            one.append(mb / _load(joiner, roots[0], 1)["seconds"])
            three.append(mb / _load(joiner, roots[0], MEMBERS)["seconds"])
        report(
            *("learn.state_three_donors", three, "MB/s"),
            better="higher",
            against=f"one donor behind {RATE_MB_S:g} MB/s",
            against_values=one,
            goal_ratio=1.5,
        )
        members[0].ask("spoil")
        spoilt = _load(joiner, roots[0], MEMBERS)
        report(
            *("learn.state_corrupt_found", [float(spoilt["corrupt"])], "chunks"),
            better="higher",
            goal=1.0,
        )


def main() -> None:
    """Measure all of it."""
    _donors()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        _joiner(stack.enter_context(swarm(folder, MEMBERS + 1)))


if __name__ == "__main__":
    main()
