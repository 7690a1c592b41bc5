"""Streams of the in-memory network (`tests.sim.net`)."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from wire.errors import BadMessage, PeerUnreachable
from wire.ids import PeerId
from wire.ports import PUSH_MAX, Sink

if TYPE_CHECKING:
    from tests.sim.net import Net, SimHost

WINDOW_BYTES = 256 * 1024  # unread bytes in one direction of a stream, as Yamux has it
ATTACHED_BYTES = 16 * 1024 * 1024  # the same towards a sink, which never leaves anything unread
PIECE_BYTES = 64 * 1024  # what one write puts on the wire at a time


@dataclass(eq=False)
class SimStream:
    """One end of a stream. Implements `wire.ports.Stream`."""

    net: "Net"
    owner: "SimHost"
    peer: PeerId
    protocol: str
    other: "SimStream" = field(init=False)
    lot: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _arriving: deque[tuple[float, bytes]] = field(default_factory=deque[tuple[float, bytes]])
    _unread_bytes: int = 0
    _broken_at: float = math.inf
    _finished: bool = False
    _is_reset: bool = False
    _sink: Sink | None = None
    _wants_room: bool = False
    _is_fed: bool = False  # the sink has heard of the end
    _error: PeerUnreachable | None = None  # and this of it
    is_retired: bool = False
    waits: bool = False  # somebody expects something

    def __post_init__(self) -> None:
        self.owner.streams.add(self)

    async def read(self, max_bytes: int) -> bytes:
        """Return between 1 and `max_bytes` bytes, or b"" at the end of the stream."""
        await trio.lowlevel.checkpoint()
        while True:
            if not self._is_ended():  # what came whole can be read even after a reset
                self._check()
            when, data = self._arriving[0] if self._arriving else (math.inf, b"")
            if when > trio.current_time() or self._is_silent():
                await self._wait(when)
                continue
            if not data:
                return b""  # stays there, for the next read
            self._arriving.popleft()
            if len(data) > max_bytes:
                self._arriving.appendleft((when, data[max_bytes:]))
                data = data[:max_bytes]
            self._unread_bytes -= len(data)
            self.other.lot.unpark_all()
            return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the other end has a full window unread."""
        assert not self._finished, "written after finish"
        try:
            await trio.lowlevel.checkpoint()
            for start in range(0, len(data), PIECE_BYTES):
                self._check()
                while self.other._unread_bytes >= WINDOW_BYTES:
                    await self._wait(math.inf)
                    self._check()
                self._send(data[start : start + PIECE_BYTES])
        except trio.Cancelled:
            self._drop()
            raise

    async def finish(self) -> None:
        """Close our direction; the other end reads to its end."""
        await trio.lowlevel.checkpoint()
        self._check()
        if not self._finished:
            self._finished = True
            self._send(b"")
            self._forget()
            self.other._forget()

    async def reset(self) -> None:
        """Throw the stream away, both directions. Safe at any time, also twice."""
        self._drop()
        await trio.lowlevel.checkpoint()

    def drop(self) -> None:
        """Reset without waiting."""
        self._drop()

    def attach(self, sink: Sink) -> None:
        """Give everything that arrives to `sink`."""
        is_first, self._sink = self._sink is None, sink
        if is_first:
            self.net.nursery.start_soon(self._feed)
        elif self._is_fed:
            sink.on_end(self._error)

    def expect(self, *, waits: bool) -> None:
        """Note it."""
        self.waits = waits

    @property
    def has_room(self) -> bool:
        """True if `push` may be called now."""
        is_over = self._is_reset or self._finished or trio.current_time() >= self._broken_at
        self._wants_room = not is_over and self.other._unread_bytes >= ATTACHED_BYTES
        return not is_over and not self._wants_room

    def push(self, data: bytes, *, now: bool) -> None:
        """Queue bytes without waiting."""
        assert len(data) <= PUSH_MAX
        if not (self._is_reset or self._finished):
            self._send(data)

    async def _feed(self) -> None:
        assert self._sink is not None
        try:
            while data := await self.read(PIECE_BYTES):
                self._sink.on_data(data)
                if self.other._sink is not None and self.other._wants_room:
                    self.other._wants_room = False
                    self.other._sink.on_room()
        except PeerUnreachable as broken:
            self._error = broken
        except BadMessage as bad:
            self._drop()
            self._error = PeerUnreachable(str(bad))
        finally:
            self._is_fed = True
            self._sink.on_end(self._error)

    def break_at(self, when: float) -> None:
        """Make this end fail from a moment on."""
        self._broken_at = min(self._broken_at, when)
        self.lot.unpark_all()

    def _drop(self) -> None:
        if not self._is_reset:
            self._is_reset = True
            if not (self._finished and self._is_ended()):
                self.other.break_at(trio.current_time() + self.net.latency_s)
            self._arriving.clear()
            self.lot.unpark_all()
            self.owner.streams.discard(self)

    def _send(self, piece: bytes) -> None:
        self.net.bytes_sent[self.owner.peer] += len(piece)
        self.other._arriving.append((trio.current_time() + self.net.latency_s, piece))
        self.other._unread_bytes += len(piece)
        self.other.lot.unpark_all()

    def _forget(self) -> None:
        if self._finished and self._is_ended():
            self.owner.streams.discard(self)

    def _is_ended(self) -> bool:
        """Tell whether the other side's finish has arrived (or is on its way)."""
        return bool(self._arriving) and not self._arriving[-1][1]

    def _is_silent(self) -> bool:
        return self.net.link(self.owner.peer, self.peer).silent

    def _check(self) -> None:
        if self._is_reset:
            raise PeerUnreachable(f"stream to {self.peer}: reset here")
        if trio.current_time() >= self._broken_at and not self._is_silent():
            self.owner.streams.discard(self)
            raise PeerUnreachable(f"stream to {self.peer}: reset by the peer")

    async def _wait(self, until: float) -> None:
        """Sleep until something changes, data is due, or the stream breaks."""
        breaks_at = math.inf if self._is_ended() else self._broken_at
        when = math.inf if self._is_silent() else min(until, breaks_at)
        with trio.move_on_at(when):
            await self.lot.park()
