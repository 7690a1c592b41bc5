"""Eight answers at once over two daemons, beside one alone: all tokens a second.

`python -m benchmarks.answer_batch` prints one JSON object a line. SmolLM2-135M on loopback.
"""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import answer_models
from benchmarks.answer_decode import spans_of
from benchmarks.answer_kill import SUBJECTS
from benchmarks.answer_swarm import Asked, Serving, serving
from benchmarks.report import QUICK, progress, report

SESSIONS = 8
TURNS = 2 if QUICK else 5
TOKENS = 24 if QUICK else 64
GOAL = 2.5  # times one alone


def _prompt(number: int, turn: int) -> str:
    """Return another prompt each time, all of some length: no prefix is there already."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    return f"Lesson {10 * turn + number}. Today we learn about {subject}: what it is, and why"


def _together(nodes: Serving, turn: int) -> float:
    """Ask eight questions at once; return the tokens a second of all, while all were running."""
    with ThreadPoolExecutor(SESSIONS) as pool:
        prompts = [_prompt(number, turn) for number in range(SESSIONS)]
        running = [pool.submit(nodes.ask, prompt, TOKENS) for prompt in prompts]
        return _rate([one.result() for one in running])


def _rate(answers: list[Asked]) -> float:
    """Count what came after the last one began and before the first one ended."""
    began = max(answer.at[0] for answer in answers)
    ended = min(answer.at[-1] for answer in answers)
    came = sum(began < at <= ended for answer in answers for at in answer.at)
    return came / (ended - began)


def main() -> None:
    """Measure it."""
    model = answer_models.smollm2()
    alone, all_ = list[float](), list[float]()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        serving(Path(folder), model, spans_of(2), entry=False) as nodes,
    ):
        for turn in range(TURNS + 1):
            one = nodes.ask(_prompt(9, turn), TOKENS).rate
            began = time.monotonic()
            together = _together(nodes, turn)
            progress(
                f"alone {one:.1f}, together {together:.1f} tokens/s"
                f" ({time.monotonic() - began:.1f} s)"
            )
            if turn:  # the first one warms up
                alone.append(one)
                all_.append(together)
    report(
        "answer.batch_8_sessions",
        all_,
        "tokens/s together",
        better="higher",
        against="one alone",
        against_values=alone,
        goal_ratio=GOAL,
    )
    progress(f"each of the {SESSIONS}: {statistics.median(all_) / SESSIONS:.1f} tokens/s")


if __name__ == "__main__":
    main()
