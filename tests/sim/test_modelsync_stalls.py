"""What could stop a run for good: members that say little, claim much, or need long."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import lead, tally, wire
from protocols.modelsync.registry import BOUND, Registry
from protocols.modelsync.sampling import PING, Pong, sample_order
from tests.sim.net import Net
from tests.sim.training import ELEMENTS, RUN, SharedStore, Swarm, Trainer
from wire.errors import NotFound
from wire.ids import PeerId, Signer


async def make_swarm(nursery: trio.Nursery, count: int, **options: Any) -> Swarm:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(count):
        await swarm.add(**{"min_members": count, **options})
    return swarm


async def test_a_proposer_that_only_says_that_it_is_alive_does_not_hold_a_round(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = await make_swarm(nursery, 3, min_members=2)
    muted = set[str]()

    class Mute(tally.Tally):
        def ack(self, member: Any, ack: Any) -> Any:
            said = super().ack(member, ack)
            if self.prepare.round == 1 and not muted:
                muted.add(self.prepare.proposer)
            return None if self.prepare.proposer in muted else said

    monkeypatch.setattr(lead, "Tally", Mute)
    with trio.move_on_after(90):
        await swarm.train(4)
    others = [t for t in swarm.trainers if swarm.peer(t.number) not in muted]
    assert [t.round for t in others] == [4, 4]
    nursery.cancel_scope.cancel()


async def test_who_claims_to_be_bound_to_what_it_does_not_have_is_left_out(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, min_members=2)
    *others, hostile = swarm.trainers
    for trainer in swarm.trainers:
        await trainer.attach()
    driver = hostile.sync._lane(RUN, 0)
    driver.submit(0, hostile.roots[0], 1.0)
    peer = hostile.sync._rpc.peer
    driver.rounds.hold(
        wire.Bound(wire.ATTEMPTS_MAX, peer, b"x" * 32, [peer], [1.0], [ELEMENTS], "float32")
    )
    with trio.move_on_after(120):
        async with trio.open_nursery() as rounds:
            for trainer in others:
                rounds.start_soon(trainer.one_round, 1.0)
    assert [t.round for t in others] == [1, 1]
    nursery.cancel_scope.cancel()


async def test_a_result_that_takes_long_to_get_is_adopted(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = await make_swarm(nursery, 3, seconds_a_round=0.1)
    driver_of = [trainer.sync._lane for trainer in swarm.trainers]

    def interfere(number: int, message: object) -> bool:
        """The proposer dies at its COMMIT, and of the others one has lost the mean."""
        is_commit = isinstance(message, wire.Order) and isinstance(message.body, wire.Commit)
        if swarm.dead or not is_commit or swarm.trainers[number].round != 1:
            return False
        swarm.kill(number)
        lost = next(n for n in range(3) if n != number)
        driver_of[lost](RUN, 0)._exchanges.held = None
        swarm.delay_s = lambda n, m: 3.0 if isinstance(m, wire.Piece) and m.attempt else 0.0
        return True

    swarm.on_send = interfere
    monkeypatch.setattr("protocols.modelsync.news.ADOPT_RATE", ELEMENTS / 20, raising=False)
    with trio.move_on_after(120):
        await swarm.train(3)
    assert [t.round for t in swarm.alive] == [3, 3]
    certificate = swarm.alive[0].outcomes[1].certificate
    assert certificate is not None
    (dead,) = swarm.dead
    assert swarm.peer(dead) in certificate.contributors
    assert swarm.peer(dead) not in certificate.members
    nursery.cancel_scope.cancel()


async def test_who_leaves_in_mid_attempt_signs_nothing_after_its_farewell(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 3, min_members=2, seconds_a_round=0.1)
    done_by: list[tuple[int, int]] = []
    left: list[int] = []

    def watch(number: int, message: object) -> bool:
        """A member leaves while GO is on its way to it."""
        if isinstance(message, wire.Answer) and isinstance(message.body, wire.Done):
            done_by.append((number, swarm.trainers[number].round))
        is_go = isinstance(message, wire.Order) and isinstance(message.body, wire.Go)
        if is_go and swarm.trainers[number].round == 1 and not left:
            left.append(next(n for n in range(3) if n != number))
            swarm.nursery.start_soon(leave, swarm.trainers[left[0]])
        return False

    def delay_s(number: int, message: object) -> float:
        """All data comes before GO."""
        return 1.0 if isinstance(message, wire.Order) and isinstance(message.body, wire.Go) else 0.0

    swarm.on_send, swarm.delay_s = watch, delay_s
    with trio.move_on_after(20):
        async with trio.open_nursery() as training:
            for trainer in swarm.trainers:
                training.start_soon(train_or_leave, trainer)
    (gone,) = left
    lease = swarm.trainers[0].sync._registry.leases(RUN)[swarm.peer(gone)]
    assert lease.left
    assert (gone, 1) not in done_by or lease.at == [BOUND]
    nursery.cancel_scope.cancel()


async def leave(trainer: Trainer) -> None:
    """Leave when all data has come, and GO has not."""
    await trio.sleep(0.9)
    await trainer.sync.leave(RUN)


async def train_or_leave(trainer: Trainer) -> None:
    """Train until the run is taken from under the trainer."""
    with suppress(NotFound):
        await trainer.train(3)


async def test_the_first_sample_is_drawn_of_at_least_min_members(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 2, sample=2, min_members=3, seconds_a_round=0.1)
    async with trio.open_nursery() as training:
        for trainer in swarm.trainers:
            training.start_soon(trainer.train, 3)
        await trio.sleep(5)
        assert [t.round for t in swarm.trainers] == [0, 0]
        late = await swarm.add(sample=2, min_members=3, seconds_a_round=0.1)
        training.start_soon(late.train, 3)
    certificates = [o.certificate for t in swarm.trainers for o in t.outcomes if o.certificate]
    for certificate in certificates:
        order = sample_order(RUN, 0, certificate.round, map(swarm.peer, range(3)))
        assert set(certificate.members) == set(order[:2])
    assert {c.round for c in certificates} == {0, 1, 2}
    nursery.cancel_scope.cancel()


async def test_one_that_says_that_all_rounds_are_over_does_not_end_a_sampled_run(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 4, sample=3, min_members=3)
    hostile = Signer(b"h" * 32)
    rpc, store = swarm.net.rpc(hostile.peer), SharedStore(hostile.peer, swarm.items)

    async def pong(peer: PeerId, ask: wire.Ask) -> Pong:
        return Pong(wire.ROUNDS_MAX)

    rpc.serve(PING, pong)
    prepare = wire.Prepare(
        RUN, 1000, 0, hostile.peer, [hostile.peer], [1.0], [ELEMENTS], "float32", bytes(32),
        ELEMENTS,
    )  # fmt: skip
    false = prepare.certificate(bytes(32))
    signature = hostile.sign(wire.CERTIFICATE_TAG, false.body())
    false = msgspec.structs.replace(false, signatures=(signature,))
    await Registry(store, hostile.peer).publish(false, lanes=1)
    lease = {"elements": ELEMENTS, "codec": "float32", "settings": "sample=3"}
    await store.put("runs", f"{RUN}/member/@{hostile.peer}", lease)
    await swarm.train(3, within_s=100)
    assert {t.round for t in swarm.trainers} == {3}
    nursery.cancel_scope.cancel()
