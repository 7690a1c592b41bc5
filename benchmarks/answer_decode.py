"""Decoding one answer: over two daemons, unsharded, and over two processes with plain sockets.

`python -m benchmarks.answer_decode` prints one JSON object a line. SmolLM2-135M, float32, batch 1,
without drafts but where it says so, all in turn in one run; a rate is (tokens - 1) / (time from the
first token to the last).
"""

import itertools
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import answer_models
from benchmarks.answer_swarm import Asked, Serving, serving
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, progress, report

PROMPT = (
    "The history of the steam engine began long before the railways. In the seventeenth century "
    "miners needed pumps that did not depend on horses, and"
)
TOKENS = 24 if QUICK else 64
TURNS = 3 if QUICK else ROUNDS
LAYERS = 30
CUT = LAYERS // 2
WAIT_S = 120.0  # for loading, or for an answer


@contextmanager
def computer(name: str, model: Path) -> Generator[Child]:
    """Start a child that computes without a daemon."""
    argv = ["-m", "benchmarks.answer_compute", str(model), str(answer_models.parts(model))]
    with Child(name, [sys.executable, *argv]) as child:
        yield child


@contextmanager
def pair(model: Path, layers: int) -> Generator[tuple[Child, Child]]:
    """Start two processes with a half of the model each."""
    with computer("first", model) as first, computer("second", model) as second:
        first.tell("load", spans=[(0, layers // 2)])
        second.ask("load", spans=[(layers // 2, layers)], timeout_s=WAIT_S)
        first.wait(WAIT_S)
        yield first, second


def decode_by_pair(ends: tuple[Child, Child], prompt: list[int], tokens: int) -> Asked:
    """Continue a prompt over plain sockets."""
    first, second = ends
    port = second.ask("listen")["port"]
    second.tell("serve")
    first.ask("connect", port=port)
    found = decode(first, "pair", prompt, tokens)
    second.wait()
    return found


def decode(child: Child, how: str, prompt: list[int], tokens: int) -> Asked:
    """Continue a prompt in one process."""
    answer = child.ask("decode", how=how, prompt=prompt, tokens=tokens, timeout_s=WAIT_S)
    return Asked(tokens=answer["tokens"], at=answer["at"])


def _in_turn(nodes: Serving, whole: Child, ends: tuple[Child, Child]) -> dict[str, list[float]]:
    """Return the rates of each system; all of them say the same."""
    names = ("daemons", "drafts", "whole", "pair", "split")
    rates = {name: list[float]() for name in names}
    ids = nodes.token_ids(PROMPT)
    for turn in range(TURNS + 1):
        found = {
            "daemons": nodes.ask(PROMPT, TOKENS, speculate=False),
            "drafts": nodes.ask(PROMPT, TOKENS),
            "whole": decode(whole, "whole", ids, TOKENS),
            "pair": decode_by_pair(ends, ids, TOKENS),
            "split": decode(whole, "split", ids, TOKENS),
        }
        progress(", ".join(f"{name} {one.rate:.1f}" for name, one in found.items()) + " tokens/s")
        texts = {one.text or nodes.text(one.tokens) for one in found.values()}
        if len(texts) != 1:
            raise Failed(f"they do not say the same: {texts}")
        if turn:  # the first one warms up
            for name, one in found.items():
                rates[name].append(one.rate)
    return rates


def _report(rates: dict[str, list[float]]) -> None:
    ours, whole, plain = rates["daemons"], rates["whole"], rates["pair"]
    for name, against, values, goal in (
        ("answer.decode", "two processes, plain sockets", plain, 0.9),
        ("answer.decode_over_whole", "unsharded, one process", whole, 0.8),
    ):
        report(
            name,
            ours,
            "tokens/s",
            better="higher",
            against=against,
            against_values=values,
            goal_ratio=goal,
        )
    report(
        "answer.decode_with_drafts",
        rates["drafts"],
        "tokens/s",
        better="higher",
        against="the same without drafts",
        against_values=ours,
    )
    extra = [1e3 / ours_ - 1e3 / whole_ for ours_, whole_ in zip(ours, whole, strict=True)]
    report("answer.decode_overhead", extra, "ms/token over 2 stages", goal=5.0)
    split = [1e3 / rate for rate in rates["split"]]
    times = [1e3 / rate for rate in whole]
    report(
        "answer.split_in_one_process",
        split,
        "ms/token",
        against="unsharded",
        against_values=times,
        goal_ratio=1.03,
    )


def spans_of(stages: int, layers: int = LAYERS) -> list[tuple[int, int]]:
    """Return so many even spans."""
    edges = [number * layers // stages for number in range(stages + 1)]
    return list(itertools.pairwise(edges))


def main() -> None:
    """Measure all of it."""
    model = answer_models.smollm2()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        computer("whole", model) as whole,
        pair(model, LAYERS) as ends,
    ):
        whole.ask("whole", timeout_s=WAIT_S)
        whole.ask("load", spans=spans_of(2), timeout_s=WAIT_S)
        with serving(Path(folder), model, spans_of(2), entry=False) as nodes:
            _report(_in_turn(nodes, whole, ends))


if __name__ == "__main__":
    main()
