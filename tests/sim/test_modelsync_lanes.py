"""Lanes, wishes, topologies, sealed and sampled rounds in simulated swarms."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import wire
from protocols.modelsync.part import Wish
from tests.sim.net import Net
from tests.sim.training import ELEMENTS, RUN, SharedStore, Swarm
from wire.errors import UsageError
from wire.ids import Signer


async def make_swarm(nursery: trio.Nursery, count: int, **options: Any) -> Swarm:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(count):
        await swarm.add(**{"min_members": count, **options})
    return swarm


async def test_rounds_of_four_lanes_are_in_flight_together_and_exact(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, lanes=4)
    open_lanes: list[set[int]] = [set()]

    def note(number: int, message: object) -> bool:
        if isinstance(message, wire.Order) and isinstance(message.body, wire.Prepare):
            open_lanes[-1].add(message.body.lane)
        elif isinstance(message, wire.Order) and isinstance(message.body, wire.Commit):
            open_lanes.append(open_lanes[-1] - {message.body.certificate.lane})
        return False

    swarm.on_send = note
    await swarm.train(3)
    swarm.check(3)
    assert max(map(len, open_lanes)) > 1, "they do not wait for each other"
    assert len(swarm.trainers[0].sync.certificates(RUN)) == 12
    assert len(swarm.trainers[0].sync.certificates(RUN, 2)) == 3
    nursery.cancel_scope.cancel()


async def test_a_death_leaves_every_lane_exact(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4, lanes=4)
    seen = 0

    def kill(number: int, message: object) -> bool:
        nonlocal seen
        trainer = swarm.trainers[number]
        is_done = isinstance(message, wire.Answer) and isinstance(message.body, wire.Done)
        if swarm.dead or not is_done or min(t.round for t in [trainer, *trainer.siblings]) < 1:
            return False
        seen += 1
        if seen < 3:  # some lanes are done, some not
            return False
        swarm.kill(number)
        return True

    swarm.on_send = kill
    await swarm.train(4)
    assert len(swarm.alive) == 3
    swarm.check(4)
    nursery.cancel_scope.cancel()


async def test_in_an_auto_run_the_most_compact_wish_and_the_longest_pause_count(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, codec="auto")
    wishes = [Wish("float32", 25), Wish("int8", 10), Wish("bfloat16", 0)]
    for trainer, wish in zip(swarm.trainers, wishes, strict=True):
        trainer.wish = wish
    await swarm.train(1)
    for trainer in swarm.trainers:
        certificate = trainer.outcomes[0].certificate
        assert certificate is not None
        assert (certificate.codec, certificate.every) == ("int8", 25)
    assert len({t.roots[1] for t in swarm.trainers}) == 1
    nursery.cancel_scope.cancel()


async def test_in_a_run_with_a_codec_wishes_for_others_do_not_count(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 2, codec="float32", wish=Wish("topk", 3))
    await swarm.train(1)
    certificate = swarm.trainers[0].outcomes[0].certificate
    assert certificate is not None
    assert (certificate.codec, certificate.every) == ("float32", 0)
    nursery.cancel_scope.cancel()


async def test_a_round_moves_as_much_as_is_brought_to_it(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    sent = [np.zeros(ELEMENTS, np.float32) for _ in range(3)]
    swarm = Swarm(Net(nursery), nursery)
    for buffer in sent:
        await swarm.add(min_members=3, sizes=(ELEMENTS, ELEMENTS // 5), sent=buffer)
    await swarm.train(4)
    swarm.check(4)
    for trainer, buffer in zip(swarm.trainers, sent, strict=True):
        moved = [outcome.bytes_out for outcome in trainer.outcomes]
        assert moved[3] < moved[2] / 4
        assert np.array_equal(buffer[: ELEMENTS // 5], trainer.contribution(3)[: ELEMENTS // 5])
    with pytest.raises(UsageError, match="elements"):
        await swarm.trainers[0].sync.submit(RUN, 0, 4, bytes(32), 1.0, elements=ELEMENTS + 1)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("topology", ["ring", "exponential", "complete", "pairs"])
async def test_a_mix_is_sealed_and_its_members_may_differ(
    autojump_clock: MockClock, nursery: trio.Nursery, topology: str
) -> None:
    swarm = await make_swarm(nursery, 4, topology=topology, replicas_differ=True)
    await swarm.train(3)
    for trainer in swarm.trainers:
        assert trainer.fetched == 0
        for outcome in trainer.outcomes:
            certificate = outcome.certificate
            assert certificate is not None
            assert certificate.topology == topology
            assert len(certificate.commitments) == len(certificate.seals) == 4
            assert certificate.is_signed()
    nursery.cancel_scope.cancel()


async def test_a_death_in_a_mix_costs_the_others_a_second_and_a_round(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4, topology="ring", replicas_differ=True)

    def kill(number: int, message: object) -> bool:
        is_done = isinstance(message, wire.Answer) and isinstance(message.body, wire.Done)
        if swarm.dead or not is_done or swarm.trainers[number].round != 1:
            return False
        swarm.kill(number)
        return True

    swarm.on_send = kill
    await swarm.train(3)
    (died_at,) = swarm.dead.values()
    for trainer in swarm.alive:
        assert min(at for at in trainer.committed_at if at > died_at) - died_at < 1.2
    nursery.cancel_scope.cancel()


async def test_a_verified_round_has_commitments_seals_and_what_opens_them(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, is_verified=True)
    await swarm.train(2)
    swarm.check(2)
    reveals: set[bytes] = set()
    for trainer in swarm.trainers[:1]:
        for outcome in trainer.outcomes:
            certificate = outcome.certificate
            assert certificate is not None
            assert certificate.contributors == certificate.members
            assert len(certificate.commitments) == 3
            assert tuple(map(wire.seal_of, certificate.reveals)) == certificate.seals
            reveals.update(certificate.reveals)
    assert len(reveals) == 6, "drawn anew each round"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_verified", [False, True])
async def test_a_result_that_some_have_signed_is_adopted_when_its_proposer_dies(
    autojump_clock: MockClock, nursery: trio.Nursery, is_verified: bool
) -> None:
    swarm = await make_swarm(nursery, 5, is_verified=is_verified, sent=None)

    def kill(number: int, message: object) -> bool:
        is_commit = isinstance(message, wire.Order) and isinstance(message.body, wire.Commit)
        if swarm.dead or not is_commit or swarm.trainers[number].round != 1:
            return False
        swarm.kill(number)
        return True

    swarm.on_send = kill
    await swarm.train(3)
    certificate = swarm.alive[0].outcomes[1].certificate
    assert certificate is not None
    (dead,) = swarm.dead
    assert certificate.attempt > 0
    assert swarm.peer(dead) in certificate.contributors, "its contribution counts"
    assert swarm.peer(dead) not in certificate.members
    swarm.check(3)
    nursery.cancel_scope.cancel()


async def test_a_lying_hash_costs_the_liar_and_one_attempt(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4, min_members=3)
    liar = swarm.trainers[3]
    lane_of = liar.sync._lane

    def lie(event: Any) -> Any:
        return type(event)([b"x" * 32, *event.shards[1:]]) if hasattr(event, "shards") else event

    with trio.move_on_after(30):
        await liar.attach()
        exchanges = lane_of(RUN, 0)._exchanges
        open_exchange = exchanges.open
        exchanges.open = lambda prepare, news: open_exchange(  # type: ignore[method-assign]
            prepare, lambda event: news(lie(event))
        )
        async with trio.open_nursery() as training:
            for trainer in swarm.trainers[:3]:
                training.start_soon(trainer.train, 4)
            training.start_soon(liar.go_on, 4)
    honest = swarm.trainers[:3]
    assert [t.round for t in honest] == [4, 4, 4]
    for trainer in honest:
        for outcome in trainer.outcomes:
            assert outcome.certificate is not None
            assert swarm.peer(3) not in outcome.certificate.members
            assert outcome.certificate.attempt <= 2
    nursery.cancel_scope.cancel()


async def test_whose_chunks_come_too_slowly_is_left_out(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4)

    def delay_s(number: int, message: object) -> float:
        is_slow = isinstance(message, wire.Piece) and number == 3 and message.round >= 1
        return 30.0 if is_slow else 0.0

    swarm.delay_s = delay_s
    with trio.move_on_after(60):
        await swarm.train(4)
    quick = swarm.trainers[:3]
    assert [t.round for t in quick] == [4, 4, 4]
    for trainer in quick:
        first, second, *_ = trainer.committed_at
        assert second - first < 12, "minimum rate, and the round after it"
        for outcome in trainer.outcomes[1:]:
            assert outcome.certificate is not None
            assert swarm.peer(3) not in outcome.certificate.members
    nursery.cancel_scope.cancel()


async def test_contributions_are_counted_by_member(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, patience_s=1.0)
    await swarm.train(2)
    swarm.kill(2)
    async with trio.open_nursery() as training:
        for trainer in swarm.alive:
            training.start_soon(trainer.go_on, 4)
    mine, *others = swarm.alive[0].sync.contributions(RUN)
    lines = {line.peer: line for line in (mine, *others)}
    assert {peer: line.rounds for peer, line in lines.items()} == {
        swarm.peer(0): 4,
        swarm.peer(1): 4,
        swarm.peer(2): 2,
    }
    other, gone = lines[swarm.peer(1)], lines[swarm.peer(2)]
    assert (other.weight, gone.weight) == (4.0, 2.0)
    assert other.bytes_in > gone.bytes_in > ELEMENTS
    assert other.bytes_out > gone.bytes_out > ELEMENTS
    assert not other.banned
    swarm.alive[0].sync.ban(RUN, swarm.peer(1))
    assert any(line.banned for line in swarm.alive[0].sync.contributions(RUN))
    nursery.cancel_scope.cancel()


async def test_who_was_banned_takes_part_in_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4)
    await swarm.train(1)
    for trainer in swarm.trainers[:3]:
        trainer.sync.ban(RUN, swarm.peer(3))
    with trio.move_on_after(40):
        async with trio.open_nursery() as training:
            for trainer in swarm.trainers:
                training.start_soon(trainer.go_on, 4)
    assert [t.round for t in swarm.trainers[:3]] == [4, 4, 4]
    for outcome in swarm.trainers[0].outcomes[1:]:
        assert outcome.certificate is not None
        assert swarm.peer(3) not in outcome.certificate.members
    nursery.cancel_scope.cancel()


async def test_who_owns_no_shard_takes_part_all_the_same(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3)
    swarm.trainers[1].sync._owns = lambda: False
    shards: list[tuple[list[str], list[int]]] = []

    def note(number: int, message: object) -> bool:
        if isinstance(message, wire.Order) and isinstance(message.body, wire.Prepare):
            shards.append((list(message.body.members), list(message.body.shards)))
        return False

    swarm.on_send = note
    await swarm.train(2)
    swarm.check(2)
    for members, sizes in shards:
        assert [s > 0 for s in sizes] == [m != swarm.peer(1) for m in members]
    nursery.cancel_scope.cancel()


async def test_a_sampled_run_goes_on_while_most_members_do_not_answer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 8, sample=6, min_members=1, patience_s=3.0)
    for seed in range(100, 132):
        absent = Signer(bytes([seed]) * 32).peer
        lease = {"elements": ELEMENTS, "codec": "float32", "settings": "sample=6"}
        await SharedStore(absent, swarm.items).put("runs", f"{RUN}/member/@{absent}", lease)
    assert len(swarm.trainers[0].sync.members(RUN)) == 32
    await swarm.train(6, within_s=200)
    assert {t.round for t in swarm.trainers} == {6}
    assert len({t.roots[6] for t in swarm.trainers}) == 1
    certificates = {
        o.certificate.round: o.certificate
        for t in swarm.trainers
        for o in t.outcomes
        if o.certificate
    }
    assert sorted(certificates) == list(range(6))
    assert all(4 <= len(c.members) <= 6 for c in certificates.values())
    assert len({tuple(c.members) for c in certificates.values()}) > 1, "others each round"
    nursery.cancel_scope.cancel()


async def test_in_a_sampled_run_a_death_in_the_sample_does_not_end_the_round(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 8, sample=4, min_members=1, patience_s=3.0)

    def kill(number: int, message: object) -> bool:
        is_ack = isinstance(message, wire.Answer) and isinstance(message.body, wire.Ack)
        if swarm.dead or not is_ack or swarm.trainers[number].round != 1:
            return False
        swarm.kill(number)
        return True

    swarm.on_send = kill
    await swarm.train(5, within_s=200)
    assert len(swarm.alive) == 7
    assert len({t.roots[5] for t in swarm.alive}) == 1
    nursery.cancel_scope.cancel()


async def test_only_sampled_runs_have_turns(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 1)
    await swarm.train(1)
    with pytest.raises(UsageError, match="no samples"):
        await swarm.trainers[0].sync.turn(RUN, 0, 1, timeout_s=1)
    nursery.cancel_scope.cancel()


async def test_a_member_that_is_waited_for_does_not_hold_up_other_lanes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, lanes=2, patience_s=30.0)
    slow = swarm.trainers[2]
    slow.siblings[0].seconds_a_round = 10.0
    await swarm.train(3)
    swarm.check(3)
    first, second = swarm.trainers[0], swarm.trainers[0].siblings[0]
    assert max(b - a for a, b in pairwise(first.committed_at)) < 2
    assert min(b - a for a, b in pairwise(second.committed_at)) > 9
    assert np.isfinite(first.exchange).all()
    nursery.cancel_scope.cancel()
