"""Typed calls over libp2p streams, `/shoal/rpc/1`: the real `wire.ports.Rpc` and `Network`.

First form: one stream per call (3 ms); 2 of 7 multiplexes calls on one long-lived connection.
Cancelling a call, or its deadline, resets the stream; the server's reader notices that while the
handler works, and cancels it. One peer's fault ends that peer's call and nothing else.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from protocols.rpc.call import StreamCall
from protocols.rpc.inbound import InboundCall, Server, serve_call
from protocols.rpc.machine import CallMachine
from protocols.rpc.wire import DEADLINE_MAX_MS, FAIL_TEXT_MAX, PROTOCOL, Open
from wire.codec import CONTROL_FRAME_MAX
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Host, Method, Network, Stream

Q = TypeVar("Q")
R = TypeVar("R")

log = logging.getLogger(__name__)

INBOUND_PER_PEER_MAX = 256  # calls at once from one peer; go-libp2p allows as many streams
OPENING_S = 10.0  # for a peer to say what it calls once its stream is open
LINGER_S = 10.0  # for the server to end after the caller left a streaming call normally
RESET_S = 1.0  # a reset is one small frame; if it does not go out, the connection is dead anyway
READ_BYTES = 4096  # of the opening; the rest is read by the call


@dataclass
class Counters:
    """What the calls of this node came to."""

    calls_out: int = 0
    calls_in: int = 0
    errors_out: int = 0
    errors_in: int = 0
    refused: Counter[PeerId] = field(default_factory=Counter[PeerId])


class RpcService:
    """Calls peers and answers them, over the streams of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._servers: dict[str, Server] = {}
        self._inbound: Counter[PeerId] = Counter()
        self.counters = Counters()
        host.serve(PROTOCOL, self._answer)

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._host.peer

    async def call(self, peer: PeerId, method: Method[Q, R], message: Q, *, timeout_s: float) -> R:
        """One request, one answer. Cancelling it, or the deadline, cancels the server's task."""
        deadline_ms = min(max(1, int(timeout_s * 1000)), DEADLINE_MAX_MS)
        with _deadline(peer, method.name, timeout_s):
            async with self._calling(peer, method, timeout_s, deadline_ms) as call:
                await call.send(message)
                await call.finish()
                try:
                    return await call.receive()
                except trio.EndOfChannel:
                    raise BadMessage(f"{peer} ended {method.name} without an answer") from None

    def stream(
        self, peer: PeerId, method: Method[Q, R], *, timeout_s: float
    ) -> AbstractAsyncContextManager[Call[Q, R]]:
        """Open a streaming call; `timeout_s` bounds the opening."""
        return self._calling(peer, method, timeout_s, 0)

    def serve(self, method: Method[Q, R], handler: Callable[[PeerId, Q], Awaitable[R]]) -> None:
        """Answer a unary method. A ShoalError raised by the handler reaches the caller typed."""

        async def unary(call: Call[Any, Any]) -> None:
            try:
                message = await call.receive()
            except trio.EndOfChannel:
                raise BadMessage(f"{method.name} without a request") from None
            await call.send(await handler(call.peer, message))

        self._add(Server(method, unary))

    def serve_stream(
        self, method: Method[Q, R], handler: Callable[[Call[R, Q]], Awaitable[None]]
    ) -> None:
        """Answer a streaming method; returning from the handler ends the call."""
        self._add(Server(method, handler))

    def network(self, name: str) -> Network:
        """Give requests by bytes under the method `name`: what `dht` and `crdt` stand on."""
        return _BytesNetwork(self, _bytes_method(name))

    def answer(self, name: str, handler: Callable[[PeerId, bytes], Awaitable[bytes]]) -> None:
        """Answer the requests that peers make through their `network(name)`."""
        self.serve(_bytes_method(name), handler)

    def _add(self, server: Server) -> None:
        assert server.method.name not in self._servers, f"{server.method.name} is served twice"
        self._servers[server.method.name] = server

    @asynccontextmanager
    async def _calling(
        self, peer: PeerId, method: Method[Q, R], timeout_s: float, deadline_ms: int
    ) -> AsyncGenerator[StreamCall[Q, R]]:
        self.counters.calls_out += 1
        stream: Stream | None = None
        try:
            stream = await self._host.open(peer, PROTOCOL, timeout_s=timeout_s)
            machine = CallMachine(is_server=False)
            opening = machine.open(method.name, deadline_ms)
            call = StreamCall[Q, R](
                stream, machine, method.reply, method.frame_max, opening=opening
            )
            yield call
            if deadline_ms == 0:
                await self._leave(call)
            await stream.finish()
        except BaseException:
            self.counters.errors_out += 1
            if stream is not None:
                await _reset(stream)
            raise

    async def _leave(self, call: StreamCall[Any, Any]) -> None:
        """End our side and let the server end; what it still says is thrown away."""
        with _deadline(call.peer, "the end of a call", LINGER_S):
            try:
                await call.finish()
                await call.drain()
            except PeerUnreachable:
                return  # it has ended the whole stream: that is an end too

    async def _answer(self, stream: Stream) -> None:
        """Serve one inbound stream to its end. Nothing that a peer does is raised from here."""
        peer = stream.peer
        self.counters.calls_in += 1
        self._inbound[peer] += 1
        try:
            await self._answer_call(stream)
        except ShoalError as error:
            self.counters.errors_in += 1
            log.debug("rpc.peer_fault peer=%s error=%s", peer, error)
            await _reset(stream)
        except BaseException:
            await _reset(stream)
            raise
        finally:
            self._inbound[peer] -= 1
            if not self._inbound[peer]:
                del self._inbound[peer]

    async def _answer_call(self, stream: Stream) -> None:
        machine = CallMachine(is_server=True)
        opening = await _read_opening(stream, machine)
        server = self._servers.get(opening.method)
        if server is None:
            return await self._refuse(stream, machine, "unknown_method", opening.method)
        if self._inbound[stream.peer] > INBOUND_PER_PEER_MAX:
            text = f"over {INBOUND_PER_PEER_MAX} calls at once"
            return await self._refuse(stream, machine, "busy", text)
        method = server.method
        call = InboundCall[Any, Any](stream, machine, method.request, method.frame_max)
        failed = await serve_call(call, machine, stream, server, opening.deadline_ms)
        self.counters.errors_in += failed
        return None

    async def _refuse(self, stream: Stream, machine: CallMachine, code: str, text: str) -> None:
        self.counters.refused[stream.peer] += 1
        await stream.write(machine.fail(code, text[:FAIL_TEXT_MAX]))
        await stream.finish()


