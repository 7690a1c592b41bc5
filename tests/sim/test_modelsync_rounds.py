"""Rounds in simulated swarms: exact means, equal replicas, deaths in every phase, late joiners."""

from collections.abc import Callable

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import wire
from tests.sim.net import Net
from tests.sim.training import ELEMENTS, Swarm
from wire.errors import UsageError

ROUND_S = 0.2  # a round in these swarms, without the time that trainers compute


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
    "go": is_order(wire.Go),
    "data": lambda message: isinstance(message, wire.Piece),
    "done": is_answer(wire.Done),
    "commit": is_order(wire.Commit),
}


@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_member_killed_in_any_phase_costs_the_others_a_second_and_a_round(
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
        late = min(at for at in trainer.committed_at if at > died_at) - died_at
        assert late < 1.0 + ROUND_S
    swarm.check(4)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("phase", "is_proposer"),
    [
        ("ready", False),
        ("prepare", True),
        ("ack", False),
        ("go", True),
        ("data", False),
        ("data", True),
        ("done", False),
        ("commit", True),
    ],
)
async def test_who_freezes_costs_the_others_three_seconds_and_a_round(
    autojump_clock: MockClock, nursery: trio.Nursery, phase: str, is_proposer: bool
) -> None:
    swarm = await make_swarm(nursery, 4)
    frozen: list[int] = []
    leads: list[int] = []

    def freeze(number: int, message: object) -> bool:
        if PHASES["prepare"](message):
            leads.append(number)
        if number in frozen:
            return True
        if frozen or not PHASES[phase](message) or swarm.trainers[number].round != 1:
            return False
        if phase != "ready" and (number == leads[-1]) != is_proposer:
            return False
        frozen.append(number)
        swarm.dead[number] = trio.current_time()
        swarm.ends[number].set()
        for other in range(4):
            if other != number:
                swarm.net.cut(swarm.peer(number), swarm.peer(other), silent=True)
        return True

    swarm.on_send = freeze
    with trio.move_on_after(60):
        await swarm.train(3)
    (frozen_at,) = swarm.dead.values()
    for trainer in swarm.alive:
        assert trainer.fetched == 0
        late = min(at for at in trainer.committed_at if at > frozen_at) - frozen_at
        assert late < 3.0 + ROUND_S
    swarm.check(3)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("phase", ["ack", "done"])
async def test_a_member_that_never_answers_the_proposer_is_left_out(
    autojump_clock: MockClock, nursery: trio.Nursery, phase: str
) -> None:
    swarm = await make_swarm(nursery, 4)
    mute: set[int] = set()

    def swallow(number: int, message: object) -> bool:
        if PHASES[phase](message) and swarm.trainers[number].round == 1 and not mute:
            mute.add(number)
        return PHASES[phase](message) and number in mute

    swarm.on_send = swallow
    with trio.move_on_after(60):
        await swarm.train(3)
    assert len(mute) == 1
    healthy = [t for t in swarm.trainers if t.number not in mute]
    assert [t.round for t in healthy] == [3, 3, 3]
    assert len({t.roots[3] for t in healthy}) == 1
    nursery.cancel_scope.cancel()


async def test_a_commit_that_reached_one_member_only_is_not_made_anew_by_the_others(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 5, patience_s=0.0)
    told: list[object] = []

    def kill(number: int, message: object) -> bool:
        if swarm.dead or not PHASES["commit"](message) or swarm.trainers[number].round != 1:
            return False
        told.append(message)
        if len(told) == 1:
            return False
        swarm.kill(number)
        return True

    swarm.on_send = kill
    await swarm.train(4)
    assert len(swarm.alive) == 4
    assert [t.fetched for t in swarm.alive] == [0, 0, 0, 0]
    swarm.check(4)
    nursery.cancel_scope.cancel()


async def test_a_state_that_does_not_match_its_hash_is_taken_from_another_donor(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3)
    await swarm.train(2)
    good = swarm.trainers[1].roots[2]
    for broken in (swarm.trainers[0], swarm.trainers[2]):
        broken.states[0][5] += 1  # after it was announced
    joiner = await swarm.add()
    await joiner.attach()
    assert joiner.round == 2
    assert joiner.roots[2] == good
    nursery.cancel_scope.cancel()


