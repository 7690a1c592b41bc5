"""Verified runs from end to end in simulation: sealed rounds, duties, verdicts, bans."""

import hashlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import verify
from protocols.modelsync.part import Attachment, LaneShape, RunFailed
from protocols.modelsync.trust import check_verifiable
from protocols.modelsync.vectors import Vector
from protocols.modelsync.wire import Certificate
from tests.sim.net import Net
from tests.sim.training import RUN, Swarm, Trainer
from wire.errors import UsageError

Bring = Callable[[Trainer], Vector]


def honest(trainer: Trainer) -> Vector:
    return trainer.contribution(trainer.round)


def turned_around(trainer: Trainer) -> Vector:
    return np.multiply(honest(trainer), np.float32(-1000))


def beacon_by_round(certificate: Certificate) -> bytes:
    return hashlib.sha256(bytes([certificate.round])).digest()


async def train(swarm: Swarm, trainer: Trainer, rounds: int, bring: Bring) -> None:
    """What shoal.Trainer does in a verified run: duties first, and nothing to bring then."""
    by_peer = {swarm.peer(other.number): other for other in swarm.trainers}
    await trainer.attach()
    while trainer.round < rounds:
        weight, duties = 1.0, trainer.sync.duties(RUN, trainer.lane)
        await trio.sleep(trainer.seconds_a_round)
        for duty in duties:
            made = by_peer[duty.case.target].contribution(duty.case.round)
            trainer.buffer[:] = made
            await trainer.sync.verdict(RUN, duty.case)
            weight = 0.0
        if weight:
            trainer.buffer[:] = bring(trainer)
        await trainer.one_round(weight)


async def run(nursery: trio.Nursery, rounds: int, *, liar: Bring, **options: object) -> Swarm:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(4):
        await swarm.add(min_members=4, is_verified=True, patience_s=4.0, **options)
    attacker, *others = swarm.trainers

    async def lie() -> None:
        with suppress(RunFailed):  # once it is told that it is banned
            await train(swarm, attacker, rounds, liar)

    with trio.fail_after(600):
        async with trio.open_nursery() as lying:
            lying.start_soon(lie)
            async with trio.open_nursery() as training:
                for trainer in others:
                    training.start_soon(train, swarm, trainer, rounds, honest)
            lying.cancel_scope.cancel()
    return swarm


def banned(trainer: Trainer) -> set[str]:
    return {line.peer for line in trainer.sync.contributions(RUN) if line.banned}


@pytest.mark.parametrize(
    ("codec", "aggregator"), [("float32", "clip"), ("int8", "mean"), ("fedzip", "median")]
)
async def test_a_member_that_sends_a_thousand_times_the_opposite_is_banned_within_ten_rounds(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
    aggregator: str,
) -> None:
    monkeypatch.setattr(verify, "beacon_of", beacon_by_round)  # the same luck in every run
    swarm = await run(nursery, 10, liar=turned_around, codec=codec, aggregator=aggregator)
    attacker, *others = swarm.trainers
    for trainer in others:
        assert banned(trainer) == {swarm.peer(attacker.number)}
        last = trainer.outcomes[-1].certificate
        assert last is not None
        assert swarm.peer(attacker.number) not in last.members
    assert banned(attacker) == {swarm.peer(attacker.number)}
    assert "have banned this node" in attacker.sync.failure_of(RUN)
    assert len({trainer.roots[10] for trainer in others}) == 1
    nursery.cancel_scope.cancel()


async def test_honest_members_stay_and_take_turns_in_checking_each_other(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await run(nursery, 8, liar=honest)
    certificates = [o.certificate for o in swarm.trainers[1].outcomes if o.certificate]
    assert all(banned(trainer) == set() for trainer in swarm.trainers)
    assert [len(c.members) for c in certificates] == [4] * 8
    # The validator of each round brought nothing to the next.
    assert [c.weights.count(0.0) for c in certificates] == [0] + [1] * 7
    assert all(c.seals and c.is_signed() for c in certificates)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("odd", [{"sample": 3}, {"replicas_differ": True}, {"sent": np.zeros(8)}])
def test_what_nobody_could_make_anew_is_not_verified(odd: dict[str, object]) -> None:
    shape = (LaneShape(8, 8),)
    exchange = np.zeros(8, np.float32)
    with pytest.raises(UsageError):
        check_verifiable(
            Attachment(RUN, shape, "int8", 9, 1, 1.0, exchange, is_verified=True, **odd)  # type: ignore[arg-type]
        )
    check_verifiable(Attachment(RUN, shape, "int8", 9, 1, 1.0, exchange, **odd))  # type: ignore[arg-type]
