"""Places of users' programs: which of them takes the next call, and who waits for one.

A place answers one call at a time, so a method has as many calls at once as there are places that
answer it. Further calls wait in order; when too many wait, they are refused.
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio
from msgspec import Raw

from node.apps.wire import METHODS_MAX, Offered, name_of
from wire.errors import Busy, RemoteError, ShoalError
from wire.ids import PeerId

WAITING_MAX = 256  # calls of one method that wait for a place; more are refused as busy
WAITING_PER_PEER_MAX = 64  # the same of one peer: nobody takes the whole queue
GONE_MAX = 256  # names remembered after their program left; the oldest is forgotten
GRACE_S = 1.0  # a program that comes back within it (a restart, a cancelled call) loses no call


class Unavailable(ShoalError):
    """The program that served the method is gone, or went in the middle of the call."""

    code = "unavailable"


class Incoming(Protocol):
    """A call as the program sees it."""

    @property
    def peer(self) -> PeerId:
        """Who calls."""
        ...

    @property
    def method(self) -> str:
        """What is called."""
        ...

    async def receive(self) -> Raw:
        """Return the caller's next value. Raises trio.EndOfChannel after the last."""
        ...

    async def send(self, value: Raw) -> None:
        """Answer with one more value."""
        ...


class Place(Protocol):
    """One place in a program, as its connection to the daemon presents it."""

    @property
    def methods(self) -> frozenset[str]:
        """The names it answers."""
        ...

    @property
    def is_open(self) -> bool:
        """False once it will answer no further call."""
        ...

    async def answer(self, call: Incoming) -> None:
        """Answer one call. Raises Unavailable if the program goes, RemoteError if it fails."""
        ...


@dataclass(eq=False)
class _Waiter:
    method: str
    peer: PeerId
    woken: trio.Event = field(default_factory=trio.Event)
    place: Place | None = None


class Places:
    """All places of a node's programs."""

    def __init__(self) -> None:
        self._places: dict[Place, bool] = {}  # is it taken?
        self._idle: dict[Place, None] = {}  # in order: idle the longest first
        self._waiters: deque[_Waiter] = deque()  # at most WAITING_MAX for each method
        self._gone: dict[str, None] = {}

    def offered(self) -> list[Offered]:
        """List what the programs of this node serve, by name."""
        names = sorted({name for place in self._places for name in place.methods})
        return [
            Offered(
                name,
                sum(name in place.methods for place in self._places),
                sum(taken and name in place.methods for place, taken in self._places.items()),
                sum(waiter.method == name for waiter in self._waiters),
            )
            for name in names
        ]

    @contextmanager
    def offer(self, place: Place) -> Generator[None]:
        """Have a place until the block is left; it gets calls once it is `put`. Raises Busy,
        UsageError.
        """
        for name in place.methods:
            name_of(name)
        names = {name for each in self._places for name in each.methods} | place.methods
        if len(names) > METHODS_MAX:
            raise Busy(f"this node serves {METHODS_MAX} methods already")
        self._places[place] = True
        try:
            yield
        finally:
            del self._places[place]
            self._idle.pop(place, None)
            self._leave(place)

    def _leave(self, place: Place) -> None:
        for name in place.methods:
            if not self._is_served(name):
                self._gone.pop(name, None)
                self._gone[name] = None
        while len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        for waiter in self._waiters:
            waiter.woken.set()  # to look whether anybody is left who may answer

    def put(self, place: Place) -> None:
        """A place is free: give it to the first who waits for it."""
        if place not in self._places or not place.is_open:
            return  # it has left, or is about to
        for waiter in self._waiters:
            if waiter.place is None and waiter.method in place.methods:
                waiter.place = place
                waiter.woken.set()
                return
        self._places[place] = False
        self._idle[place] = None

    @asynccontextmanager
    async def take(self, method: str, peer: PeerId) -> AsyncGenerator[Place]:
        """Take a place that answers the method for a peer, waiting if all are taken.

        Raises RemoteError "unknown_method", Busy, Unavailable.
        """
        place = await self._take(method, peer)
        try:
            yield place
        finally:
            self.put(place)

    async def _take(self, method: str, peer: PeerId) -> Place:
        place = next((each for each in self._idle if method in each.methods), None)
        if place is not None:
            del self._idle[place]
            self._places[place] = True
            return place
        if not self._is_served(method) and method not in self._gone:
            raise RemoteError("unknown_method", f"no program here serves {method}")
        waiting = [waiter.peer for waiter in self._waiters if waiter.method == method]
        if len(waiting) >= WAITING_MAX or waiting.count(peer) >= WAITING_PER_PEER_MAX:
            raise Busy(f"{len(waiting)} calls of {method} wait already")
        return await self._wait(_Waiter(method, peer))

    async def _wait(self, waiter: _Waiter) -> Place:
        self._waiters.append(waiter)
        try:
            while waiter.place is None:
                served = self._is_served(waiter.method)
                with trio.move_on_after(math.inf if served else GRACE_S) as scope:
                    await waiter.woken.wait()
                if scope.cancelled_caught and waiter.place is None:
                    raise Unavailable(f"the program that served {waiter.method} here is gone")
                waiter.woken = trio.Event()
            place, waiter.place = waiter.place, None
            return place
        finally:
            self._waiters.remove(waiter)
            if waiter.place is not None:  # cancelled in the moment it was given
                self.put(waiter.place)

    def _is_served(self, method: str) -> bool:
        return any(method in place.methods for place in self._places)