async def test_who_is_behind_waits_for_a_state_that_is_new_enough(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, seconds_a_round=5.0, patience_s=0.5)
    await swarm.train(2)
    one, two, other = swarm.trainers
    async with trio.open_nursery() as waiting:
        waiting.start_soon(one.go_on, 3)
        waiting.start_soon(two.go_on, 3)
        started = trio.current_time()
        fetched = await other.sync.fetch("test", 0, other.states[1], at_least=3)
    assert fetched.round == 3
    assert trio.current_time() - started >= 5
    nursery.cancel_scope.cancel()


async def test_a_late_joiner_enters_the_next_round_without_stalling_the_others(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, seconds_a_round=10.0)

    async def join_late() -> None:
        await trio.sleep(34)  # in the middle of round 3
        joiner = await swarm.add(seconds_a_round=10.0)
        await joiner.train(6)

    async with trio.open_nursery() as training:
        training.start_soon(join_late)
        await swarm.train(6)
    joiner = swarm.trainers[3]
    assert joiner.fetched == 1
    first = joiner.outcomes[0].certificate
    assert first is not None
    assert first.round == 3
    assert first.weights[first.members.index(swarm.peer(3))] == 0.0
    assert len(joiner.outcomes) == 3
    for earlier, later in zip(
        swarm.trainers[0].committed_at, swarm.trainers[0].committed_at[1:], strict=False
    ):
        assert later - earlier < 10.5
    swarm.check(6)
    nursery.cancel_scope.cancel()


async def test_a_killed_member_that_returns_is_exact_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4, seconds_a_round=5.0)

    async def kill_and_return() -> None:
        await trio.sleep(12)
        swarm.kill(3)
        await trio.sleep(6)
        returned = await swarm.restart(3, seconds_a_round=5.0)
        await returned.train(8)

    async with trio.open_nursery() as training:
        training.start_soon(kill_and_return)
        await swarm.train(8)
    returned = swarm.trainers[3]
    assert returned.fetched >= 1
    assert returned.roots[8] == swarm.trainers[0].roots[8]
    swarm.check(8)
    nursery.cancel_scope.cancel()


async def test_members_that_begin_with_different_parameters_agree_in_the_first_round(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3)
    for trainer in swarm.trainers:
        trainer.states[0][:] = trainer.number
    await swarm.train(2)
    assert sorted(t.fetched for t in swarm.trainers) == [0, 1, 1]
    assert len({t.roots[2] for t in swarm.trainers}) == 1
    nursery.cancel_scope.cancel()


async def test_a_slow_member_is_waited_for_only_as_long_as_patience_says(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, patience_s=5.0)
    swarm.trainers[2].seconds_a_round = 30.0
    started = trio.current_time()
    with trio.move_on_after(60):
        await swarm.train(50, within_s=100)
    first, second, *_ = swarm.trainers[0].committed_at
    assert first - started == pytest.approx(30.0, abs=1)  # min_members: the first needs all
    assert second - first == pytest.approx(1.0 + 5.0, abs=1)
    assert swarm.trainers[0].round >= 20, "not waited for again until it says that it is ready"
    nursery.cancel_scope.cancel()


async def test_half_of_the_members_may_not_go_on_alone(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4)

    async def split() -> None:
        await trio.sleep(2.5)
        for one in (0, 1):
            for other in (2, 3):
                swarm.net.cut(swarm.peer(one), swarm.peer(other))
        await trio.sleep(60)
        assert {t.round for t in swarm.trainers} <= {2, 3}
        swarm.net.heal()

    async with trio.open_nursery() as training:
        training.start_soon(split)
        await swarm.train(5)
    swarm.check(5)
    nursery.cancel_scope.cancel()


async def test_a_member_that_leaves_is_no_longer_needed_for_a_quorum(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 2)
    await swarm.train(2)
    leaver, stays = swarm.trainers
    await leaver.sync.leave("test")
    with trio.fail_after(30):
        await stays.go_on(4)
    assert stays.round == 4
    nursery.cancel_scope.cancel()


async def test_a_member_with_other_settings_is_told_so(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 1)
    await swarm.train(1)
    other = await swarm.add(codec="int8")
    with pytest.raises(UsageError, match="parameters"):
        await other.attach()
    nursery.cancel_scope.cancel()


async def test_one_of_two_broken_links_costs_one_member_not_the_round(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 5)

    async def cut() -> None:
        await trio.sleep(2.5)
        swarm.net.cut(swarm.peer(0), swarm.peer(1))

    with trio.move_on_after(60):
        async with trio.open_nursery() as training:
            training.start_soon(cut)
            await swarm.train(30, within_s=100)
    assert sum(t.round >= 6 for t in swarm.trainers) >= 3
    nursery.cancel_scope.cancel()
