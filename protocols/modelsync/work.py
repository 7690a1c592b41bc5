"""Where numbers are crunched: in worker threads; in tests on a virtual clock, in place."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")

SMALL = 1 << 17  # elements: worked on in 0.5 ms, as long as two hand-overs between threads
THREADS = 2  # encoding, summing and hashing at a time, so that many runs do not starve the node


class Work(Protocol):
    """Runs a blocking function without holding up the event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns."""
        ...


async def in_place(work: Callable[[], T], /) -> T:
    """Run `work` here and now: for what takes no longer than a thread's start."""
    return work()


def suited(work: Work, elements: int) -> Work:
    """Return `work`, or `in_place` if so few elements are to be copied, checked or averaged."""
    return in_place if elements <= SMALL else work


def in_threads() -> Work:
    """Return a `Work` with worker threads of its own."""
    limiter = trio.CapacityLimiter(THREADS)

    async def run(work: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(work, limiter=limiter)

    return run
