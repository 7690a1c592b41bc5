"""One link: our stream to a peer, which takes what waits for it, and the peer's stream to us, cut
into frames. Either may move to a better connection and go on there.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import trio

from protocols.channels.policy import Bucket
from protocols.channels.send_queue import SendQueue
from protocols.channels.wire import FRAME_MAX
from wire.errors import BadMessage, PeerUnreachable
from wire.frames import FrameParser
from wire.ids import PeerId
from wire.ports import PUSH_MAX, Stream

STUCK_S = 30.0  # without room on our stream: a peer that reads so little is no help
FRAME_TIMEOUT_S = 30.0  # from the first byte of a frame to its last
HELD_BYTES = 2 * FRAME_MAX  # of a peer that we have no stream to at the moment
PEER_BYTES_S, PEER_BYTES_BURST = 16e6, 64e6  # from one peer; its stream is reset beyond
# Of them, what is no message's data: ids, signatures, fields. Its bytes cost up to 0.2 us each to
# read; honest ones are 5,000 messages a second.
HEAD_BYTES_S, HEAD_BYTES_BURST = 1e6, 8e6
FRAME_COST = 64  # bytes that a frame counts beside its own: an empty one costs time as well


class Hooks(Protocol):
    """What the service does when something happens on a link."""

    def link_up(self, peer: PeerId, version: str) -> None:
        """Our stream to a peer is open."""
        ...

    def link_down(self, peer: PeerId) -> None:
        """It is over."""
        ...

    def hear(self, peer: PeerId, frames: list[bytes]) -> int:
        """Whole frames came, one or more; returns how many bytes of data. Raises BadMessage."""
        ...

    def heard_nonsense(self, peer: PeerId) -> None:
        """A peer broke the framing, or what `hear` expects."""
        ...


class Farewell:
    """A sink for a stream that we have finished: did the peer hear everything?"""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.is_whole = False  # the peer has read to the end, and finished too

    def on_data(self, data: bytes | memoryview) -> None:
        """Nothing comes on it."""
        raise BadMessage(f"{len(data)} bytes on a stream that is ours alone")

    def on_room(self) -> None:
        """Nothing is said any more."""

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The peer has finished, or all is lost."""
        self.is_whole = error is None
        self.over.set()


