"""Streaming calls to peers, and in memory to this node itself, with which RPC has no line."""

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from wire.errors import Busy, PeerUnreachable, RemoteError, ShoalError, typed_error
from wire.faults import root_cause
from wire.ids import PeerId
from wire.ports import Call, Method, Rpc

Q = TypeVar("Q")
R = TypeVar("R")
Out = TypeVar("Out")
In = TypeVar("In")

log = logging.getLogger(__name__)


class Calls:
    """Opens streaming calls, and answers them. Between a node and itself nothing is encoded."""

    def __init__(self, rpc: Rpc) -> None:
        self.peer = rpc.peer
        self._rpc = rpc
        self._handlers: dict[str, Callable[[Any], Awaitable[None]]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer this node's own calls until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def serve_stream(
        self, method: Method[Q, R], handler: Callable[[Call[R, Q]], Awaitable[None]]
    ) -> None:
        """Answer a streaming method, for peers and for ourselves."""
        self._handlers[method.name] = handler
        self._rpc.serve_stream(method, handler)

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, method: Method[Q, R], *, timeout_s: float
    ) -> AsyncGenerator[Call[Q, R]]:
        """Open a call, as `wire.ports.Rpc.stream` does."""
        if peer != self.peer:
            async with self._rpc.stream(peer, method, timeout_s=timeout_s) as call:
                yield call
            return
        if self._nursery is None:
            raise PeerUnreachable("this node is stopping")
        # One message: as little as will do, since each may be a whole step.
        there = trio.open_memory_channel[Q](1)
        back = trio.open_memory_channel[R](1)
        near: _NearCall[Q, R] = _NearCall(peer, there[0], back[1])
        far: _NearCall[R, Q] = _NearCall(peer, back[0], there[1])
        scope = trio.CancelScope()
        self._nursery.start_soon(_answer, self._handlers[method.name], near, far, scope)
        try:
            yield near
        except BaseException:
            scope.cancel()
            raise
        finally:
            near.close()


class _NearCall(Generic[Out, In]):
    """One side of a call within the process. Implements `wire.ports.Call`."""

    def __init__(
        self,
        peer: PeerId,
        sending: trio.MemorySendChannel[Out],
        receiving: trio.MemoryReceiveChannel[In],
    ) -> None:
        self.peer = peer
        self.failure: ShoalError | None = None
        self._sending, self._receiving = sending, receiving

    async def send(self, message: Out) -> None:
        """Send one message."""
        try:
            await self._sending.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self.failure or RemoteError("call_ended", "the call has ended") from error

    async def receive(self) -> In:
        """Return the next message."""
        try:
            return await self._receiving.receive()
        except trio.EndOfChannel:
            if self.failure is not None:
                raise self.failure from None
            raise

    async def finish(self) -> None:
        """No more messages come from this side."""
        await self._sending.aclose()

    def close(self) -> None:
        """Neither sends nor receives any more."""
        self._sending.close()
        self._receiving.close()

    def __aiter__(self) -> AsyncIterator[In]:
        """Iterate over messages until the end."""
        return self

    async def __anext__(self) -> In:
        """Return the next message."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


async def _answer(
    handler: Callable[[Any], Awaitable[None]],
    near: _NearCall[Any, Any],
    far: _NearCall[Any, Any],
    scope: trio.CancelScope,
) -> None:
    """Run the handler of a call; its errors are the caller's, as if they had come from a peer."""
    assert scope.deadline == math.inf, "handlers bound their own waits"
    try:
        with scope:
            await handler(far)
    except Exception as error:  # a boundary: the handler's fault is its call's alone
        cause = root_cause(error)
        if isinstance(cause, ShoalError):
            wait_s = cause.retry_after_s if isinstance(cause, Busy) else None
            near.failure = typed_error(cause.code, str(cause), retry_after_s=wait_s)
        else:
            log.error("near_call.handler_failed", exc_info=error)
            near.failure = RemoteError("internal", type(cause).__name__)
    finally:
        far.close()
