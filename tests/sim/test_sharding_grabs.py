"""Peers that reach for what others have: names, room, what is kept; on the virtual clock."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.feeder import Feeder
from protocols.sharding.history import History
from protocols.sharding.room import PARKED_MAX, PEER_SHARE, Parked, Room
from protocols.sharding.wire import (
    HISTORY,
    ORPHAN_S,
    SESSION,
    End,
    Fed,
    Open,
    Place,
    Receipt,
    Rewire,
    Sampling,
)
from protocols.sharding.wire import History as AskHistory
from tests.sim.pretend_worker import MODEL
from tests.sim.ring import ENTRY, KEYS, LAYERS, LONG, PROMPT, Swarm, expected, go_on, open_tickets
from wire.errors import Busy, ShoalError
from wire.ids import PeerId

EVE, S0, S1 = PeerId("eve"), PeerId("s0"), PeerId("s1")


@pytest.fixture
async def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, n_layers=LAYERS)


async def test_a_session_by_the_name_of_the_entry_s_own_end_takes_nothing(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    eve = (await swarm.add("eve")).service
    swarm.nodes[ENTRY].host(swarm.nursery, 4, 8, n_layers=8)  # of a longer model
    async with eve.calls.stream(ENTRY, SESSION, timeout_s=5) as call:
        async with swarm.ring(route) as ring:
            found = await ring.say(PROMPT, 3)
            place = Place(EVE, 8)
            await call.send(
                Open(ring.session, MODEL, 4, 8, 32, Sampling(), EVE, place, "float32", "picks")
            )
            await call.receive()
            swarm.net.cut(ENTRY, S1)  # the last stage looks for our end again
            swarm.net.heal()
            await trio.sleep(0.1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ring.rewire, 1)
                found = await go_on(ring, found, 6)
            assert found == expected(6)
        await call.send(End())
        assert isinstance(await call.receive(), Receipt)
    await trio.sleep(1)
    async with swarm.ring(route) as ring:  # the node lives
        assert await ring.say(PROMPT, 6) == expected(6)
    assert swarm.nodes[ENTRY].service.sessions == {}


class Fickle:
    """A target that takes a feed, and ends it."""

    def __init__(self) -> None:
        self.opened = 0

    @asynccontextmanager
    async def stream(self, peer: PeerId, method: Any, *, timeout_s: float) -> AsyncGenerator[Any]:
        self.opened += 1
        if self.opened > 20:
            await trio.sleep_forever()  # it does not end
        yield _FickleCall(peer)


class _FickleCall:
    def __init__(self, peer: PeerId) -> None:
        self.peer, self._said = peer, [Fed(0, 0)]

    async def send(self, message: object) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self) -> Fed:
        await trio.lowlevel.checkpoint()
        if not self._said:
            raise trio.EndOfChannel
        return self._said.pop()


async def test_who_takes_a_feed_and_ends_it_is_told_as_broken(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    target, told = Fickle(), list[ShoalError]()
    feeder = Feeder(
        target,
        bytes(16),
        History(4, 8),
        on_broken=lambda _, error: told.append(error),
    )
    nursery.start_soon(feeder.run)
    feeder.point(Place(EVE, 2))
    await trio.sleep(1)
    assert target.opened == 2  # the path may have changed
    assert len(told) == 1
    nursery.cancel_scope.cancel()


async def test_what_an_entry_said_on_an_old_stream_counts_no_more(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4)
    service = swarm.nodes[S0].service
    for _ in range(20):  # which of two tasks goes first is chance
        async with swarm.ring(route) as ring:
            old = ring.controls[0].call
            control = swarm.nodes[ENTRY].service.calls.stream(S0, SESSION, timeout_s=5)
            async with control as new:
                await new.send(ring.opening(0))
                with suppress(ShoalError):  # at the latest when its end is noticed
                    for _ in range(20):
                        await old.send(Rewire(EVE, Place(EVE, 4)))
                        await trio.sleep(0.001)
                await new.receive()
                await trio.sleep(1)
                [session] = service.sessions.values()
                assert session.feeder.target == Place(ENTRY, 4)
                await new.send(End())
                await new.receive()


def test_one_peer_s_parked_sessions_leave_places_for_others() -> None:
    room = Room(1 << 20, own=S0)

    def park(ticket: int, peer: PeerId) -> None:
        key = [ticket.to_bytes(16)]
        room.park(Parked(ticket, peer, (0, 2, "ids", "float32"), key, 16, 16, 600.0, None))

    def kept(peer: PeerId) -> int:
        return sum(parked.peer == peer for parked in room.clear())

    for ticket in range(2 * PARKED_MAX):
        park(ticket, EVE)
    for ticket in range(1000, 1003):
        park(ticket, ENTRY)
    assert kept(ENTRY) == 3
    for ticket in range(1000, 1003):
        park(ticket, ENTRY)
    for ticket in range(2 * PARKED_MAX):
        park(ticket, EVE)
    assert kept(ENTRY) == 3


async def test_what_comes_behind_the_end_leaves_what_is_parked_as_it_was(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        await ring.say(LONG[:40], 5)
        for control in ring.controls:
            await control.call.send(End(KEYS[:2]))
        ring.step([1], position=0)  # truncates
        await trio.sleep(1)
    async with swarm.ring(route, keys=KEYS) as ring:
        assert ring.controls[1].opened.position in (0, 32)
    await trio.sleep(60)
    assert [swarm.nodes[peer].service.usage(MODEL, at).sessions for peer, at, _ in route] == [0, 0]


async def test_rows_that_are_forgotten_while_they_are_read_are_not_made_up(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    node = await swarm.add("entry", history_bytes=32 * 450)  # to itself, a call holds one message
    for start in (0, 2):
        node.host(swarm.nursery, start, start + 2, n_layers=LAYERS)
    route = [(ENTRY, 0, 2), (ENTRY, 2, 4)]

    async def say(tokens: int) -> bytes:
        async with swarm.ring(route) as ring:
            for _ in range(tokens // 100):
                ring.step([1] * 100, picks=0)
            ring.step([1])
            await ring.picked()
            await ring.end()
        return ring.session

    session = await say(400)
    async with node.service.calls.stream(ENTRY, HISTORY, timeout_s=5) as call:
        await call.send(AskHistory(session, 0))
        assert len((await call.receive()).rows) == 128 * 32
        await say(400)
        with pytest.raises(ShoalError, match="not kept any more"):
            _ = [part async for part in call]
    assert open_tickets(swarm) == 0


async def test_sessions_that_are_opened_and_dropped_count_as_their_entry_s(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    eve = (await swarm.add("eve")).service.calls
    opened = 0

    async def open_and_drop() -> None:
        name, place = secrets.token_bytes(16), Place(EVE, 2)
        async with eve.stream(S0, SESSION, timeout_s=5) as call:
            opening = Open(name, MODEL, 0, 2, 200, Sampling(), EVE, place, "ids", "float32")
            await call.send(opening)
            await call.receive()

    with suppress(Busy):
        for _ in range(100):
            await open_and_drop()
            opened += 1
    assert opened == int(PEER_SHARE * 4096) // 200
    async with swarm.ring(route) as ring:
        assert await ring.say(PROMPT, 6) == expected(6)
        await ring.end()
    await trio.sleep(ORPHAN_S + 1)
    assert swarm.nodes[S0].service.usage(MODEL, 0).free_tokens == 4096
