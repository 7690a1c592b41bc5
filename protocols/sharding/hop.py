"""One stage of a route, as the entry node holds it: a session there, in a task of its own.

The task owns the streaming call (or the local session), so a lost hop can end by itself while the
others go on.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import structlog
import trio

from protocols.sharding.placement import Span
from protocols.sharding.service import OPEN_S, StageService, step_timeout_s
from protocols.sharding.wire import SESSION, Open, Opened, Output, Reply, Request, Step
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable, RemoteError, ShoalError
from wire.ports import Call, Rpc

HISTORY_MAX = 256 * 1024 * 1024  # bytes kept to replay one hop; above it a loss ends the answer
_NETWORK_S = 10.0  # seconds on top of the time that the stage itself may take

# A stage that says one of these is as lost as one that does not answer; any other code is final.
_LOST_CODES = frozenset(("worker_gone", "not_found", "unreachable", "deadline", "stopping"))

log = structlog.get_logger(__name__)


class Steps(Protocol):
    """What answers steps: a stage of this node or a call to a peer."""

    async def step(self, step: Step) -> Output:
        """Run one step."""
        ...


def is_loss(error: ShoalError) -> bool:
    """Whether another node could do better, or the request itself is at fault."""
    if isinstance(error, RemoteError):
        return error.code in _LOST_CODES
    return isinstance(error, PeerUnreachable | DeadlineExceeded) or error.code in _LOST_CODES


def is_busy(error: ShoalError) -> bool:
    """Whether the stage has no room now: another with the same layers may have some."""
    return error.code == "busy"


class Connector:
    """Opens sessions on stages, here or on a peer."""

    def __init__(self, rpc: Rpc, local: StageService, *, row_bytes: int) -> None:
        self._rpc = rpc
        self._local = local
        self.row_bytes = row_bytes  # of one position of hidden state

    @asynccontextmanager
    async def session(self, span: Span, request: Open) -> AsyncGenerator[Steps]:
        """Hold a session for the length of the block. Raises ShoalError."""
        if span.peer == self._local.peer:
            async with self._local.session(request, caller=span.peer) as session:
                yield session
            return
        async with self._rpc.stream(span.peer, SESSION, timeout_s=OPEN_S) as call:
            with _deadline(OPEN_S + _NETWORK_S, span):
                await call.send(request)
                answer = await call.receive()
            if not isinstance(answer, Opened):
                raise BadMessage(f"{span.peer} did not open the session")
            yield _Remote(call, span, self.row_bytes)


class _Remote:
    """Steps over a streaming call."""

    def __init__(self, call: Call[Request, Reply], span: Span, row_bytes: int) -> None:
        self._call, self._span, self._row_bytes = call, span, row_bytes

    async def step(self, step: Step) -> Output:
        """Send a step, wait for its output."""
        with _deadline(step_timeout_s(step, row_bytes=self._row_bytes) + _NETWORK_S, self._span):
            await self._call.send(step)
            output = await self._call.receive()
        if not isinstance(output, Output):
            raise BadMessage(f"{self._span.peer} answered a step with something else")
        return output


class Hop:
    """A session on one stage. Start `run` in a nursery, then `check` that it opened."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.history: list[Step] | None = []  # None: too long to keep
        self._history_bytes = 0
        self._scope = trio.CancelScope()
        # Steps of a session follow each other: nothing ever waits in either channel.
        self._ask, self._asked = trio.open_memory_channel[Step](0)
        self._answer, self._answered = trio.open_memory_channel[Output](1)
        self._error: ShoalError | None = None

    async def run(
        self,
        connector: Connector,
        request: Open,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hold the session. Its errors go to who asks, never to the nursery."""
        opened = False
        with self._scope, self._asked, self._answer:
            try:
                async with connector.session(self.span, request) as session:
                    opened = True
                    task_status.started()
                    async for step in self._asked:
                        await self._answer.send(await session.step(step))
            except ShoalError as error:
                self._error = error
                if isinstance(error, RemoteError):  # the words of another, on their way to a person
                    self._error = RemoteError(error.code, str(error))
                log.debug("hop.ended", peer=self.span.peer, error=str(error))
        if not opened:
            task_status.started()

    def check(self) -> None:
        """Raise the error that ended the session, if one did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the session; its task winds down by itself."""
        self._scope.cancel()

    async def step(self, step: Step) -> Output:
        """Run one step and remember it. Raises what ended the session."""
        try:
            await self._ask.send(step)
            answer = await self._answered.receive()
        except (trio.BrokenResourceError, trio.EndOfChannel) as error:
            self.check()
            raise PeerUnreachable(f"the session on {self.span.peer} has ended") from error
        self._remember(step)
        return answer

    def _remember(self, step: Step) -> None:
        self._history_bytes += len(step.hidden) + 8 * len(step.tokens)
        if self._history_bytes > HISTORY_MAX:
            self.history = None
        elif self.history is not None:
            self.history.append(step)


@contextmanager
def _deadline(seconds: float, span: Span) -> Generator[None]:
    """Bound a wait for a stage. A late answer and an ended call are ShoalErrors like any loss."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{span.peer} did not answer in {seconds:.0f} s") from error
    except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise PeerUnreachable(f"{span.peer} ended the session") from error
