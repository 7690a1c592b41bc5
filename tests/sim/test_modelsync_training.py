"""A small model trained by several trainers equals, bit for bit, the one-process simulation."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio

from shoal.errors import ClientError
from shoal.learn.exact import Vector, nesterov, weighted_mean
from shoal.trainer import Trainer, flatten, load_vector
from tests.sim.run_nodes import RunNodes
from tests.tiny_learner import Learner

ROUNDS, SYNC_EVERY = 3, 4
RATES = {"lr": 0.7, "momentum": 0.5}


def simulate(members: list[str]) -> Vector:
    """The same run in one process, one replica after the other."""
    learners = {member: Learner() for member in members}
    phi = flatten(Learner().model)
    momentum = np.zeros_like(phi)
    for round_ in range(ROUNDS):
        deltas = []
        for member, learner in learners.items():
            load_vector(learner.model, phi)
            for step in range(round_ * SYNC_EVERY, (round_ + 1) * SYNC_EVERY):
                learner.step(member, step)
            deltas.append(np.subtract(phi, flatten(learner.model)))
        mean = weighted_mean(deltas, [1.0] * len(deltas))
        phi, momentum = nesterov(phi, momentum, mean, **RATES)
    return phi


def train(
    learner: Learner, client: object, members: int, wire: str = "float32"
) -> tuple[Vector, str]:
    with Trainer(
        learner.model,
        run="tiny",
        rounds=ROUNDS,
        every=SYNC_EVERY,
        wire=wire,
        min_members=members,
        client=client,
    ) as trainer:
        while not trainer.done:
            trainer.step(learner.step(trainer.member, trainer.global_step))
        return flatten(learner.model), trainer.root


async def in_threads(work: list[Callable[[], tuple[Vector, str]]]) -> list[tuple[Vector, str]]:
    results: list[tuple[Vector, str]] = []

    async def one(job: Callable[[], tuple[Vector, str]]) -> None:
        results.append(await trio.to_thread.run_sync(job))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for job in work:
                nursery.start_soon(one, job)
    return results


@pytest.mark.parametrize("count", [1, 3])
async def test_a_run_over_the_float32_wire_equals_the_simulation_bit_for_bit(
    nursery: trio.Nursery, tmp_path: Path, count: int
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(count)]
    results = await in_threads([partial(train, Learner(), client, count) for client in clients])
    assert len({root for _, root in results}) == 1
    expected = simulate(sorted(nodes.peers))
    for parameters, _ in results:
        assert parameters.tobytes() == expected.tobytes()
    nursery.cancel_scope.cancel()


async def test_over_the_int8_wire_replicas_are_equal_and_close_to_the_simulation(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(3)]
    results = await in_threads([partial(train, Learner(), client, 3, "int8") for client in clients])
    assert len({root for _, root in results}) == 1
    expected = simulate(sorted(nodes.peers))
    assert np.abs(results[0][0] - expected).max() < 0.02
    nursery.cancel_scope.cancel()


async def test_a_finished_run_is_given_to_who_comes_later_from_its_file(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    first, second = await nodes.add(), await nodes.add()
    ((parameters, root),) = await in_threads([partial(train, Learner(), first, 1)])
    assert [path.name for path in sorted((tmp_path / nodes.peers[0] / "tiny").iterdir())] == [
        "certificates.jsonl",
        "checkpoint",
        "contributions.json",
        "metrics.jsonl",
    ]
    ((late, late_root),) = await in_threads([partial(train, Learner(), second, 1)])
    assert late.tobytes() == parameters.tobytes()
    assert late_root == root
    nursery.cancel_scope.cancel()


async def test_a_contribution_that_is_not_finite_stays_at_home(
    nursery: trio.Nursery, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(2)]

    def poisoned(learner: Learner, client: object, *, sick: bool) -> tuple[Vector, str]:
        with Trainer(
            learner.model, run="tiny", rounds=2, every=1, min_members=2, client=client
        ) as trainer:
            while not trainer.done:
                learner.step(trainer.member, trainer.global_step)
                if sick and trainer.round == 0:
                    load_vector(learner.model, np.full_like(flatten(learner.model), np.nan))
                trainer.step()
            return flatten(learner.model), trainer.root

    results = await in_threads(
        [
            partial(poisoned, Learner(), clients[0], sick=True),
            partial(poisoned, Learner(), clients[1], sick=False),
        ]
    )
    assert len({root for _, root in results}) == 1
    assert bool(np.isfinite(results[0][0]).all())
    assert "not finite" in capfd.readouterr().err
    nursery.cancel_scope.cancel()


async def test_a_model_that_changed_its_shape_is_an_error_that_says_so(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()

    def grow() -> tuple[Vector, str]:
        learner = Learner()
        with Trainer(learner.model, run="tiny", rounds=2, every=1, client=client) as trainer:
            learner.model.append(torch.nn.Linear(1, 1))
            trainer.step()
        return flatten(learner.model), ""

    with pytest.raises(ClientError, match="trainable parameters"):
        await trio.to_thread.run_sync(grow)
    assert nodes.runs[0].view("tiny").state == "stopped"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("other", [{"lr": 0.8}, {"momentum": 0.4}, {"every": 2}])
async def test_a_trainer_with_another_outer_step_is_refused_and_told_why(
    nursery: trio.Nursery, tmp_path: Path, other: dict[str, Any]
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(2)]
    options: dict[str, Any] = {"run": "tiny", "rounds": 9, "every": 1}

    def both() -> None:
        with (
            Trainer(Learner().model, client=clients[0], **options),
            Trainer(Learner().model, client=clients[1], **options | other),
        ):
            raise AssertionError("they would never agree")

    with pytest.raises(ClientError, match=next(iter(other))):
        await trio.to_thread.run_sync(both)
    refused = nodes.runs[1].view("tiny")
    assert refused.state == "failed"
    assert next(iter(other)) in refused.error
    nursery.cancel_scope.cancel()


async def test_a_second_trainer_of_the_same_run_is_refused(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()

    def twice() -> None:
        with (
            Trainer(Learner().model, run="tiny", rounds=1, client=client),
            Trainer(Learner().model, run="tiny", rounds=1, client=client),
        ):
            raise AssertionError("two trainers of one run")

    with pytest.raises(ClientError, match="attached already"):
        await trio.to_thread.run_sync(twice)
    nursery.cancel_scope.cancel()


async def test_steps_made_from_a_state_that_the_run_has_left_behind_are_not_counted(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(3)]
    rounds = [threading.Event() for _ in range(3)]

    def one(learner: Learner, client: object, number: int) -> tuple[Vector, str]:
        with Trainer(
            learner.model,
            run="tiny",
            rounds=4,
            every=1,
            min_members=3,
            patience_s=0.0,
            client=client,
        ) as trainer:
            while not trainer.done:
                if number == 2 and trainer.round == 1:
                    assert rounds[0].wait(10)  # the others go on alone in rounds 1 and 2
                    assert rounds[1].wait(10)
                if number < 2 and trainer.round == 3:
                    rounds[number].set()
                    assert rounds[2].wait(10)  # until the slow one is about to hand in its steps
                learner.step(trainer.member, trainer.global_step)
                if number == 2 and trainer.round == 1:
                    rounds[2].set()
                trainer.step()
        return flatten(learner.model), trainer.root

    jobs = [partial(one, Learner(), client, n) for n, client in enumerate(clients)]
    results = await in_threads(jobs)
    assert len({root for _, root in results}) == 1
    certificates = await nodes.runs[0].certificates("tiny")
    assert [len(c.members) for c in certificates[:3]] == [3, 2, 2]
    last = certificates[3]
    slow = nodes.peers[2]
    assert slow not in last.members or last.weights[last.members.index(slow)] == 0.0
    nursery.cancel_scope.cancel()
