"""Hostile and broken members: what they bring, claim and refuse costs themselves, not the run."""

from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import codecs
from protocols.modelsync.driver import RunFailed
from tests.sim.net import Net
from tests.sim.training import RUN, Swarm, Trainer
from wire.errors import UsageError


async def make_swarm(nursery: trio.Nursery, count: int, **options: Any) -> Swarm:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(count):
        await swarm.add(**{"min_members": count, **options})
    return swarm


def bring(trainer: Trainer, value: float, weight: float) -> None:
    """Submit without the checks that an honest daemon makes."""
    trainer.buffer[:] = value
    trainer.sync._driver(RUN).submit(trainer.round, trainer.roots[trainer.round], weight)


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize(
    ("mine", "others"), [(782962.6875, 0.0), (1e6, 1e-3), (1e-3, 1e6), (0.001953124, 0.0)]
)
async def test_a_mean_of_the_largest_legal_values_is_committed(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str, mine: float, others: float
) -> None:
    swarm = await make_swarm(nursery, 2, codec=codec)
    for trainer, value, weight in zip(swarm.trainers, (9.9e29, 1e29), (mine, others), strict=True):
        await trainer.attach()
        bring(trainer, value, weight)
    for trainer in swarm.trainers:
        outcome = await trainer.sync.outcome(RUN, timeout_s=20)
        assert outcome is not None
        assert outcome.certificate is not None
    assert swarm.trainers[0].buffer.tobytes() == swarm.trainers[1].buffer.tobytes()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("value", [float("nan"), 1.5e30, 3e38])
async def test_who_brings_illegal_values_is_left_out_and_the_others_go_on(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    swarm = await make_swarm(nursery, 3, min_members=2)
    *others, hostile = swarm.trainers
    for trainer in swarm.trainers:
        await trainer.attach()
    hostile_driver = hostile.sync._driver(RUN)
    open_exchange = hostile_driver._open_exchange

    def careless(*details: Any) -> Any:
        exchange = open_exchange(*details)
        zeros = np.zeros_like
        exchange._average = lambda v, _: (codecs.FLOAT32.encode(zeros(v[0])), zeros(v[0]))
        return exchange

    monkeypatch.setattr(hostile_driver, "_open_exchange", careless)
    bring(hostile, value, 1.0)
    async with trio.open_nursery() as rounds:
        for trainer in others:
            rounds.start_soon(trainer.one_round, 1.0)
    for trainer in others:
        certificate = trainer.outcomes[0].certificate
        assert certificate is not None
        assert swarm.peer(2) not in certificate.members
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 5e30])
async def test_our_own_diverged_contribution_is_refused_when_it_is_submitted(
    autojump_clock: MockClock, nursery: trio.Nursery, value: float
) -> None:
    swarm = await make_swarm(nursery, 2)
    for trainer in swarm.trainers:
        await trainer.attach()
    sick, healthy = swarm.trainers
    sick.buffer[:] = value
    with pytest.raises(UsageError, match="not finite or beyond 1e"):
        await sick.one_round(1.0)
    async with trio.open_nursery() as rounds:  # without a say it goes on as the others do
        rounds.start_soon(sick.one_round, 0.0)
        rounds.start_soon(healthy.one_round, 1.0)
    assert sick.roots[1] == healthy.roots[1]
    nursery.cancel_scope.cancel()


async def test_a_trainer_that_spoils_its_buffer_after_submitting_is_told_and_the_others_go_on(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, min_members=2)
    *others, sick = swarm.trainers
    for trainer in swarm.trainers:
        await trainer.attach()
    bring(sick, float("nan"), 1.0)
    with trio.fail_after(60):
        async with trio.open_nursery() as rounds:
            for trainer in others:
                rounds.start_soon(trainer.one_round, 1.0)
    assert [t.round for t in others] == [1, 1]
    nursery.cancel_scope.cancel()


async def test_a_bug_in_one_run_ends_that_run_here_and_nothing_else(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = await make_swarm(nursery, 3)
    await swarm.train(1)
    *others, broken = swarm.trainers

    def fail(now: float) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(broken.sync._driver(RUN).rounds, "tick", fail)
    with pytest.raises(RunFailed, match="a bug"):
        await broken.one_round(1.0)
    assert "a bug" in broken.sync.failure_of(RUN)
    async with trio.open_nursery() as rounds:
        for trainer in others:
            rounds.start_soon(trainer.one_round, 1.0)
    assert [t.round for t in others] == [2, 2]
    nursery.cancel_scope.cancel()
