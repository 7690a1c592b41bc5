"""What a node holds that hosts a third of the blocks, beside a process with the whole model.

`python -m benchmarks.answer_memory` prints one JSON object a line. SmolLM2-135M in float32. The
node is its daemon and its worker process, after they have answered.
"""

import tempfile
from pathlib import Path

from benchmarks import answer_models
from benchmarks.answer_compute import resident_bytes
from benchmarks.answer_decode import PROMPT, WAIT_S, computer, decode, spans_of
from benchmarks.answer_swarm import Serving, serving, workers_of
from benchmarks.report import report

TOKENS = 8
MIB = 1 << 20
GOAL = 0.45


def _held(nodes: Serving) -> tuple[list[float], list[float]]:
    """Return MiB of each worker, and of each daemon with its worker; the middle host's first."""
    workers = [sum(map(resident_bytes, workers_of(node))) / MIB for node in nodes.hosts]
    daemons = [resident_bytes(node.pid) / MIB for node in nodes.hosts]
    return workers, [sum(pair) for pair in zip(workers, daemons, strict=True)]


def main() -> None:
    """Measure it."""
    model = answer_models.smollm2()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with serving(Path(folder), model, spans_of(3)) as nodes:
            nodes.ask(PROMPT, TOKENS)
            workers, hosts = _held(nodes)
            ids = nodes.token_ids(PROMPT)
        with computer("whole", model) as whole:
            whole.ask("whole", timeout_s=WAIT_S)
            decode(whole, "whole", ids, TOKENS)
            held = whole.ask("memory")["resident_bytes"] / MIB
    middle = workers[1]  # neither the token embedding nor the head, which this model shares
    for name, value in (
        ("answer.memory_third", middle),
        ("answer.memory_third_with_daemon", hosts[1]),
        ("answer.memory_first_third", workers[0]),
        ("answer.memory_last_third", workers[2]),
    ):
        report(
            name,
            [value],
            "MiB",
            against="unsharded process",
            against_values=[held],
            goal_ratio=GOAL if name == "answer.memory_third" else None,
        )


if __name__ == "__main__":
    main()
