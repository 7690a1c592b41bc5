"""What a program that subscribed to a topic reads: messages in order, never more than it keeps up.

A reader that is too slow loses the oldest, is told how many, and delays nobody.
"""

from collections import deque
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

    def __init__(self, message: Received, *, size_bytes: int, is_here: bool = True) -> None:
        self.message = message
        self.size_bytes = size_bytes  # of the data, also while it is not here yet
        self._here = trio.Event()
        if is_here:
            self._here.set()

    def arrive(self, data: bytes) -> None:
        """The blob is here."""
        self.message = replace(self.message, data=data)
        self._here.set()

    def fail(self, reason: str) -> None:
        """The blob cannot be had; readers are told."""
        self.message = replace(self.message, data=b"", error=reason)
        self._here.set()

    @property
    def is_here(self) -> bool:
        """Whether it can be read now."""
        return self._here.is_set()

    async def wait(self) -> None:
        """Wait for the blob, or for its failure."""
        await self._here.wait()


class Subscription:
    """One reader of one topic: `async for message in subscription`."""

    def __init__(self, topic: str, policy: Policy, *, queue_max: int, is_ready: bool) -> None:
        self.topic, self.policy = topic, policy
        self.dropped = 0  # messages lost here because the reader was slow
        self.began = trio.current_time()
        self._queue_max = queue_max
        self._queue = deque[Arrival]()
        self._size_bytes = 0
        self._wake = trio.Event()
        self._is_ready = is_ready  # the past is here, or none is wanted

    def put(self, arrival: Arrival) -> None:
        """Add a message, dropping the oldest if there is no room."""
        self._queue.append(arrival)
        self._size_bytes += arrival.size_bytes
        while len(self._queue) > self._queue_max or (
            self._size_bytes > QUEUE_BYTES and len(self._queue) > 1
        ):
            self._pop()
            self.dropped += 1
        self._wake.set()

    def choose(self, past: list[Kept], last: int) -> list[Kept]:
        """Return the last so many from before this reader came, and what it has missed since."""
        wanted = [kept for kept in past if self.policy.accepts(kept.author)]
        here = {arrival.message.name for arrival in self._queue}
        old = [kept for kept in wanted if kept.at < self.began and kept.name not in here]
        missed = [kept for kept in wanted if kept.at >= self.began and kept.name not in here]
        return old[-last:] + missed

    def begin_with(self, past: list[Arrival]) -> None:
        """Put the past (oldest first) before what came meanwhile, and let the reader begin."""
        rest, self._queue, self._size_bytes = [*self._queue], deque[Arrival](), 0
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
        while True:
            while not self._queue or not self._is_ready:
                self._wake = trio.Event()
                await self._wake.wait()
            arrival = self._queue[0]
            await arrival.wait()
            if self._queue and self._queue[0] is arrival:  # not dropped meanwhile
                self._pop()
                return arrival.message

    def take_now(self) -> Received | None:
        """Return the next message if there is one already."""
        if not self._is_ready or not self._queue or not self._queue[0].is_here:
            return None
        message = self._queue[0].message
        self._pop()
        return message

    def _pop(self) -> None:
        self._size_bytes -= self._queue.popleft().size_bytes
