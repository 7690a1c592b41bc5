"""A state from three donors and from one, where the donors' links are the limit; a spoilt chunk.

`python -m benchmarks.learn_state` prints one JSON object a line. QUICK=1 moves a quarter.
"""

import re
import sys
from contextlib import ExitStack

from benchmarks.orders import Answer, Child, Failed
from benchmarks.report import QUICK, ROUNDS, progress, report

MEMBERS = 3
RATE_MB_S = 15.0  # of each donor's link: far below what a processor encrypts
ELEMENTS = 4_000_000 if QUICK else 16_000_000


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


def main() -> None:
    """Measure all of it."""
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


if __name__ == "__main__":
    main()
