"""Where a feed ends: a stage's session, or the entry that waits for picks."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import trio

from protocols.sharding.wire import Fed, Picks, Step
from wire.errors import RemoteError, ShoalError


class Inlet:
    """Takes one feed at a time, from one peer; a newer feed replaces an older one."""

    def __init__(
        self,
        previous: str,
        *,
        has: Callable[[], Fed],
        take: Callable[[Step | Picks], Awaitable[None]],
        on_expect: Callable[[], None],
    ) -> None:
        """`has`: what the sender must know. `take` is given each message; it may wait for room.

        `on_expect`: another peer may feed now.
        """
        self.previous = previous  # who may feed
        self.has, self.take = has, take
        self._on_expect = on_expect
        self._scope: trio.CancelScope | None = None  # of the feed in progress
        self._feeder = ""
        self._over: ShoalError | None = None

    @contextmanager
    def feeding(self, peer: str) -> Generator[None]:
        """Have the only feed for the length of the block; if another comes, it is cancelled.

        Raises what ended it, if it did not end by itself.
        """
        self.check()
        if self._scope is not None:
            self._scope.cancel()
        scope = trio.CancelScope()
        self._scope, self._feeder = scope, peer
        try:
            with scope:
                yield
        finally:
            if self._scope is scope:
                self._scope = None
        if scope.cancelled_caught:
            raise self._over or RemoteError("replaced", "another feed has taken over")

    def check(self) -> None:
        """Raise what ended it: a feed may have its next message before it hears of the end."""
        if self._over is not None:
            raise self._over

    def expect(self, previous: str) -> None:
        """Take feeds from this peer from now on; one from another ends."""
        self.previous = previous
        if self._scope is not None and self._feeder != previous:
            self._scope.cancel()
        self._on_expect()

    def close(self, error: ShoalError) -> None:
        """Take nothing more."""
        self._over = error
        if self._scope is not None:
            self._scope.cancel()
