"""The real `OffLoop`: worker threads with a limit of their own."""

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


class Threads:
    """Runs blocking or heavy work on up to `limit` threads; 1 is one piece after the other."""

    def __init__(self, limit: int = 1) -> None:
        self._limiter = trio.CapacityLimiter(limit)

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns. Cancelling waits for its end: nothing is cut in half."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
