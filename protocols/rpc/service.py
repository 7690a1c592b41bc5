"""Typed calls to peers: implements `wire.ports.Rpc` over one libp2p stream per call.

First form: a new stream costs a round trip, which the multiplexed stream per peer of DESIGN.md,
section 8, will save. What callers and servers see stays the same.
"""

import logging
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from protocols.rpc.call import READ_BYTES, Body, RpcCounters, StreamCall
from protocols.rpc.machine import CallMachine, Ended, Failed, Got, Opened
from protocols.rpc.wire import DEADLINE_MAX_MS, PROTOCOL
from wire.codec import CONTROL_FRAME_MAX
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Host, Method, Network, Stream

Q = TypeVar("Q")
R = TypeVar("R")

INBOUND_MAX = 256  # calls of one peer answered at a time (facts: security, section 3.4)
OPEN_TIMEOUT_S = 10.0  # for the first frame of a stream: against those who open and are silent
LINGER_S = 10.0  # for the other side to take our last bytes; then the stream is reset
RESET_TIMEOUT_S = 1.0  # for the shielded reset of a cancelled call

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Endpoint:
    """A method we answer. `handler` gets a call of any types; `serve*` has tied them."""

    frame_max: int
    request: Body[Any]
    reply: Body[Any]
    handler: Callable[[StreamCall[Any, Any]], Awaitable[None]]


