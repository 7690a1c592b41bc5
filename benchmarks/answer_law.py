"""Decoding over links with delay: beside what N + 1 messages a token must cost, and with drafts.

`python -m benchmarks.answer_law`; needs root (network namespaces, /dev/net/tun). SmolLM2-135M; the
entry and every stage are in network namespaces of their own, each the same delay from all others.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import answer_models
from benchmarks.answer_decode import PROMPT, WAIT_S, computer, decode, spans_of
from benchmarks.answer_swarm import Serving, serving
from benchmarks.delay_line import star
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, progress, report

STAGES = (2, 3)
DELAYS_MS = (20,) if QUICK else (5, 10, 20)
DRAFT_DELAY_MS = 20
TURNS = 2 if QUICK else 3
TOKENS = 24 if QUICK else 48
SHARE = 0.9  # of the law
FASTER = 1.5  # than the law, with drafts
REPETITIVE = (
    "The cat sat on the mat. The dog lay on the rug. The bird was in the tree.\n" * 5
    + "The cat sat on the mat. The dog"
)


def law(compute_ms: float, stages: int, delay_ms: float) -> float:
    """Return the tokens a second that N + 1 messages and the computing allow."""
    return 1e3 / (compute_ms + (stages + 1) * delay_ms)


def _one(stages: int, delay_ms: int, whole: Child, folder: Path) -> None:
    model = answer_models.smollm2()
    with (
        star(delay_ms, stages + 1) as namespaces,
        serving(folder, model, spans_of(stages), namespaces=namespaces) as nodes,
    ):
        plain, allowed = _in_turn(nodes, whole, PROMPT, stages, delay_ms, drafts=False)
        report(
            f"answer.law_{stages}_stages_{delay_ms}ms",
            plain,
            "tokens/s",
            better="higher",
            against=f"1 / (compute + {stages + 1} x {delay_ms} ms)",
            against_values=allowed,
            goal_ratio=SHARE,
        )
        if delay_ms == DRAFT_DELAY_MS:
            fast, allowed = _in_turn(nodes, whole, REPETITIVE, stages, delay_ms, drafts=True)
            report(
                f"answer.draft_{stages}_stages_{delay_ms}ms",
                fast,
                "tokens/s",
                better="higher",
                against="0.9 of the law, without drafts",
                against_values=[SHARE * rate for rate in allowed],
                goal_ratio=FASTER,
            )


def _in_turn(
    nodes: Serving, whole: Child, prompt: str, stages: int, delay_ms: float, *, drafts: bool
) -> tuple[list[float], list[float]]:
    """Return our rates, and what the law allows with the time of the unsharded model beside us."""
    rates, allowed = list[float](), list[float]()
    ids = nodes.token_ids(prompt)
    for turn in range(TURNS + 1):
        ours = nodes.ask(prompt, TOKENS, speculate=drafts)
        theirs = decode(whole, "whole", ids, TOKENS)
        if ours.text != nodes.text(theirs.tokens):
            raise Failed("the sharded answer is another one")
        most = law(1e3 / theirs.rate, stages, delay_ms)
        progress(f"{stages} stages, {delay_ms:g} ms: {ours.rate:.2f} of {most:.2f} tokens/s")
        if turn:  # the first one warms up
            rates.append(ours.rate)
            allowed.append(most)
    return rates, allowed


def main(stages: Sequence[int] = STAGES, delays_ms: Sequence[int] = DELAYS_MS) -> None:
    """Measure all; say why not where the delay line cannot be made."""
    model = answer_models.smollm2()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        computer("whole", model) as whole,
    ):
        whole.ask("whole", timeout_s=WAIT_S)
        for count in stages:
            for delay_ms in delays_ms:
                name = f"{count}-{delay_ms}"
                try:
                    _one(count, delay_ms, whole, Path(folder) / name)
                except Failed as error:
                    report(f"answer.law_{count}_stages_{delay_ms}ms", [], "", why=str(error))


if __name__ == "__main__":
    main()
