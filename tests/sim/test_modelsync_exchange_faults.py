"""Faults in the data of an attempt: who is accused of what, and what is left when it is over."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync.aggregate import weighted_mean
from protocols.modelsync.shards import weighted_shards
from protocols.modelsync.wire import REDUCE, Piece
from tests.sim.exchanges import Members, number_of
from wire.errors import ShoalError

LARGE, SMALL = 2_400_000, 70_000  # elements: by bulk with up to 8 members, and not


class Liar:
    """An Rpc whose streams of data say something else."""

    def __init__(self, inner: Any, lie: Callable[[Piece], Piece | None]) -> None:
        self.inner, self.lie = inner, lie
        self.peer = inner.peer

    @asynccontextmanager
    async def stream(self, peer: Any, method: Any, *, timeout_s: float) -> AsyncGenerator[Any]:
        async with self.inner.stream(peer, method, timeout_s=timeout_s) as call:
            yield LyingCall(call, self.lie)


class LyingCall:
    """A call of a Liar."""

    def __init__(self, inner: Any, lie: Callable[[Piece], Piece | None]) -> None:
        self.inner, self.lie, self.peer = inner, lie, inner.peer

    async def send(self, piece: Piece) -> None:
        said = self.lie(piece)
        if said is not None:
            await self.inner.send(said)

    async def receive(self) -> Piece:
        piece: Piece = await self.inner.receive()
        return piece


def changed(**fields: Any) -> Callable[[Piece], Piece]:
    def lie(piece: Piece) -> Piece:
        values = {name: getattr(piece, name) for name in piece.__struct_fields__}
        return Piece(**(values | fields))

    return lie


LIES: dict[str, Callable[[Piece], Piece | None]] = {
    "too short": changed(data=b"x"),
    "too long": changed(data=bytes(4 * 262_144 + 4)),
    "not a number": lambda piece: changed(data=b"\xff" * len(piece.data))(piece),
    "out of order": changed(index=7),
}


@pytest.mark.parametrize("lie", LIES)
async def test_pieces_that_are_no_contribution_are_the_senders_fault(
    autojump_clock: MockClock, nursery: trio.Nursery, lie: str
) -> None:
    members = Members(nursery, 3, SMALL)
    villain = members.nodes[1]
    villain.wrapped = Liar(villain.rpc, LIES[lie])  # type: ignore[assignment]
    await members.run(members.prepare(), within_s=3)
    for node in (members.nodes[0], members.nodes[2]):
        assert (number_of(villain.peer), "bad") in node.faults
        assert not node.completed.is_set()


async def test_who_sends_nothing_is_silent_and_nobody_else_is(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 3, SMALL)
    villain = members.nodes[1]
    villain.wrapped = Liar(villain.rpc, lambda piece: None)  # type: ignore[assignment]
    await members.run(members.prepare(), within_s=6)
    for node in (members.nodes[0], members.nodes[2]):
        assert node.faults == {(number_of(villain.peer), "silent")}


@pytest.mark.parametrize("what", ["contribution", "mean"])
async def test_bytes_that_are_spoilt_in_a_transfer_are_the_senders_fault(
    autojump_clock: MockClock, nursery: trio.Nursery, what: str
) -> None:
    members = Members(nursery, 3, LARGE, by_bulk=True)
    villain, victim = members.nodes[1], members.nodes[0]
    mean_at = 4 * weighted_shards(LARGE, [0] * 3, [True] * 3)[0]  # it follows the contribution

    def spoil(sender: Any, receiver: Any, at: int, data: bytes) -> bytes:
        is_meant = (sender, receiver) == (villain.peer, victim.peer)
        return b"\xff" * len(data) if is_meant and (at >= mean_at) == (what == "mean") else data

    members.meadow.spoil = spoil
    await members.run(members.prepare(), within_s=3)
    assert (number_of(villain.peer), "bad") in victim.faults


async def test_a_member_that_is_too_slow_is_silent(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 2, LARGE, by_bulk=True)
    slow = members.nodes[1]
    members.meadow.slow_s[slow.peer] = 5.0  # 512 KiB in five seconds
    await members.run(members.prepare(), within_s=12)
    assert members.nodes[0].faults == {(number_of(slow.peer), "silent")}


async def test_a_member_at_a_chunk_every_three_seconds_is_not(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 2, 3 * LARGE, by_bulk=True)
    slow = members.nodes[1]
    members.meadow.slow_s[slow.peer] = 1.5  # two pieces are a chunk; a step is four chunks
    await members.run(members.prepare(), within_s=300)
    assert members.nodes[0].faults == set()
    assert members.nodes[0].completed.is_set()


async def test_a_member_whose_connection_breaks_is_broken_for_all(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 3, LARGE // 2)
    villain = members.nodes[2]
    nursery.start_soon(_kill, members, villain.peer)
    await members.run(members.prepare(), within_s=3)
    for node in members.nodes[:2]:
        assert (number_of(villain.peer), "broken") in node.faults


async def _kill(members: Members, peer: Any) -> None:
    await trio.sleep(0.05)
    members.net.kill(peer)


@pytest.mark.parametrize("topology", ["all", "ring"])
async def test_who_brings_another_vector_than_it_committed_to_is_found(
    autojump_clock: MockClock, nursery: trio.Nursery, topology: str
) -> None:
    members = Members(nursery, 3, SMALL)
    villain = members.nodes[1]
    honest = villain.contribution.copy()
    prepare = members.prepare(is_sealed=True, topology=topology)

    def lie(piece: Piece) -> Piece:
        is_vector = len(piece.data) > 32 * 3
        return changed(data=bytes(len(piece.data)))(piece) if is_vector else piece

    villain.wrapped = Liar(villain.rpc, lie)  # type: ignore[assignment]
    await members.run(prepare, within_s=3)
    assert np.array_equal(villain.contribution, honest)
    for node in (members.nodes[0], members.nodes[2]):
        assert (number_of(villain.peer), "bad") in node.faults


@pytest.mark.parametrize("topology", ["all", "ring"])
async def test_a_call_cannot_write_where_a_transfer_writes(
    autojump_clock: MockClock, nursery: trio.Nursery, topology: str
) -> None:
    """Else a chunk could become another one after it was checked."""
    members = Members(nursery, 3, LARGE, by_bulk=True)
    owner, villain = members.nodes[:2]
    members.meadow.slow_s[villain.peer] = 0.5
    prepare = members.prepare(is_sealed=topology != "all", topology=topology)

    async def write() -> None:
        await owner.opened.wait()
        first = villain.contribution[:262_144].tobytes()  # nothing is wrong with it, as yet
        async with villain.rpc.stream(owner.peer, REDUCE, timeout_s=1) as call:
            await call.send(Piece(prepare.run, *prepare.ballot, index=0, data=first))
            with suppress(ShoalError, trio.EndOfChannel):
                await call.receive()

    async with trio.open_nursery() as beside:
        beside.start_soon(write)
        await members.run(prepare, within_s=20)
    assert (number_of(villain.peer), "bad") in owner.faults
    assert owner.exchange is not None
    by_transfers = 4 * (sum(prepare.shards[:2]) if topology == "all" else LARGE)
    assert owner.exchange.bytes_by_peer[villain.peer][0] == by_transfers


async def test_the_next_attempt_gets_no_memory_that_a_transfer_still_writes_to(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """An attempt that was superseded is closed at once, and runs on until it could say so."""
    members = Members(nursery, 4, LARGE, by_bulk=True)
    node, prepare = members.nodes[0], members.prepare()
    async with trio.open_nursery() as attempt:
        for each in members.nodes:
            attempt.start_soon(each.open(prepare).run)
        await trio.sleep(0.05)
        (place, *_) = members.meadow.places.values()
        written = {id(m.obj) for p in members.meadow.places.values() for m in p.buffer}
        for each in members.nodes:
            assert each.exchange is not None
            each.exchange.close()
        again = [node.memory.take(len(part) * 3) for part in place.buffer for _ in range(3)]
        assert not {id(memory.obj) for memory in again} & written
        attempt.cancel_scope.cancel()
    assert id(node.memory.take(4 * LARGE).obj) in written  # but the one after has it


async def test_a_cancelled_exchange_lets_go_of_everything(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 3, LARGE, by_bulk=True)
    await members.run(members.prepare(), within_s=0.05)
    assert members.meadow.places == {}
    await trio.sleep(1)
    await members.run(members.prepare(attempt=1))
    members.apply()
    expected = weighted_mean(members.vectors, [1.0] * 3)
    assert all(np.array_equal(node.result, expected) for node in members.nodes)
