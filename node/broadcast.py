"""One sender, many readers inside the daemon: events for the control API's streams."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

QUEUE_MAX = 1000  # items per reader; a reader slower than that loses the oldest


class Broadcast(Generic[T]):
    """Every reader gets every item sent while it reads; nobody ever waits for a slow one."""

    def __init__(self, queue_max: int = QUEUE_MAX) -> None:
        self._queue_max = queue_max
        self._readers: set[_Reader[T]] = set()
        self._is_closed = False

    def close(self) -> None:
        """Nothing comes any more: readers end when they have read what is there."""
        self._is_closed = True
        for reader in self._readers:
            reader.close()

    def send(self, item: T) -> None:
        """Give an item to all readers; never blocks. Call it in the trio thread only."""
        for reader in self._readers:
            reader.put(item)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncIterator[T]]:
        """Read what is sent from now on, until the block is left."""
        reader = _Reader[T](self._queue_max)
        self._readers.add(reader)
        if self._is_closed:
            reader.close()
        try:
            yield reader
        finally:
            self._readers.discard(reader)


class _Reader(Generic[T]):
    """A bounded queue that drops its oldest item when it is full."""

    def __init__(self, queue_max: int) -> None:
        self._items: deque[T] = deque(maxlen=queue_max)
        self._wake = trio.Event()
        self._is_closed = False

    def close(self) -> None:
        """End the iteration after what is there."""
        self._is_closed = True
        self._wake.set()

    def put(self, item: T) -> None:
        """Add an item, dropping the oldest if there is no room."""
        self._items.append(item)
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate until the sender closes."""
        return self

    async def __anext__(self) -> T:
        """Return the next item."""
        while not self._items:
            if self._is_closed:
                raise StopAsyncIteration
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint()
        return self._items.popleft()
