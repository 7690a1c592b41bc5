"""One stage of a session, as the entry holds it: the streaming call, in a task of its own.

It never ends the entry's other tasks: whatever happens is told to the owner.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio

from protocols.sharding.calls import Calls
from protocols.sharding.parts import OPEN_S, Loss
from protocols.sharding.wire import (
    PING_S,
    SESSION,
    Broken,
    End,
    Open,
    Opened,
    Ping,
    Pong,
    Receipt,
    Rewire,
)
from wire.errors import Busy, DeadlineExceeded, PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Call

UNSENT_MAX = 32  # messages that wait for a slow stream; a stage that is told more is not there
WHY_MAX = 200  # characters of why a stage is lost

Ask = Open | Rewire | Ping | End
Answer = Opened | Pong | Broken | Receipt

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Who is told what a stage says."""

    def on_opened(self, number: int, opened: Opened) -> None:
        """The session is open there."""
        ...

    def on_heard(self, number: int) -> None:
        """It answered a ping."""
        ...

    def on_broken(self, number: int, broken: Broken) -> None:
        """It cannot feed its next."""
        ...

    def on_lost(self, number: int, loss: Loss, why: str, error: ShoalError | None) -> None:
        """The call is over, in whatever way."""
        ...


class HeldStage:
    """A session on one stage. Start `run` in a nursery."""

    def __init__(
        self, calls: Calls, peer: PeerId, number: int, opening: Open, owner: Owner
    ) -> None:
        self.peer, self.number, self.opening = peer, number, opening
        self.receipt: Receipt | None = None
        self.over = trio.Event()
        self.rtt_s: float | None = None  # of the last ping
        self.is_called = False  # it has heard of the session
        self._calls, self._owner = calls, owner
        # Who hangs up is not to cut the good-bye short: the ring bounds it, and then drops us.
        self._scope = trio.CancelScope(shield=True)
        self._error: ShoalError | None = None
        self._pinged_s = 0.0
        # when full, the stage is lost: see `tell`
        self._unsent, self._to_send = trio.open_memory_channel[Ask](UNSENT_MAX)

    def tell(self, message: Ask) -> None:
        """Say something to the stage, without waiting."""
        try:
            self._unsent.send_nowait(message)
        except trio.WouldBlock:
            self._error = DeadlineExceeded(f"{self.peer} takes no messages")
            self._scope.cancel()

    def drop(self) -> None:
        """Let go at once."""
        self._scope.cancel()

    async def run(self) -> None:
        """Hold the session until it ends; then say why."""
        try:
            with self._scope:
                await self._hold()
        except ShoalError as error:
            self._error = self._error or error
        finally:
            self.over.set()
        cause = self._error
        log.debug("stage.over", peer=self.peer, error=str(cause) if cause else "")
        if self.receipt is not None:
            self._owner.on_lost(self.number, Loss.ENDED, "ended", None)
        else:
            why = str(cause)[:WHY_MAX] if cause else "the session there has ended"
            self._owner.on_lost(self.number, _loss_of(cause), why, cause)

    async def _hold(self) -> None:
        async with self._calls.stream(self.peer, SESSION, timeout_s=OPEN_S) as call:
            await call.send(self.opening)
            self.is_called = True
            async with trio.open_nursery() as nursery:
                for task in (self._write, self._read):
                    nursery.start_soon(self._guard, task, call, nursery.cancel_scope)
            if self._error is not None:
                raise self._error  # the call, too, is ended as one that failed

    async def _guard(
        self,
        task: Callable[[Call[Ask, Answer]], Awaitable[None]],
        call: Call[Ask, Answer],
        scope: trio.CancelScope,
    ) -> None:
        """Run one of the two tasks; what ends it ends both, and comes out of no group."""
        try:
            await task(call)
        except ShoalError as error:
            self._error = self._error or error
        scope.cancel()

    async def _write(self, call: Call[Ask, Answer]) -> None:
        while True:
            message: Ask = Ping()
            with trio.move_on_after(PING_S):
                message = await self._to_send.receive()
            if isinstance(message, Ping):
                self._pinged_s = trio.current_time()
            await call.send(message)

    async def _read(self, call: Call[Ask, Answer]) -> None:
        async for answer in call:
            match answer:
                case Opened():
                    self.tell(Ping())
                    self._owner.on_opened(self.number, answer)
                case Pong():
                    self.rtt_s = trio.current_time() - self._pinged_s
                    self._owner.on_heard(self.number)
                case Broken():
                    self._owner.on_broken(self.number, answer)
                case Receipt():
                    self.receipt = answer
                    return


def _loss_of(error: ShoalError | None) -> Loss:
    """Whether the path broke, or the stage said no."""
    if isinstance(error, Busy):
        return Loss.BUSY
    if isinstance(error, RemoteError):
        return Loss.FAILED
    return Loss.BROKEN if error is None or isinstance(error, PeerUnreachable) else Loss.FAILED