@contextmanager
def _deadline(peer: PeerId, name: str, timeout_s: float) -> Generator[None]:
    """Raise DeadlineExceeded, naming the peer and the method, when the time is over."""
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError as error:
        text = f"{peer} did not answer {name} within {timeout_s:g} s"
        raise DeadlineExceeded(text) from error


@dataclass(frozen=True)
class _BytesNetwork:
    """`wire.ports.Network` over one bytes method."""

    _rpc: RpcService
    _method: Method[bytes, bytes]

    @property
    def peer(self) -> PeerId:
        return self._rpc.peer

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        return await self._rpc.call(peer, self._method, message, timeout_s=timeout_s)


def _bytes_method(name: str) -> Method[bytes, bytes]:
    return Method(name, bytes, bytes, CONTROL_FRAME_MAX + 16)  # room for the length of the bytes


async def _read_opening(stream: Stream, machine: CallMachine) -> Open:
    with trio.move_on_after(OPENING_S):
        while (event := machine.next_event()) is None:
            data = await stream.read(READ_BYTES)
            if not data:
                raise PeerUnreachable(f"{stream.peer} opened a stream and called nothing")
            machine.feed(data)
        if not isinstance(event, Open):
            raise BadMessage("a call must begin with its opening")
        return event
    raise DeadlineExceeded(f"{stream.peer} opened a stream and called nothing")


async def _reset(stream: Stream) -> None:
    with trio.move_on_after(RESET_S, shield=True):
        await stream.reset()
