"""Verified runs of real Trainers: honest ones reproduce each other's bits, a liar is banned."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio

from shoal.errors import ClientError
from shoal.learn.averaging import DiLoCo
from shoal.learn.strategy import Vector
from shoal.trainer import Trainer
from tests.sim.run_nodes import RunNodes
from tests.tiny_learner import Learner

EVERY = 3
STAY_S = 40.0  # seconds at most for those who are done to wait for the others


class Liar(DiLoCo):
    """Sends the opposite of what it has learned, a thousand times as long."""

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        return np.multiply(super().contribution(lane, round_, state, local), np.float32(-1000))


def local_steps(learner: Learner, member: str, round_: int) -> None:
    """All that a member does in a round: a fresh optimizer, its own batches."""
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1e-2)
    for step in range(EVERY):
        learner.step(member, round_ * EVERY + step)


def train(
    learner: Learner,
    client: object,
    rounds: int,
    strategy: DiLoCo,
    patience_s: float = 10.0,
    is_over: threading.Event | None = None,
) -> tuple[str, set[str]]:
    """Train to the end, and stay until it is over; return the root and the members."""
    with Trainer(
        learner.model,
        run="tiny",
        rounds=rounds,
        strategy=strategy,
        aggregator="clip",
        min_members=4,
        patience_s=patience_s,
        recompute=partial(local_steps, learner),
        client=client,  # type: ignore[arg-type]
    ) as trainer:
        while not trainer.done:
            local_steps(learner, trainer.member, trainer.round)
            for _ in range(EVERY):
                trainer.step()
        assert is_over is None or is_over.wait(STAY_S)
        return trainer.root, set(trainer.members)


async def swarm(nursery: trio.Nursery, home: Path) -> tuple[RunNodes, list[Any]]:
    nodes = RunNodes(nursery, home)
    return nodes, [await nodes.add() for _ in range(4)]


async def test_honest_trainers_find_each_other_honest(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes, clients = await swarm(nursery, tmp_path)
    ends: list[tuple[str, set[str]]] = []

    async def one(client: object, learner: Learner) -> None:
        job = partial(train, learner, client, 6, DiLoCo(every=EVERY))
        ends.append(await trio.to_thread.run_sync(job))

    with trio.fail_after(40):
        async with trio.open_nursery() as training:
            for client in clients:
                training.start_soon(one, client, Learner())
    assert len({root for root, _ in ends}) == 1
    assert {frozenset(members) for _, members in ends} == {frozenset(nodes.peers)}
    certificates = await nodes.runs[0].certificates("tiny")
    assert sum(c.weights.count(0.0) for c in certificates) >= 4  # validators brought nothing
    assert not [key for _, key in nodes.items if "/trust/" in key]
    nursery.cancel_scope.cancel()


async def test_a_trainer_that_lies_is_banned_and_told_so_and_the_others_finish(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.trainers.ROUND_WAIT_S", 1.0)  # who is banned waits in vain
    nodes, clients = await swarm(nursery, tmp_path)
    ends: list[tuple[str, set[str]]] = []
    is_told = threading.Event()  # while others are there it cannot go on alone

    async def one(client: object, learner: Learner) -> None:
        job = partial(train, learner, client, 12, DiLoCo(every=EVERY), 1.0, is_told)
        ends.append(await trio.to_thread.run_sync(job))

    async def lie() -> None:  # it would have more rounds: who is fast may load the others' last
        job = partial(train, Learner(), clients[3], 1000, Liar(every=EVERY))
        try:
            with pytest.raises(ClientError, match="have banned this node"):
                await trio.to_thread.run_sync(job)
        finally:
            is_told.set()

    with trio.fail_after(50):
        async with trio.open_nursery() as training:
            training.start_soon(lie)
            for client in clients[:3]:
                training.start_soon(one, client, Learner())
    assert len({root for root, _ in ends}) == 1
    for _, members in ends:
        assert members == set(nodes.peers[:3])
    records = [key.split("/")[3] for _, key in nodes.items if "/trust/ban/" in key]
    assert set(records) == {nodes.peers[3]}
    nursery.cancel_scope.cancel()


def test_what_cannot_be_verified_is_refused_before_the_daemon_is_asked() -> None:
    with pytest.raises(ClientError, match="cannot be verified"):
        Trainer(
            Learner().model,
            run="tiny",
            rounds=2,
            strategy="diloco",
            wire="topk",
            recompute=lambda member, round_: None,
            client=object(),  # type: ignore[arg-type]
        )
