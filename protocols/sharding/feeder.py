"""Keeps a feed: from what this node has of a session to who needs it, wherever that is just now.

What is to be sent lies in the source, which is also the queue: the feeder asks it for the next step
that its target lacks. So a new target, a broken connection and a slow reader are all the same, and
no step is lost by any of them. The owner bounds what it adds by `sent`.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import NoReturn, Protocol, TypeVar

import trio

from protocols.sharding.wire import FEED, Fed, Feed, Picks, Place, Step
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Method

OPEN_S = 5.0  # seconds to reach the target
FED_S = 8.0  # seconds for its answer; it waits a while for its own part of the session to come
SEND_S = 120.0  # seconds until a step is taken; a slow stage may have several long ones before it
REOPEN_S = (
    0.05  # seconds from one opening to the next, at least: whoever points cannot make us spin
)

Q = TypeVar("Q")
R = TypeVar("R")


class Source(Protocol):
    """What is fed: `History` or `PicksKept`."""

    row_bytes: int  # of a step

    def after(self, number: int, position: int) -> Step | Picks | None:
        """Return the next message for who has seen step `number` and rows before `position`."""
        ...


class Streams(Protocol):
    """What opens feeds: `calls.Calls`."""

    def stream(
        self, peer: PeerId, method: Method[Q, R], *, timeout_s: float
    ) -> AbstractAsyncContextManager[Call[Q, R]]:
        """As `wire.ports.Rpc.stream`, also to this node itself."""
        ...


class Feeder:
    """Feeds one session's next stage, or its entry.

    Run it in a nursery of the session; `point` and `wake` may be called at any time, from any task.
    """

    def __init__(
        self,
        streams: Streams,
        session: bytes,
        source: Source,
        *,
        on_broken: Callable[[Place, ShoalError], None],
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_broken` is told, once, that the target cannot be fed; then it waits for `point`.

        `on_sent`: `sent` has changed.
        """
        self.session = session
        self.target: Place | None = None
        self.number = 0  # of the last step that was sent
        self.sent = 0  # the position after its rows
        self._streams, self._source = streams, source
        self._on_broken, self._on_sent = on_broken, on_sent
        self._wanted = trio.Event()  # there is a target that we do not feed yet
        self._more = trio.Event()  # the source has something new
        self._feeding = trio.CancelScope()
        self._error: ShoalError | None = None
        self._is_fed = False  # the target has taken the feed

    def point(self, target: Place) -> None:
        """Feed this one from now on. The same one again: open the feed anew."""
        self.target = target
        self._wanted.set()
        self._feeding.cancel()

    def wake(self) -> None:
        """The source has something new."""
        self._more.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Feed until cancelled."""
        task_status.started()
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            assert self.target is not None
            target, began_at = self.target, trio.current_time()
            error = await self._feed(target)
            if error is not None and not self._wanted.is_set():
                self._on_broken(target, error)
            await trio.sleep_until(began_at + REOPEN_S)

    async def _feed(self, target: Place) -> ShoalError | None:
        """Feed a target until another is wanted, or return why it cannot be fed.

        If it was fed and the connection breaks, it is tried once more: the path may have changed.
        """
        for is_last in (False, True):
            self._is_fed = False
            self._feeding = trio.CancelScope()
            try:
                with self._feeding:
                    peer = PeerId(target.peer)
                    async with self._streams.stream(peer, FEED, timeout_s=OPEN_S) as call:
                        await self._begin(call, target)
                        await self._keep(call)
                break
            except ShoalError as error:
                is_path = isinstance(error, PeerUnreachable) and not isinstance(error, RemoteError)
                if is_last or not (is_path and self._is_fed) or self._wanted.is_set():
                    return error
        return None

    async def _begin(self, call: Call[Feed | Step | Picks, Fed], target: Place) -> None:
        with _deadline(FED_S, target.peer):
            await call.send(Feed(self.session, target.start))
            fed = await call.receive()
        self.number, self.sent = fed.number, fed.position
        self._is_fed = True
        self._on_sent()

    async def _keep(self, call: Call[Feed | Step | Picks, Fed]) -> NoReturn:
        """Send all that is there, and all that comes. Raises what ends the call."""
        self._error = None
        async with trio.open_nursery() as nursery:
            for task in (self._send, self._listen):
                nursery.start_soon(self._guard, task, call, nursery.cancel_scope)
        raise self._error or PeerUnreachable("the feed has ended")

    async def _guard(
        self,
        task: Callable[[Call[Feed | Step | Picks, Fed]], Awaitable[NoReturn]],
        call: Call[Feed | Step | Picks, Fed],
        scope: trio.CancelScope,
    ) -> None:
        """Run one of the two tasks of a feed; its error ends both, and is not in a group."""
        try:
            await task(call)
        except ShoalError as error:
            self._error = self._error or error
            scope.cancel()

    async def _send(self, call: Call[Feed | Step | Picks, Fed]) -> NoReturn:
        peer = call.peer
        while True:
            self._more = trio.Event()
            while (message := self._source.after(self.number, self.sent)) is not None:
                with _deadline(SEND_S, peer):
                    await call.send(message)
                self.number, self.sent = message.number, self._end_of(message)
                self._on_sent()
            await self._more.wait()

    def _end_of(self, message: Step | Picks) -> int:
        if isinstance(message, Picks):
            return message.position
        return message.position + len(message.rows) // self._source.row_bytes

    async def _listen(self, call: Call[Feed | Step | Picks, Fed]) -> NoReturn:
        """Notice the end of the call also while there is nothing to send."""
        try:
            await call.receive()
        except trio.EndOfChannel:
            raise PeerUnreachable(f"{call.peer} takes no more of the session") from None
        raise BadMessage(f"{call.peer} says more than it should on a feed")


@contextmanager
def _deadline(seconds: float, peer: str) -> Generator[None]:
    """Bound a wait for the target. An ended call and a late answer are ShoalErrors alike."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{peer} took no step in {seconds:g} s") from error
    except trio.EndOfChannel as error:
        raise PeerUnreachable(f"{peer} does not take the session") from error