class RpcService:
    """Calls peers and answers them. `serve` before peers call; there is nothing to run."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._endpoints: dict[str, _Endpoint] = {}
        self._bodies: dict[object, Body[Any]] = {}  # one per message type of the program
        self._active: Counter[PeerId] = Counter()  # inbound calls; only peers that have some
        self.counters = RpcCounters()
        host.serve(PROTOCOL, self._answer)

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._host.peer

    async def call(self, peer: PeerId, method: Method[Q, R], message: Q, *, timeout_s: float) -> R:
        """One request, one answer. Cancelling it, or the deadline, cancels the server's task.

        Raises PeerUnreachable, DeadlineExceeded, RemoteError, BadMessage or MessageTooBig.
        """
        self.counters.calls_out += 1
        try:
            with trio.move_on_after(timeout_s) as scope:
                return await self._exchange(peer, method, message, scope.deadline)
        except ShoalError:
            self.counters.errors_out += 1
            raise
        self.counters.errors_out += 1
        raise DeadlineExceeded(f"{method.name}: no answer of {peer} within {timeout_s:g} s")

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, method: Method[Q, R], *, timeout_s: float
    ) -> AsyncGenerator[Call[Q, R]]:
        """Open a streaming call; `timeout_s` bounds the opening. Leaving the block ends the call:
        normally by finishing our side, on an exception by cancelling the server's task.
        """
        self.counters.calls_out += 1
        machine = CallMachine("caller", frame_max=method.frame_max)
        failure: Exception | None = None
        try:
            stream = await self._open(peer, method, machine, timeout_s)
            try:
                request, reply = self._body(method.request), self._body(method.reply)
                call = StreamCall(stream, machine, request, reply, self.counters)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call.pump, _nothing)
                    try:
                        yield call
                        call.ignore_rest()
                        await _leave(call)
                    except Exception as error:  # carried out of the nursery, which would wrap it
                        failure = error
                    nursery.cancel_scope.cancel()
                if failure is not None:
                    raise failure
            except BaseException:
                await _reset(stream)
                raise
        except ShoalError:
            self.counters.errors_out += 1
            raise

    def serve(self, method: Method[Q, R], handler: Callable[[PeerId, Q], Awaitable[R]]) -> None:
        """Answer a unary method. A ShoalError raised by the handler reaches the caller typed."""

        async def answer(call: StreamCall[R, Q]) -> None:
            try:
                request = await call.receive()
            except trio.EndOfChannel:
                raise BadMessage("the request is missing") from None
            call.hold(await handler(call.peer, request))

        self._add(method, answer)

    def serve_stream(
        self, method: Method[Q, R], handler: Callable[[Call[R, Q]], Awaitable[None]]
    ) -> None:
        """Answer a streaming method; returning from the handler ends the call."""
        self._add(method, handler)

    def network(self, name: str, *, frame_max: int = CONTROL_FRAME_MAX) -> Network:
        """Return request and answer by bytes, under a method name: what dht and crdt stand on."""
        return _ByteNetwork(self, Method(name, bytes, bytes, frame_max))

    def answer(
        self,
        name: str,
        handler: Callable[[PeerId, bytes], Awaitable[bytes]],
        *,
        frame_max: int = CONTROL_FRAME_MAX,
    ) -> None:
        """Answer what peers ask through their `network(name)`."""
        self.serve(Method(name, bytes, bytes, frame_max), handler)

    def _add(
        self, method: Method[Q, R], handler: Callable[[StreamCall[R, Q]], Awaitable[None]]
    ) -> None:
        assert method.name not in self._endpoints, f"{method.name} is served already"
        request, reply = self._body(method.request), self._body(method.reply)
        self._endpoints[method.name] = _Endpoint(method.frame_max, request, reply, handler)

    def _body(self, type_: type[Q]) -> Body[Q]:
        if type_ not in self._bodies:
            self._bodies[type_] = Body(type_)
        return self._bodies[type_]

    async def _open(
        self, peer: PeerId, method: Method[Any, Any], machine: CallMachine, timeout_s: float
    ) -> Stream:
        with trio.move_on_after(timeout_s):
            stream = await self._host.open(peer, PROTOCOL, timeout_s=timeout_s)
            try:
                await stream.write(machine.open(method.name, 0))
            except BaseException:
                await _reset(stream)
                raise
            return stream
        raise DeadlineExceeded(f"{method.name}: {peer} not reached within {timeout_s:g} s")

    async def _exchange(self, peer: PeerId, method: Method[Q, R], message: Q, until: float) -> R:
        machine = CallMachine("caller", frame_max=method.frame_max)
        body = self._body(method.request).encode(message)
        left_s = until - trio.current_time()
        stream = await self._host.open(peer, PROTOCOL, timeout_s=left_s)
        try:
            left_ms = math.ceil((until - trio.current_time()) * 1000)
            request = machine.open(method.name, max(1, min(left_ms, DEADLINE_MAX_MS)))
            request += machine.send(body) + machine.end()
            reply = await self._ask(stream, machine, request)
            decoded = self._body(method.reply).decode(reply, method.frame_max)
            await stream.finish()
            return decoded
        except BaseException:
            await _reset(stream)
            raise

    async def _ask(self, stream: Stream, machine: CallMachine, request: bytes) -> bytes:
        await stream.write(request)
        self.counters.bytes_out += len(request)
        reply: bytes | None = None
        while True:
            match machine.next_event():
                case Got(body) if reply is None:
                    reply = body
                case Ended() if reply is not None:
                    return reply
                case Failed(code, text):
                    raise RemoteError(code, text)
                case None:
                    data = await stream.read(READ_BYTES)
                    self.counters.bytes_in += len(data)
                    machine.feed(data) if data else machine.feed_eof()
                case event:
                    raise BadMessage(f"{type(event).__name__} where one answer belongs")

    async def _answer(self, stream: Stream) -> None:
        """Answer one inbound stream: one call."""
        machine = CallMachine("server")
        self.counters.calls_in += 1
        self.counters.active_in += 1
        self._active[stream.peer] += 1
        try:
            try:
                endpoint, opened = await self._begin(stream, machine)
                await self._handle(stream, machine, endpoint, opened)
            except ShoalError as error:
                await self._refuse(stream, machine, error)
        except PeerUnreachable:
            pass  # the caller is gone, and with it everybody who wanted to know
        finally:
            await _reset(stream)  # nothing happens to a stream that both sides have closed
            self.counters.active_in -= 1
            self._active[stream.peer] -= 1
            if not self._active[stream.peer]:
                del self._active[stream.peer]

    async def _begin(self, stream: Stream, machine: CallMachine) -> tuple[_Endpoint, Opened]:
        """Read which method is called. Raises ShoalError if it is not to be answered."""
        if self._active[stream.peer] > INBOUND_MAX:
            self.counters.refused += 1
            raise RemoteError("busy", f"more than {INBOUND_MAX} calls of yours at a time")
        with trio.move_on_after(OPEN_TIMEOUT_S):
            while (event := machine.next_event()) is None:
                data = await stream.read(READ_BYTES)
                self.counters.bytes_in += len(data)
                machine.feed(data) if data else machine.feed_eof()
            assert isinstance(event, Opened), "the machine lets nothing else come first"
            if event.method not in self._endpoints:
                raise RemoteError("unknown_method", f"no method {event.method} here")
            endpoint = self._endpoints[event.method]
            machine.frame_max = endpoint.frame_max
            return endpoint, event
        raise DeadlineExceeded(f"no call within {OPEN_TIMEOUT_S:g} s of opening")

    async def _handle(
        self, stream: Stream, machine: CallMachine, endpoint: _Endpoint, opened: Opened
    ) -> None:
        """Run the handler while the stream is watched, then end the call. Raises what failed."""
        call = StreamCall(stream, machine, endpoint.reply, endpoint.request, self.counters)
        scope = trio.move_on_after(math.inf)
        if opened.deadline_ms:
            scope.deadline = trio.current_time() + opened.deadline_ms / 1000
        failure: ShoalError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call.pump, scope.cancel)
            try:
                with scope:
                    await endpoint.handler(call)
                if scope.cancelled_caught:
                    late = DeadlineExceeded(f"{opened.method}: over the caller's deadline")
                    failure = call.failure or late
                else:
                    call.ignore_rest()
                    with trio.move_on_after(LINGER_S):
                        await call.close()
                        await call.over.wait()
            except Exception as error:  # a boundary: the handler's fault is its call's alone
                failure = _explain(error, opened.method)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _refuse(self, stream: Stream, machine: CallMachine, error: ShoalError) -> None:
        """Answer with an error, and let the caller read it before the stream goes."""
        self.counters.errors_in += 1
        self.counters.bad_messages += isinstance(error, BadMessage)
        with trio.move_on_after(LINGER_S):
            answer = machine.fail(error.code, str(error))
            await stream.write(answer)
            self.counters.bytes_out += len(answer)
            await stream.finish()
            while data := await stream.read(READ_BYTES):
                self.counters.bytes_in += len(data)


class _ByteNetwork:
    """Implements `wire.ports.Network` by one method of bytes."""

    def __init__(self, rpc: RpcService, method: Method[bytes, bytes]) -> None:
        self._rpc, self._method = rpc, method

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._rpc.peer

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        """Ask a peer. Raises PeerUnreachable, DeadlineExceeded, RemoteError or BadMessage."""
        return await self._rpc.call(peer, self._method, message, timeout_s=timeout_s)


def _explain(error: Exception, method: str) -> ShoalError:
    """Return what the caller may know of an error; what is not ours is logged in full."""
    inner = _sole(error)
    if isinstance(inner, ShoalError):
        return inner
    log.error("rpc.handler_failed method=%s", method, exc_info=error)
    return RemoteError("internal", f"{method} failed at the server: {type(inner).__name__}")


def _sole(error: BaseException) -> BaseException:
    """Take an error out of the groups that nurseries put around it, if it is alone in them."""
    inside: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _sole(inside[0]) if len(inside) == 1 else error


async def _leave(call: StreamCall[Any, Any]) -> None:
    """End a call that its caller is through with. Who has gone already does not matter."""
    with trio.move_on_after(LINGER_S), suppress(PeerUnreachable, RemoteError):
        await call.close()


async def _reset(stream: Stream) -> None:
    with trio.move_on_after(RESET_TIMEOUT_S) as scope:
        scope.shield = True
        await stream.reset()


def _nothing() -> None:
    """What the caller does when its call breaks: it will see when it sends or receives."""