class Link:
    """Our stream to one peer: a queue, pushed to the stream as it has room. Implements `Sink`."""

    def __init__(self, stream: Stream, flushed: trio.lowlevel.ParkingLot) -> None:
        self.peer, self.version = stream.peer, stream.protocol
        self.queue = SendQueue()
        self.scope = trio.CancelScope()
        self.stream, self._flushed = stream, flushed
        self._rest = memoryview(b"")  # of what was taken from the queue
        self._stuck_at = math.inf  # since when there is no room
        self._begun_is_out: trio.Event | None = None  # moving: nothing more begins on this stream

    def flush(self, now: float) -> None:
        """Push what waits, as far as there is room; end the link if there was none for long."""
        while self._rest or (self.queue and self._begun_is_out is None):
            if not self.stream.has_room:
                self._stuck_at = min(self._stuck_at, now)
                if now - self._stuck_at > STUCK_S:
                    self.scope.cancel()
                return
            self._stuck_at = math.inf
            self._rest = self._rest or memoryview(self.queue.take())
            self.stream.push(bytes(self._rest[:PUSH_MAX]), now=False)
            self._rest = self._rest[PUSH_MAX:]
            self._flushed.unpark_all()
        if self._begun_is_out is not None:
            self._begun_is_out.set()

    @property
    def is_moving(self) -> bool:
        """True while nothing more begins on the present stream."""
        return self._begun_is_out is not None

    async def move(self, stream: Stream) -> bool:
        """Go on in another stream, which the peer will read when it has read this one to its end.

        False if it has not: what it missed is unknown.
        """
        old, farewell, begun_is_out = self.stream, Farewell(), trio.Event()
        self._begun_is_out = begun_is_out
        self.flush(trio.current_time())
        await begun_is_out.wait()
        await old.finish()
        old.attach(farewell)
        self.stream, self._begun_is_out = stream, None
        stream.attach(self)
        self.flush(trio.current_time())
        await farewell.over.wait()
        return farewell.is_whole

    def on_data(self, data: bytes | memoryview) -> None:
        """Nothing comes on this stream: whoever speaks here speaks another protocol."""
        raise BadMessage(f"{len(data)} bytes on a stream that is ours alone")

    def on_room(self) -> None:
        """The stream takes more."""
        self.flush(trio.current_time())

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The stream is over; but a peer that only will not speak on it still hears us."""
        if error is not None:
            self.scope.cancel()


class Budget:
    """What one peer may send, whatever the number of its streams."""

    def __init__(self) -> None:
        self._bytes = Bucket.full(PEER_BYTES_S, PEER_BYTES_BURST)
        self._heads = Bucket.full(HEAD_BYTES_S, HEAD_BYTES_BURST)

    def spend(self, size_bytes: int, head_bytes: int, now: float) -> None:
        """Charge what came. Raises BadMessage over the limit."""
        if self._bytes.borrow(size_bytes, now) > 0 or self._heads.borrow(head_bytes, now) > 0:
            raise BadMessage(f"more than {PEER_BYTES_S:g} B/s, or {HEAD_BYTES_S:g} B/s of heads")


class Visit:
    """A peer's stream to us, cut into frames as it comes. Implements `Sink`."""

    def __init__(
        self, stream: Stream, budget: Budget, hooks: Hooks, is_known: Callable[[], bool]
    ) -> None:
        """`is_known`: whether the machine knows the peer now, so that it can hear it."""
        self.stream = stream
        self.successor: Stream | None = None  # it waits for the end of this one
        self.scope = trio.CancelScope()  # of the task that reads the stream
        self.turned = trio.lowlevel.ParkingLot()  # it goes on in the successor, or is over
        self._peer, self._hooks, self._is_known = stream.peer, hooks, is_known
        self._parser = FrameParser(FRAME_MAX)
        self._budget = budget
        self._held, self._held_bytes = list[bytes](), 0
        self._partial_at = math.inf  # since when a frame has been incomplete

    def on_data(self, data: bytes | memoryview) -> None:
        """Take bytes. Raises BadMessage, which resets the stream."""
        now = trio.current_time()
        self._budget.spend(len(data), 0, now)  # beyond, it begins again later
        found = list[bytes]()
        with self._blame():
            found += map(bytes, self._parser.feed(data))  # copied: a view would hold its record
        if found or self._partial_at == math.inf:
            self._partial_at = math.inf if self._parser.is_empty else now
        self._budget.spend(0, len(found) * FRAME_COST, now)
        with self._blame():
            data_bytes = self._hear(found)
        self._budget.spend(0, sum(map(len, found)) - data_bytes, now)

    def on_room(self) -> None:
        """Nothing is said on this stream."""

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The stream is over: go on with the next, if the peer has said everything on this one."""
        if self.successor is not None and error is None and self._parser.is_empty:
            self.stream, self.successor = self.successor, None
            self.scope = trio.CancelScope()  # of the task that reads this one
            self.turned.unpark_all()
            self.stream.attach(self)
        else:
            self.scope.cancel()

    def release(self) -> None:
        """Our own stream is there again: go on with what came meanwhile."""
        held, self._held, self._held_bytes = self._held, [], 0
        try:
            with self._blame():
                self._hear(held)
        except BadMessage:
            self.scope.cancel()

    def is_slow(self, now: float) -> bool:
        """Whether a frame has been coming for too long."""
        return now - self._partial_at > FRAME_TIMEOUT_S

    @contextmanager
    def _blame(self) -> Generator[None]:
        """Tell the machine of bytes that are no RPC."""
        try:
            yield
        except BadMessage:
            self._hooks.heard_nonsense(self._peer)
            raise

    def _hear(self, found: list[bytes]) -> int:
        if self._is_known():
            return self._hooks.hear(self._peer, found) if found else 0
        self._held += found  # the machine does not know the peer now
        self._held_bytes += sum(map(len, found))
        if self._held_bytes > HELD_BYTES:
            raise BadMessage(f"{self._held_bytes} B before our own stream was open")
        return 0
