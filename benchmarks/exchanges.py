"""Times of the data of a round, in processes of their own: `python -m benchmarks.exchanges
[MEMBERS ELEMENTS CODEC [ROUNDS]]` prints one JSON object; `average_s` is for other benchmarks.
"""

import json
import sys
from contextlib import ExitStack

from benchmarks.orders import Answer, Child

DEFAULT = ("4", "10000000", "float32", "6")


def average_s(
    members: int, elements: int, codec: str, *, rounds: int = 6, aggregator: str = "mean"
) -> Answer:
    """Average vectors `rounds` times; the first one also makes the lanes.

    Returns `seconds`: of each round, from the first order to the last mean in place; and of the
    last round `mb_out` of a member, `peak_mb` of memory beyond its contribution, and CPU seconds.
    """
    module = [sys.executable, "-m", "benchmarks.exchange_node"]
    with ExitStack() as stack:
        nodes = [stack.enter_context(Child(f"node {i}", module)) for i in range(members)]
        for index, node in enumerate(nodes):
            addresses = [other.hello["address"] for other in nodes[:index]]
            node.ask("connect", addresses=addresses)
        filled = [node.ask("fill", elements=elements, seed=i) for i, node in enumerate(nodes)]
        peers = sorted(node.hello["peer"] for node in nodes)
        seconds, complete, answers = list[float](), list[float](), list[Answer]()
        for number in range(rounds):
            for node in nodes:
                node.tell(
                    "average", number=number, members=peers, codec=codec, aggregator=aggregator
                )
            answers = [node.wait() for node in nodes]
            assert len({answer["digest"] for answer in answers}) == 1, "the same bits everywhere"
            began = min(answer["began"] for answer in answers)
            seconds.append(max(answer["ended"] for answer in answers) - began)
            complete.append(max(answer["complete"] for answer in answers) - began)
        peak = max(
            answer["peak_mb"] - fill["rss_mb"] for answer, fill in zip(answers, filled, strict=True)
        )
    return {
        "seconds": [round(value, 4) for value in seconds],
        "complete": [round(value, 4) for value in complete],
        "mb_out": answers[0]["bytes_out"] / 1e6,
        "peak_mb": round(peak, 1),
        "tensor_mb": elements * 4 / 1e6,
        "user_s": round(sum(answer["user_s"] for answer in answers), 3),
        "system_s": round(sum(answer["system_s"] for answer in answers), 3),
        "rate_mb_s": round(answers[0]["rate"] / 1e6, 1),
    }


def main() -> None:
    """Measure what the command line says."""
    members, elements, codec, rounds = (sys.argv[1:] + list(DEFAULT[len(sys.argv) - 1 :]))[:4]
    result = average_s(int(members), int(elements), codec, rounds=int(rounds))
    print(json.dumps({"members": members, "elements": elements, "codec": codec, **result}))


if __name__ == "__main__":
    main()
