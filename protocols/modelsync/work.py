"""Where numbers are crunched: in worker threads; in tests on a virtual clock, in place."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")

THREADS = 2  # encoding, summing and hashing at a time, so that many runs do not starve the node


class Work(Protocol):
    """Runs a blocking function without holding up the event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns."""
        ...


def in_threads() -> Work:
    """Return a `Work` with worker threads of its own."""
    limiter = trio.CapacityLimiter(THREADS)

    async def run(work: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(work, limiter=limiter)

    return run
