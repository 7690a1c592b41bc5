"""Who gets which place: what is busy, who waits, what is forgotten."""

from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from node.apps.places import (
    GONE_MAX,
    WAITING_MAX,
    WAITING_PER_PEER_MAX,
    Incoming,
    Place,
    Places,
    Unavailable,
)
from node.apps.wire import METHODS_MAX, Offered
from wire.errors import Busy, RemoteError
from wire.ids import PeerId

A = PeerId("A")


@dataclass(eq=False)
class Stall:
    """A place, of which only its name matters here."""

    methods: frozenset[str]
    is_open: bool = True

    async def answer(self, call: Incoming) -> None:
        await call.receive()


def stall(*methods: str) -> Stall:
    return Stall(frozenset(methods))


async def take(places: Places, method: str = "m", peer: PeerId = A) -> Place:
    async with places.take(method, peer) as place:
        return place


async def hold(places: Places, held: list[Place], peer: PeerId = A) -> None:
    async with places.take("m", peer) as place:
        held.append(place)
        await trio.sleep_forever()


async def test_a_place_that_has_left_or_closed_gets_no_call(autojump_clock: MockClock) -> None:
    places, left, closed, good = Places(), stall("m"), stall("m"), stall("m")
    with places.offer(left):
        places.put(left)
    places.put(left)
    with pytest.raises(Unavailable):
        await take(places)
    closed.is_open = False
    with places.offer(closed), places.offer(good):
        places.put(closed)
        places.put(good)
        for _ in range(3):
            assert await take(places) is good


async def test_every_place_goes_to_one_who_waits_and_counts_as_busy(
    autojump_clock: MockClock,
) -> None:
    places, one, two, held = Places(), stall("m"), stall("m"), list[Place]()
    with places.offer(one), places.offer(two):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold, places, held)
            await wait_all_tasks_blocked()
            assert places.offered() == [Offered("m", 2, 2, 3)]
            places.put(one)
            places.put(two)
            await wait_all_tasks_blocked()
            assert len(held) == 2  # in the order in which trio runs those who waited
            assert all(place in held for place in (one, two))
            assert places.offered() == [Offered("m", 2, 2, 1)]
            nursery.cancel_scope.cancel()
        assert places.offered() == [Offered("m", 2, 0, 0)]
        async with places.take("m", A):
            assert places.offered() == [Offered("m", 2, 1, 0)]


async def test_a_place_given_to_one_who_is_cancelled_goes_to_the_next(
    autojump_clock: MockClock,
) -> None:
    places, place, held = Places(), stall("m"), list[Place]()
    with places.offer(place):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, places, held)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            places.put(place)
        assert held == []
        with trio.fail_after(1):
            assert await take(places) is place


async def test_the_queue_of_a_method_is_bounded_whoever_calls(autojump_clock: MockClock) -> None:
    places, held = Places(), list[Place]()
    with places.offer(stall("m", "other")):
        async with trio.open_nursery() as nursery:
            for number in range(WAITING_MAX):
                peer = PeerId(f"p{number // WAITING_PER_PEER_MAX}")
                nursery.start_soon(hold, places, held, peer)
            await wait_all_tasks_blocked()
            with pytest.raises(Busy):
                await take(places)
            with trio.move_on_after(1) as waited:
                await take(places, "other")
            assert waited.cancelled_caught
            nursery.cancel_scope.cancel()


def test_a_node_serves_so_many_methods() -> None:
    places, names = Places(), [f"m{number}" for number in range(METHODS_MAX)]
    with places.offer(stall(*names)), places.offer(stall("m0")):
        with pytest.raises(Busy, match="methods already"), places.offer(stall("more")):
            pass
        assert len(places.offered()) == METHODS_MAX


async def test_of_the_programs_that_left_the_first_are_forgotten(
    autojump_clock: MockClock,
) -> None:
    places = Places()
    for number in [*range(GONE_MAX), 0, GONE_MAX]:
        with places.offer(stall(f"m{number}")):
            pass
    for name in ("m0", "m2", f"m{GONE_MAX}"):
        with pytest.raises(Unavailable):
            await take(places, name)
    with pytest.raises(RemoteError, match="no program here"):
        await take(places, "m1")
