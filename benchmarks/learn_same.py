"""Every strategy over real daemons against its simulation in one process: the same bits.

`python -m benchmarks.learn_same` prints one JSON object a line. A sample is of two.
"""

import hashlib
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from benchmarks.learn_swarm import Node, swarm
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, progress, report
from shoal.learn.names import STRATEGIES, strategy_named
from shoal.learn.simulate import Simulation
from tests.learning.toys import Classifier

MEMBERS = 4
ROUNDS, EVERY = (2, 8) if QUICK else (6, 10)
OPTIONS: dict[str, dict[str, int]] = {"modest": {"sample": 2}}
TRAIN_S = 180.0


def simulate(name: str, run: str, members: list[str]) -> dict[str, str]:
    """Hash of each member's parameters at the end, all in one process."""
    replicas = {member: Classifier() for member in members}
    make = partial(strategy_named, name, every=EVERY, **OPTIONS.get(name, {}))
    parts = replicas[members[0]].parts
    for _ in Simulation(make, replicas, rounds=ROUNDS, parts=parts, run=run):
        pass
    return {m: hashlib.sha256(r.flat().tobytes()).hexdigest() for m, r in replicas.items()}


def _networked(trainers: list[Child], name: str, run: str) -> dict[str, str]:
    options = {"every": EVERY, **OPTIONS.get(name, {})}
    shape = {"rounds": ROUNDS, "members": MEMBERS, "options": options}
    for trainer in trainers:
        trainer.tell("toy", run=run, strategy=name, **shape)
    answers = [trainer.wait(TRAIN_S) for trainer in trainers]
    return {str(answer["member"]): str(answer["sha256"]) for answer in answers}


def _trainers(stack: ExitStack, nodes: list[Node]) -> list[Child]:
    """Start a trainer at each node."""
    module = ["-m", "benchmarks.learn_trainer"]
    return [
        stack.enter_context(node.python("trainer", [*module, str(node.home)])) for node in nodes
    ]


def main() -> None:
    """Compare all."""
    torch.set_num_threads(1)
    same, others = 0, list[str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        nodes = stack.enter_context(swarm(folder, MEMBERS)).nodes
        trainers = _trainers(stack, nodes)
        for name in STRATEGIES:
            run = f"same-{name}"
            progress(run)
            try:
                found = _networked(trainers, name, run)
            except Failed as error:
                others.append(f"{name}: {error}"[:120])
                trainers = _trainers(stack, nodes)
                continue
            if found == simulate(name, run, sorted(found)):
                same += 1
            else:
                others.append(name)
    report(
        *("learn.same_bits", [100 * same / len(STRATEGIES)], f"% of {len(STRATEGIES)} strategies"),
        better="higher",
        goal=100.0,
        why="; ".join(others),
    )


if __name__ == "__main__":
    main()
