"""Typed calls to peers: implements `wire.ports.Rpc` over one line per peer and direction.

A new libp2p stream for each call would cost a round trip and most of the time of a small call; so
the first call to a peer opens a line, and it stays. What peers of other implementations offer over
their own protocols is not touched by this.
"""

import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from protocols.rpc import moves
from protocols.rpc.answers import Answers
from protocols.rpc.call import BodyType, CallSide
from protocols.rpc.caller import CallerLine
from protocols.rpc.line import RpcCounters, new_budget
from protocols.rpc.machine import Budget, check_size
from protocols.rpc.server import Endpoint, Load, ServerLine
from protocols.rpc.wire import MOVE, PROTOCOL, READY
from wire.codec import CONTROL_FRAME_MAX
from wire.errors import (
    BadMessage,
    DeadlineExceeded,
    PeerUnreachable,
    ShoalError,
    UsageError,
)
from wire.ids import PeerId
from wire.ports import Call, Method, Network, Stream, WatchedHost

Q = TypeVar("Q")
R = TypeVar("R")

OPEN_S = 10.0  # to reach a peer and open a line, also for those who wait longer for the answer
LINES_OF_PEER_MAX = 8  # that it opened to us; it needs one for each connection, and has up to 4
TRIES_MAX = 3  # of a call that is repeatable or has a key
RETRY_S = 0.05  # before the second try, doubled before the third
STALL_S = 10.0  # for some of what was sent to go out, when a stream is left

log = logging.getLogger(__name__)


class _Opening:
    """A line that is being opened, and everybody who waits for it."""

    def __init__(self) -> None:
        self.is_over = trio.Event()
        self.error: ShoalError | None = None


@dataclass
class _Served:
    """A peer that has opened lines to us: how many, and what they may hold together."""

    lines: int = 0
    budget: Budget = field(default_factory=new_budget)


