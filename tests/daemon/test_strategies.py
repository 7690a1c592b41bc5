"""Every strategy over real daemons ends with the bits that one process computes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open

from shoal.learn.exact import state_root
from shoal.learn.names import STRATEGIES, strategy_named
from shoal.learn.simulate import Simulation
from shoal.pytorch.staging import Staging
from shoal.runs import (
    CertificateView,
    certificates_of,
    contributions_of,
    export_run,
    metrics_of,
    run_root,
)
from shoal.trainer import Trainer
from tests.daemon.processes import Daemon, daemons
from tests.tiny_learner import Learner

PATIENCE_S = 60.0  # seconds; three daemons share two cores with other tests
ROUNDS, EVERY = 3, 3
OPTIONS: dict[str, dict[str, Any]] = {
    "streaming": {"fragments": 3, "delay": 2},
    "modest": {"sample": 2},
    "dilocox": {"rank": 2, "feedback": 0.0},
    "dsgd": {"every": 1},
    "dadam": {"every": 2, "graph": "ring"},
}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("strategies")
    with daemons(folder, "ash", "birch", "cedar") as three:
        three[0].start()
        ticket = three[0].client.ticket()
        for node in three[1:]:
            node.start("--join", ticket)
        for node in three:
            node.client.wait(peers=2, timeout_s=PATIENCE_S)
        yield three


def options_for(name: str) -> dict[str, Any]:
    return {"every": EVERY, **OPTIONS.get(name, {})}


def train(node: Daemon, learner: Learner, name: str, run: str = "all") -> tuple[bytes, str]:
    """Train in this process, over a daemon: what the model ends with, and the run's root."""
    with Trainer(
        learner.model,
        learner.optimizer,
        run=f"{run}-{name}",
        rounds=ROUNDS,
        strategy=name,
        wire="float32",
        min_members=3,
        client=node.client,
        **options_for(name),
    ) as trainer:
        while not trainer.done:
            trainer.step(learner.step(trainer.member, trainer.global_step))
        return learner.flat().tobytes(), trainer.root


def simulate(name: str, members: list[str], run: str) -> dict[str, tuple[bytes, str]]:
    """Do the same in one process: parameters and root of each member."""
    learners = {member: Learner() for member in members}
    parts = Staging(learners[members[0]].model).parts
    simulation = Simulation(
        lambda: strategy_named(name, **options_for(name)),
        learners,
        rounds=ROUNDS,
        parts=parts,
        run=f"{run}-{name}",
    )
    assert len(list(simulation)) == ROUNDS * len(next(iter(simulation.states.values())))
    return {
        member: (
            learners[member].flat().tobytes(),
            run_root([state_root(np.ascontiguousarray(state)).hex() for state in states]),
        )
        for member, states in simulation.states.items()
    }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_over_three_daemons_equals_its_simulation(
    swarm: list[Daemon], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    peers, run, ends = [node.client.id().peer for node in swarm], "", list[tuple[bytes, str]]()
    for run in ("all", "again", "once-more"):
        learners = [Learner() for _ in swarm]
        with ThreadPoolExecutor(len(swarm)) as threads:
            pairs = zip(swarm, learners, strict=True)
            jobs = [threads.submit(train, *pair, name, run) for pair in pairs]
            ends = [job.result(PATIENCE_S) for job in jobs]
        # Who misses an end (two may propose at once on a busy machine) takes over another's state,
        # which is not what it would have had where replicas differ.
        if "behind" not in capsys.readouterr().err:
            break
    expected = simulate(name, sorted(peers), run)
    for peer, end in zip(peers, ends, strict=True):
        assert end == expected[peer]
    if not STRATEGIES[name].replicas_differ:
        assert len({root for _, root in ends}) == 1


def test_what_a_run_leaves_behind_is_on_record(swarm: list[Daemon]) -> None:
    learners = [Learner() for _ in swarm]
    with ThreadPoolExecutor(len(swarm)) as threads:
        pairs = zip(swarm, learners, strict=True)
        for job in [threads.submit(train, *pair, "localsgd", "record") for pair in pairs]:
            job.result(PATIENCE_S)
    client, run = swarm[0].client, "record-localsgd"
    peers = {node.client.id().peer for node in swarm}
    assert [c.round for c in certificates_of(client, run)] == list(range(ROUNDS))
    assert metrics_of(client, run)[-1].round == ROUNDS
    lines = (swarm[0].home / "runs" / run / "certificates.jsonl").read_bytes().splitlines()
    found = [msgspec.json.decode(line, type=CertificateView) for line in lines]
    assert [(c.round, set(c.contributors)) for c in found] == [(n, peers) for n in range(ROUNDS)]
    contributions = {c.peer: c for c in contributions_of(client, run)}
    assert set(contributions) == peers
    assert {(c.rounds, c.weight) for c in contributions.values()} == {(ROUNDS, float(ROUNDS))}
    done = export_run(client, run, str(swarm[0].home / "model.safetensors"))
    assert (done.rounds, done.tensors) == ([ROUNDS], 4)
    with safe_open(done.path, "np") as file:
        flat = np.concatenate([file.get_tensor(part.name).reshape(-1) for part in
                               Staging(learners[0].model).parts])  # fmt: skip
    assert flat.tobytes() == learners[0].flat().tobytes()
