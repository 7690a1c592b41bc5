"""Hostile and broken members: what they bring, claim and refuse costs themselves, not the run."""

from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync import codecs, state_wire, wire
from protocols.modelsync.donor import Donor
from protocols.modelsync.herald import SchemaMismatch
from protocols.modelsync.part import RunFailed
from protocols.modelsync.state import State, state_root
from tests.sim.net import Net
from tests.sim.training import ELEMENTS, RUN, SharedStore, Swarm, Trainer, in_place
from wire.errors import BadMessage, RemoteError, UsageError
from wire.ids import Signer


async def make_swarm(nursery: trio.Nursery, count: int, **options: Any) -> Swarm:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(count):
        await swarm.add(**{"min_members": count, **options})
    return swarm


def bring(trainer: Trainer, value: float, weight: float) -> None:
    """Submit without the checks that an honest daemon makes."""
    trainer.buffer[:] = value
    trainer.sync._lane(RUN, 0).submit(trainer.round, trainer.roots[trainer.round], weight)


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
        outcome = await trainer.sync.outcome(RUN, 0, timeout_s=20)
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
    hostile_driver = hostile.sync._lane(RUN, 0)
    open_exchange = hostile_driver._exchanges.open

    def careless(*details: Any) -> Any:
        exchange = open_exchange(*details)
        zeros = np.zeros_like
        exchange._average = lambda v, _: (codecs.FLOAT32.encode(zeros(v[0])), zeros(v[0]))
        return exchange

    monkeypatch.setattr(hostile_driver._exchanges, "open", careless)
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

    monkeypatch.setattr(broken.sync._lane(RUN, 0).rounds, "tick", fail)
    with pytest.raises(RunFailed, match="a bug"):
        await broken.one_round(1.0)
    assert "a bug" in broken.sync.failure_of(RUN)
    async with trio.open_nursery() as rounds:
        for trainer in others:
            rounds.start_soon(trainer.one_round, 1.0)
    assert [t.round for t in others] == [2, 2]
    nursery.cancel_scope.cancel()


class Liar:
    """A peer that claims to have a state, and serves it."""

    def __init__(self, swarm: Swarm, seed: int, round_: int, *, forges: bool = False) -> None:
        self.signer = Signer(bytes([seed]) * 32)
        self.state = np.full(2 * ELEMENTS, 42, np.float32)
        self.root = state_root(self.state)
        certificate = self._forged(round_ - 1) if forges else None
        self.rpc = swarm.net.rpc(self.signer.peer)
        self.store = SharedStore(self.signer.peer, swarm.items)
        self.rpc.serve(wire.READY, self._ready)
        donor = Donor(self.rpc, in_place, is_busy=lambda: False)
        donor.announce(RUN, 0, State(round_, self.root, self.state, certificate))

    async def take_lease(self) -> None:
        await self.store.put("runs", f"{RUN}/member/@{self.signer.peer}", {"round": 1})

    def _forged(self, round_: int) -> wire.Certificate:
        peer = self.signer.peer
        prepare = wire.Prepare(
            RUN, round_, 0, peer, [peer], [1.0], [ELEMENTS], "float32", self.root, ELEMENTS
        )
        unsigned = prepare.certificate(bytes(32))
        signature = self.signer.sign(wire.CERTIFICATE_TAG, unsigned.body())
        return msgspec.structs.replace(unsigned, signatures=(signature,))

    async def _ready(self, _: object, ready: wire.Ready) -> wire.Heard:
        return wire.Heard(wire.Ready(RUN, ready.round, self.root, 0.0, ELEMENTS, "float32"), None)


@pytest.mark.parametrize("has_lease", [False, True])
@pytest.mark.parametrize("forges", [False, True])
async def test_a_joiner_takes_the_state_of_the_run_and_not_a_liars(
    autojump_clock: MockClock, nursery: trio.Nursery, has_lease: bool, forges: bool
) -> None:
    swarm = await make_swarm(nursery, 2)
    await swarm.train(2)
    liar = Liar(swarm, 0x77, 1000, forges=forges)
    if has_lease:
        await liar.take_lease()
    joiner = await swarm.add(min_members=2)
    await joiner.attach()
    assert joiner.round == 2
    assert joiner.roots[2] == swarm.trainers[0].roots[2]
    nursery.cancel_scope.cancel()


async def test_invented_identities_do_not_move_a_run_to_their_state(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 2)
    await swarm.train(1)
    for seed in (0x81, 0x82, 0x83):
        Liar(swarm, seed, 1)
    with trio.fail_after(120):
        async with trio.open_nursery() as rounds:
            for trainer in swarm.trainers:
                rounds.start_soon(trainer.one_round, 1.0)
    assert [(t.round, t.fetched) for t in swarm.trainers] == [(2, 0), (2, 0)]
    nursery.cancel_scope.cancel()


async def refuse(peer: object, ready: object) -> wire.Heard:
    raise SchemaMismatch("go away")


@pytest.mark.parametrize("has_lease", [False, True])
async def test_one_peer_that_says_schema_does_not_end_the_others_trainers(
    autojump_clock: MockClock, nursery: trio.Nursery, has_lease: bool
) -> None:
    swarm = await make_swarm(nursery, 2)
    hostile = Signer(b"h" * 32).peer
    swarm.net.rpc(hostile).serve(wire.READY, refuse)
    if has_lease:
        shape = {"elements": ELEMENTS, "codec": "float32"}
        await SharedStore(hostile, swarm.items).put("runs", f"{RUN}/member/@{hostile}", shape)
    await swarm.train(3, within_s=100)
    assert [t.round for t in swarm.trainers] == [3, 3]
    nursery.cancel_scope.cancel()


async def test_two_that_say_schema_do_not_end_a_run_that_has_had_a_round(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await make_swarm(nursery, 2, patience_s=2.0)
    await swarm.train(1)
    for seed in (b"h", b"i"):
        hostile = Signer(seed * 32).peer
        swarm.net.rpc(hostile).serve(wire.READY, refuse)
        shape = {"elements": ELEMENTS, "codec": "float32"}
        await SharedStore(hostile, swarm.items).put("runs", f"{RUN}/member/@{hostile}", shape)
    with trio.fail_after(60):
        async with trio.open_nursery() as rounds:
            for trainer in swarm.trainers:
                rounds.start_soon(trainer.one_round, 1.0)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", [wire.ATTEMPT, wire.REDUCE, state_wire.CHUNKS])
async def test_an_empty_call_is_a_bad_message_and_no_traceback(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    method: Any,
) -> None:
    swarm = await make_swarm(nursery, 1)
    rpc = swarm.net.rpc(Signer(b"j" * 32).peer)
    async with rpc.stream(swarm.peer(0), method, timeout_s=4) as call:
        await call.finish()
        with pytest.raises(RemoteError) as caught:
            await call.receive()
    assert caught.value.code == BadMessage.code
    assert "handler_failed" not in caplog.text
    nursery.cancel_scope.cancel()
