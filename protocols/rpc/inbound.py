"""The server's side of one call: a reader that notices the caller's end while the handler works."""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from protocols.rpc.call import StreamCall
from protocols.rpc.machine import CallMachine
from protocols.rpc.wire import FAIL_TEXT_MAX
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Call, Method, Stream

Out = TypeVar("Out")
In = TypeVar("In")

log = logging.getLogger(__name__)

QUEUE_MAX = (
    8  # messages read ahead of the handler; when full, the caller waits in its stream window
)
FAIL_S = 5.0  # to tell the caller of a failure


@dataclass(frozen=True)
class Server:
    """A method and who answers it."""

    method: Method[Any, Any]
    handler: Callable[[Call[Any, Any]], Awaitable[None]]


class InboundCall(Generic[Out, In]):
    """The `wire.ports.Call` that a handler gets: what was read ahead comes out of a queue."""

    def __init__(
        self, stream: Stream, machine: CallMachine, incoming: type[In], frame_max: int
    ) -> None:
        self._call = StreamCall[Out, In](stream, machine, incoming, frame_max)
        self._put, self._get = trio.open_memory_channel[bytes](QUEUE_MAX)

    @property
    def peer(self) -> PeerId:
        """Who called."""
        return self._call.peer

    async def send(self, message: Out) -> None:
        """Send one message; waits while the caller is not reading."""
        await self._call.send(message)

    async def receive(self) -> In:
        """Return the next message. Raises trio.EndOfChannel at the end, BadMessage."""
        return self._call.decode(await self._get.receive())

    async def finish(self) -> None:
        """Say that no more messages come from the server."""
        await self._call.finish()

    async def __aiter__(self) -> AsyncIterator[In]:
        while True:
            try:
                yield await self.receive()
            except trio.EndOfChannel:
                return

    async def read_ahead(self) -> None:
        """Fill the queue to the caller's end. Raises PeerUnreachable if it goes before that."""
        with self._put:
            while True:
                try:
                    await self._put.send(await self._call.receive_body())
                except (trio.EndOfChannel, trio.BrokenResourceError):
                    return


async def serve_call(
    call: InboundCall[Any, Any],
    machine: CallMachine,
    stream: Stream,
    server: Server,
    deadline_ms: int,
) -> bool:
    """Run the handler to its end, its deadline or the caller's going. Returns whether it failed.

    Raises PeerUnreachable or BadMessage if the caller broke the call off.
    """
    gone: list[ShoalError] = []
    failure: tuple[str, str] | None = ("deadline", "the caller's deadline has passed")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, call, stream, nursery.cancel_scope, gone)
        with trio.move_on_after(deadline_ms / 1000 if deadline_ms else math.inf):
            failure = await _run(call, server)
        if failure is None:
            await call.finish()
        else:
            with trio.move_on_after(FAIL_S):
                if machine.may_send:
                    await stream.write(machine.fail(failure[0][:32], failure[1][:FAIL_TEXT_MAX]))
        await stream.finish()
        nursery.cancel_scope.cancel()
    if gone:
        raise gone[0]
    return failure is not None


async def _run(call: InboundCall[Any, Any], server: Server) -> tuple[str, str] | None:
    """Run the handler; return the code and text of its failure."""
    try:
        await server.handler(call)
    except ShoalError as error:
        return error.code, str(error)
    except Exception:  # one of the outermost boundaries: a bug in a handler ends its call only
        log.exception("rpc.handler_failed method=%s peer=%s", server.method.name, call.peer)
        return "internal", "the handler failed; its node's log says why"
    return None


async def _watch(
    call: InboundCall[Any, Any], stream: Stream, scope: trio.CancelScope, gone: list[ShoalError]
) -> None:
    """Read ahead, then wait for the stream's end; if the caller goes first, cancel the handler."""
    try:
        await call.read_ahead()
        while await stream.read(1):
            pass  # nothing may come after the end; what does is read over, bounded by the call
    except ShoalError as error:
        gone.append(error)
    scope.cancel()