class RpcService:
    """Calls peers and answers them. `serve` before peers call.

    While it runs, calls move to a better connection when there is one; without, each ends with the
    connection that it began on.
    """

    def __init__(self, host: WatchedHost) -> None:
        self._host = host
        self._endpoints: dict[str, Endpoint] = {}
        self._bodies: dict[object, BodyType[Any]] = {}  # one per message type of the program
        self._lines: dict[PeerId, CallerLine] = {}
        self._openings: dict[PeerId, _Opening] = {}
        self._load, self._answers = Load(), Answers()
        self._served: dict[PeerId, _Served] = {}
        self._departures = moves.Departures()
        self._moving = set[CallerLine]()
        self._nursery: trio.Nursery | None = None
        self.counters = RpcCounters()
        host.serve(PROTOCOL, self._answer)
        host.serve(MOVE, self._go_on)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move lines to better connections, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                async for event in self._host.watch():
                    line = self._lines.get(event.peer)
                    if event.is_move and line is not None:
                        nursery.start_soon(self._move, line)
            finally:
                self._nursery = None

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._host.peer

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, R],
        message: Q,
        *,
        timeout_s: float,
        key: bytes = b"",
    ) -> R:
        """One request, one answer. Cancelling it, or the deadline, cancels the server's task.

        If the connection breaks before the answer, a method that `is_repeatable` is called again,
        and so is any with a `key` (up to 32 bytes, random: it names this call), which is not done
        twice. Raises PeerUnreachable, DeadlineExceeded, RemoteError, BadMessage or MessageTooBig.
        """
        self.counters.calls_out += 1
        try:
            body = self._body(method.request).encode(message)
            check_size(body, method.frame_max)
            with trio.move_on_after(timeout_s) as scope:
                return await self._try(peer, method, body, key, scope.deadline)
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
        try:
            line = await self._reach(peer, method, timeout_s)
            call: CallSide[Q, R] | None = None
            try:
                request, reply = self._body(method.request), self._body(method.reply)
                call = line.new_call(method, request, reply)
                line.open(call, method.name)
                yield call
                call.end()
                if call.outgoing.is_empty or await call.drain(STALL_S):
                    line.leave(call)
            finally:
                if call is not None:
                    line.cancel(call)  # if it was not left: the handler would wait for the rest
                line.slots.release(method)
        except ShoalError:
            self.counters.errors_out += 1
            raise

    def serve(self, method: Method[Q, R], handler: Callable[[PeerId, Q], Awaitable[R]]) -> None:
        """Answer a unary method. A ShoalError raised by the handler reaches the caller typed."""
        self._add(method, None, handler)

    def serve_stream(
        self, method: Method[Q, R], handler: Callable[[Call[R, Q]], Awaitable[None]]
    ) -> None:
        """Answer a streaming method; returning from the handler ends the call."""
        self._add(method, handler, None)

    def network(self, name: str, *, frame_max: int = CONTROL_FRAME_MAX) -> Network:
        """Return request and answer by bytes, under a method name: what dht and crdt stand on.

        Both may be asked twice without harm, so they are asked again if the connection breaks.
        """
        return _ByteNetwork(self, Method(name, bytes, bytes, frame_max, is_repeatable=True))

    def answer(
        self,
        name: str,
        handler: Callable[[PeerId, bytes], Awaitable[bytes]],
        *,
        frame_max: int = CONTROL_FRAME_MAX,
    ) -> None:
        """Answer what peers ask through their `network(name)`."""
        self.serve(Method(name, bytes, bytes, frame_max), handler)

    def _add(self, method: Method[Any, Any], handler: Any, unary: Any) -> None:
        if method.name in self._endpoints:
            raise UsageError(f"{method.name} is served already")
        request, reply = self._body(method.request), self._body(method.reply)
        self._endpoints[method.name] = Endpoint(
            method.name, method.frame_max, method.at_once, request, reply, handler, unary
        )

    def _body(self, type_: type[Q]) -> BodyType[Q]:
        if type_ not in self._bodies:
            self._bodies[type_] = BodyType(type_)
        return self._bodies[type_]

    async def _try(
        self, peer: PeerId, method: Method[Any, R], body: bytes, key: bytes, until: float
    ) -> R:
        tries = TRIES_MAX if key or method.is_repeatable else 1
        for number in range(tries):
            line = self._lines.get(peer) or await self._line(peer)
            try:
                return await self._exchange(line, method, body, key, until)
            except PeerUnreachable:
                if line.lost is None or number == tries - 1:
                    raise
            self.counters.repeated += 1
            await trio.sleep(RETRY_S * 2**number * (0.5 + random.random()))
        raise AssertionError

    async def _exchange(
        self, line: CallerLine, method: Method[Any, R], body: bytes, key: bytes, until: float
    ) -> R:
        await line.slots.acquire(method)
        call: CallSide[Any, R] | None = None
        try:
            if line.outbox.is_full:
                await line.wait_for_room()
            call = line.new_call(method, self._body(method.request), self._body(method.reply))
            line.ask(call, method.name, body, key, until)
            reply = await call.receive()
            if not call.is_deaf:
                await self._nothing_more(call)
            return reply
        except trio.EndOfChannel:
            raise BadMessage(f"{method.name}: {line.peer} gave no answer") from None
        finally:
            if call is not None:
                line.cancel(call)
            line.slots.release(method)

    async def _nothing_more(self, call: CallSide[Any, Any]) -> None:
        """A server whose answer did not end the call must end it now."""
        try:
            await call.receive()
        except trio.EndOfChannel:
            return
        raise BadMessage(f"{call.peer} gave two answers to one call")

    async def _reach(self, peer: PeerId, method: Method[Any, Any], timeout_s: float) -> CallerLine:
        """Return a line with a place for a call. Raises PeerUnreachable, DeadlineExceeded."""
        with trio.move_on_after(timeout_s):
            line = await self._line(peer)
            await line.slots.acquire(method)
            return line
        raise DeadlineExceeded(f"{method.name}: {peer} not reached within {timeout_s:g} s")

    async def _line(self, peer: PeerId) -> CallerLine:
        """Return the line to a peer, opening it if there is none."""
        while (line := self._lines.get(peer)) is None:
            opening = self._openings.get(peer)
            if opening is None:
                return await self._open(peer)
            await opening.is_over.wait()
            if opening.error is not None:
                raise type(opening.error)(str(opening.error))
        return line

    async def _open(self, peer: PeerId) -> CallerLine:
        opening = self._openings[peer] = _Opening()
        try:
            stream = await self._host.open(peer, PROTOCOL, timeout_s=OPEN_S)
            line = self._lines[peer] = CallerLine(stream, self.counters, self._line_over)
            line.attach()
            if stream.is_retired and self._nursery is not None:
                self._nursery.start_soon(self._move, line)  # it was overtaken
            return line
        except (PeerUnreachable, DeadlineExceeded) as error:
            opening.error = error
            raise
        finally:
            del self._openings[peer]
            opening.is_over.set()

    def _line_over(self, line: CallerLine) -> None:
        if self._lines.get(line.peer) is line:
            del self._lines[line.peer]

    async def _move(self, line: CallerLine) -> None:
        """Let a line go on over a better connection; again, if another comes meanwhile."""
        if line in self._moving:
            return
        self._moving.add(line)
        try:
            while line.stream.is_retired and line.lost is None:
                if not await moves.move(self._host, line) and line.stream.is_retired:
                    self._line_over(line)  # its calls may end there; others get a new line
                    return
        finally:
            self._moving.discard(line)

    # the server's side

    async def _answer(self, stream: Stream) -> None:
        if self._enter(stream):
            served = self._served[stream.peer]
            shared = self._load, self._answers, served.budget, self._departures.add
            line = ServerLine(stream, self.counters, self._endpoints, *shared)
            if self._nursery is None:
                await self._serve(line)
            else:
                self._nursery.start_soon(self._serve, line)  # which may outlive the connection
                await moves.stay(line, stream)

    async def _serve(self, line: ServerLine) -> None:
        """Answer the calls on a line, on whatever stream it runs."""
        try:
            await line.run()
        except Exception:  # a boundary: one line's bug
            log.exception("rpc.line_failed peer=%s", line.stream.peer)
        finally:
            self._departures.forget(line)
            self._leave(line.stream.peer)

    async def _go_on(self, stream: Stream) -> None:
        """A caller moves a line to this stream."""
        if not self._enter(stream):
            return
        try:
            await stream.write(READY)
            found = await self._departures.meet(stream)
        finally:
            self._leave(stream.peer)
        if found is None:
            stream.drop()
            return
        line, token = found
        line.begin_move(stream, token)
        await moves.stay(line, stream)

    def _enter(self, stream: Stream) -> bool:
        """Count a line of a peer in, or refuse its stream."""
        served = self._served.setdefault(stream.peer, _Served())
        if served.lines >= LINES_OF_PEER_MAX:
            self.counters.refused += 1
            stream.drop()
            return False
        served.lines += 1
        return True

    def _leave(self, peer: PeerId) -> None:
        served = self._served[peer]
        served.lines -= 1
        if not served.lines:
            del self._served[peer]


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
