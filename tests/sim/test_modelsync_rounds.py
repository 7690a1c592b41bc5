"""Rounds in simulated swarms: exact means, equal replicas, deaths in every phase, late joiners."""

from collections.abc import Callable

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import wire
from tests.sim.net import Net
from tests.sim.training import ELEMENTS, Swarm


async def make_swarm(nursery: trio.Nursery, count: int, **options: object) -> Swarm:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(count):
        await swarm.add(**{"min_members": count, **options})
    return swarm


@pytest.mark.parametrize("count", [1, 2, 3, 5])
async def test_members_get_the_exact_mean_and_stay_bit_identical(
    autojump_clock: MockClock, nursery: trio.Nursery, count: int
) -> None:
    swarm = await make_swarm(nursery, count)
    await swarm.train(3)
    swarm.check(3)
    for trainer in swarm.trainers:
        for outcome in trainer.outcomes:
            assert outcome.certificate is not None
            assert outcome.certificate.members == sorted(swarm.peer(n) for n in range(count))
            assert outcome.certificate.attempt == 0
    assert swarm.net.errors == []
    nursery.cancel_scope.cancel()


async def test_with_the_int8_wire_replicas_are_bit_identical_and_close_to_the_mean(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, codec="int8")
    await swarm.train(1)
    assert len({t.roots[1] for t in swarm.trainers}) == 1
    mean = sum(t.contribution(0) for t in swarm.trainers) / np.float32(3)
    error = swarm.trainers[0].buffer - mean
    assert float(np.sqrt((error**2).mean())) < 0.02
    moved = swarm.trainers[0].outcomes[0].bytes_out
    assert moved < 1.01 * ELEMENTS * 4 / 3
    nursery.cancel_scope.cancel()


def is_order(kind: type) -> Callable[[object], bool]:
    return lambda message: isinstance(message, wire.Order) and isinstance(message.body, kind)


def is_answer(kind: type) -> Callable[[object], bool]:
    return lambda message: isinstance(message, wire.Answer) and isinstance(message.body, kind)


PHASES = {
    "ready": lambda message: isinstance(message, wire.Ready),
    "prepare": is_order(wire.Prepare),
    "ack": is_answer(wire.Ack),
    "data": lambda message: isinstance(message, wire.Piece),
    "done": is_answer(wire.Done),
    "commit": is_order(wire.Commit),
}


@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_member_killed_in_any_phase_costs_the_others_less_than_ten_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery, phase: str, nth: int
) -> None:
    swarm = await make_swarm(nursery, 4)
    seen = 0

    def kill(number: int, message: object) -> bool:
        nonlocal seen
        if swarm.dead or not PHASES[phase](message) or swarm.trainers[number].round < 1:
            return False
        seen += 1
        if seen <= nth:
            return False
        swarm.kill(number)
        return True

    swarm.on_send = kill
    await swarm.train(4)
    assert len(swarm.alive) == 3
    (died_at,) = swarm.dead.values()
    for trainer in swarm.alive:
        assert trainer.round == 4
        assert trainer.fetched == 0, "nobody had to reload the state"
        assert min(at for at in trainer.committed_at if at > died_at) - died_at < 10
    swarm.check(4)
    nursery.cancel_scope.cancel()
