"""What a program that subscribed to a topic reads: messages in order, never more than it keeps up.

A reader that is too slow loses the oldest, is told how many, and delays nobody. A blob that is
waited for holds back what its author said after it, and nobody else's messages.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import trio

from protocols.channels.history import Kept
from protocols.channels.policy import Policy
from wire.ids import PeerId

QUEUE_MAX = 1024  # messages that wait for one reader; when full the oldest goes
QUEUE_BYTES = 16 * 1024 * 1024  # and their bytes, likewise, but one always fits


@dataclass(frozen=True)
class Received:
    """One message. `seqno` is its author's number; `error` says why a blob's data is missing."""

    topic: str
    author: PeerId
    seqno: int
    data: bytes
    received_ms: int  # our wall clock
    name: bytes = field(repr=False)  # unique among all messages
    cid: str = ""  # of the blob that the data came in
    error: str = ""


class Arrival:
    """A message that may still wait for its blob: it holds its place in every queue."""

    def __init__(self, message: Received, *, is_here: bool = True) -> None:
        self.message = message
        self.is_here = is_here  # whether it can be read now
        self.readers = list[Subscription]()  # to be told when it is here

    @property
    def size_bytes(self) -> int:
        """Bytes of the data that is here: what a reference promises is not counted."""
        return len(self.message.data)

    def arrive(self, data: bytes) -> None:
        """The blob is here."""
        self._end(replace(self.message, data=data))

    def fail(self, reason: str) -> None:
        """The blob cannot be had; readers are told."""
        self._end(replace(self.message, data=b"", error=reason))

    def _end(self, message: Received) -> None:
        self.message, self.is_here = message, True
        readers, self.readers = self.readers, []
        for reader in readers:
            reader.arrived(self)


class Subscription:
    """One reader of one topic: `async for message in subscription`."""

    def __init__(self, topic: str, policy: Policy, *, queue_max: int, is_ready: bool) -> None:
        self.topic, self.policy = topic, policy
        self.dropped = 0  # messages lost here because the reader was slow
        self.began = trio.current_time()
        self._queue_max = queue_max
        self._queue = dict[bytes, Arrival]()  # by name, oldest first
        self._size_bytes = 0
        self._wake = trio.Event()
        self._is_ready = is_ready  # the past is here, or none is wanted

    def put(self, arrival: Arrival) -> None:
        """Add a message, dropping the oldest if there is no room."""
        if arrival.message.name in self._queue:
            return
        self._queue[arrival.message.name] = arrival
        self._size_bytes += arrival.size_bytes
        if not arrival.is_here:
            arrival.readers.append(self)
        self._make_room()

    def arrived(self, arrival: Arrival) -> None:
        """A blob that was waited for is here, or cannot be had."""
        if self._queue.get(arrival.message.name) is arrival:  # it may have been dropped
            self._size_bytes += arrival.size_bytes
            self._make_room()

    def _make_room(self) -> None:
        while len(self._queue) > self._queue_max or (
            self._size_bytes > QUEUE_BYTES and len(self._queue) > 1
        ):
            self._pop(next(iter(self._queue)))
            self.dropped += 1
        self._wake.set()

    def choose(self, past: list[Kept], last: int) -> list[Kept]:
        """Return the last so many from before this reader came, and what it has missed since."""
        wanted = [kept for kept in past if self.policy.accepts(kept.author)]
        wanted = [kept for kept in wanted if kept.name not in self._queue]
        old = [kept for kept in wanted if kept.at < self.began]
        missed = [kept for kept in wanted if kept.at >= self.began]
        return old[-last:] + missed

    def begin_with(self, past: list[Arrival]) -> None:
        """Put the past (oldest first) before what came meanwhile, and let the reader begin."""
        rest, self._queue, self._size_bytes = [*self._queue.values()], dict[bytes, Arrival](), 0
        for arrival in rest:
            if self in arrival.readers:
                arrival.readers.remove(self)
        for arrival in [*past, *rest]:
            self.put(arrival)
        self._is_ready = True
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Received]:
        """Iterate until the subscription is left."""
        return self

    async def __anext__(self) -> Received:
        """Return the next message. Cancelled, it loses none."""
        await trio.lowlevel.checkpoint()
        while (message := self.take_now()) is None:
            self._wake = trio.Event()
            await self._wake.wait()
        return message

    def take_now(self) -> Received | None:
        """Return the next message if there is one already."""
        waiting = set[PeerId]()  # authors of blobs that are waited for
        for name, arrival in self._queue.items() if self._is_ready else ():
            author = arrival.message.author
            if arrival.is_here and author not in waiting:
                self._pop(name)
                return arrival.message
            waiting.add(author)
        return None

    def _pop(self, name: bytes) -> None:
        self._size_bytes -= self._queue.pop(name).size_bytes
