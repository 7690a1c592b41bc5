"""The server's end of a line: it runs a handler per call."""

import functools
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from protocols.rpc import wire
from protocols.rpc.answers import Answers
from protocols.rpc.call import BodyType, CallSide
from protocols.rpc.line import Line, RpcCounters, unknown
from protocols.rpc.machine import Budget, check_size
from protocols.rpc.wire import (
    CODE_MAX,
    RETRY_MAX_MS,
    TEXT_MAX,
    Ask,
    Cancel,
    Credit,
    Data,
    End,
    Fail,
    Left,
    Move,
    Open,
)
from wire.errors import BadMessage, Busy, DeadlineExceeded, RemoteError, ShoalError
from wire.faults import root_cause
from wire.ids import PeerId
from wire.ports import Stream

CALLS_MAX = 256  # of one peer answered at a time, on all its lines (facts: security, 3.4)
STALL_S = 10.0  # for some of an answer to go out; then the call is given up

_CODE = re.compile(r"[a-z0-9_]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A method we answer: `handler` gets the call, `unary` its request; one of them is there."""

    name: str
    frame_max: int
    at_once: int
    request: BodyType[Any]
    reply: BodyType[Any]
    handler: Callable[[CallSide[Any, Any]], Awaitable[None]] | None = None
    unary: Callable[[PeerId, Any], Awaitable[Any]] | None = None

    async def reply_to(self, peer: PeerId, request: object) -> bytes:
        """Return the encoded answer of a unary method. Raises MessageTooBig, and what it raises."""
        assert self.unary is not None
        body = self.reply.encode(await self.unary(peer, request))
        check_size(body, self.frame_max)
        return body


@dataclass
class Load:
    """Calls being answered now, by peer and by (peer, method); only those that are there."""

    calls: Counter[object] = field(default_factory=Counter[object])

    def enter(self, peer: PeerId, endpoint: Endpoint) -> None:
        """Count a call in. Raises Busy if a limit is reached."""
        if self.calls[peer] >= CALLS_MAX:
            raise Busy(f"more than {CALLS_MAX} calls of yours at a time")
        if self.calls[peer, endpoint.name] >= endpoint.at_once:
            raise Busy(f"more than {endpoint.at_once} calls of {endpoint.name} of yours at a time")
        self.calls[peer] += 1
        self.calls[peer, endpoint.name] += 1

    def leave(self, peer: PeerId, endpoint: Endpoint) -> None:
        """Count a call out."""
        for key in (peer, (peer, endpoint.name)):
            self.calls[key] -= 1
            if not self.calls[key]:
                del self.calls[key]


class Incall(CallSide[Any, Any]):
    """One call of a peer. `scope` is that of its handler."""

    endpoint: Endpoint
    key: bytes
    deadline: float
    scope: trio.CancelScope


class ServerLine(Line[Incall, wire.ToServer]):
    """Answers the calls on a stream that a peer opened."""

    def __init__(
        self,
        stream: Stream,
        counters: RpcCounters,
        endpoints: dict[str, Endpoint],
        load: Load,
        answers: Answers,
        budget: Budget,
        on_leaving: Callable[["ServerLine", bytes], None],
    ) -> None:
        """`on_leaving`: the caller has said that it goes on where it gave this token."""
        super().__init__(stream, wire.server_decoder, counters, budget)
        self._on_leaving = on_leaving
        self.leaving: bytes | None = None  # the token, until it has moved
        self._endpoints, self._load, self._answers = endpoints, load, answers
        self._first_unused = 0
        self._is_over = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Answer calls until the line is over; then its handlers are cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.attach()
            try:
                await self._is_over.wait()
            finally:
                self._nursery = None
                self.stream.drop()
            nursery.cancel_scope.cancel()

    def on_end(self, error: Any) -> None:
        """All calls of the line are over."""
        super().on_end(error)
        self._is_over.set()

    def on_said_move(self) -> None:
        """The caller has said its last word before we could say ours."""
        self.leaving = None
        self.go_on()

    def take(self, message: wire.ToServer) -> None:
        """Handle one message of the caller. Raises BadMessage."""
        if isinstance(message, Ask | Open):
            self._begin(message)
            return
        if isinstance(message, Move):
            if self.leaving is not None:
                raise BadMessage("a message after the last")
            self.leaving = message.token
            self._on_leaving(self, message.token)
            return
        call = self.calls.get(message.call)
        if call is None:
            unknown(message.call, self._first_unused)
        elif isinstance(message, Credit):
            call.outgoing.credit(message.size_bytes)
            self.outbox.ready(call.outgoing)
            self.fill()
        elif isinstance(message, End):
            call.incoming.end()
            call.wake()
        elif isinstance(message, Left):
            call.leave()
        elif isinstance(message, Cancel):
            self.forget(call.number)
            call.leave()
            call.scope.cancel()
        else:
            self._put(call, message)

    def _begin(self, message: Ask | Open) -> None:
        if message.call < self._first_unused:
            raise BadMessage(f"call {message.call} was made before")
        self._first_unused = message.call + 1
        self.counters.calls_in += 1
        if self._nursery is None:
            return  # the line ends
        endpoint = self._endpoints.get(message.method)
        try:
            if endpoint is None:
                raise RemoteError("unknown_method", f"no method {message.method} here")
            self._load.enter(self.stream.peer, endpoint)
        except ShoalError as error:
            self.counters.refused += isinstance(error, Busy)
            self._fail(message.call, error)
            return
        call = Incall(self, message.call, endpoint.frame_max, endpoint.reply, endpoint.request)
        call.endpoint, call.key, call.scope = endpoint, message.key, trio.CancelScope()
        if message.deadline_ms:
            call.scope.deadline = trio.current_time() + message.deadline_ms / 1000
        self.add(message.call, call)
        self.counters.active_in += 1
        self._nursery.start_soon(self._answer, call)
        if isinstance(message, Ask):
            self._put(call, Data(message.call, message.body))
            call.incoming.end()
        elif frame := self.first_credit(call.number, call.incoming):
            self.put(frame)

    def _put(self, call: Incall, piece: wire.Part | Data) -> None:
        try:
            call.incoming.put(piece)
        except Busy as error:
            call.fail(error)
            call.scope.cancel()
            return
        if call.incoming.has_message:
            call.wake()
        else:
            self.give_credit(call.number, call.incoming)

    async def _answer(self, call: Incall) -> None:
        """Run the handler of one call, and tell the caller how it ended."""
        failure: ShoalError | None = None
        try:
            with call.scope:
                if call.endpoint.unary is not None:
                    await self._answer_unary(call)
                else:
                    assert call.endpoint.handler is not None
                    await call.endpoint.handler(call)
                    call.end()
                if not call.outgoing.is_empty and not await call.drain(STALL_S):
                    failure = DeadlineExceeded(f"no progress within {STALL_S:g} s")
            if call.scope.cancelled_caught:
                late = DeadlineExceeded(f"{call.endpoint.name}: over the caller's deadline")
                failure = call.failure or late
        except Exception as error:  # a boundary: the handler's fault is its call's alone
            failure = _explain(error, call.endpoint.name)
        finally:
            self._load.leave(call.peer, call.endpoint)
            self.counters.active_in -= 1
            if failure is not None and call.number in self.calls:
                self._fail(call.number, failure)
            self.forget(call.number)

    async def _answer_unary(self, call: Incall) -> None:
        try:
            request = await call.receive()
        except trio.EndOfChannel:
            raise BadMessage("the request is missing") from None
        await self.wait_for_room()  # who does not read our answers gets no more of them
        endpoint = call.endpoint
        if call.key:
            name = (call.peer, endpoint.name, call.key)
            work = functools.partial(endpoint.reply_to, call.peer, request)
            body, is_old = await self._answers.once(name, work)
            self.counters.replayed += is_old
        else:
            body = await endpoint.reply_to(call.peer, request)
        if not call.is_deaf:
            call.put(body, is_reply=True)

    def _fail(self, number: int, error: ShoalError) -> None:
        """Answer with an error; fits code and text to their bounds."""
        self.counters.errors_in += 1
        self.counters.bad_messages += isinstance(error, BadMessage)
        code = error.code
        if len(code) > CODE_MAX or not _CODE.fullmatch(code):
            code = "failed"
        text = str(error).encode(errors="replace").decode()[:TEXT_MAX]
        retry_s = error.retry_after_s if isinstance(error, Busy) else None
        retry_ms = min(max(0, round(1000 * (retry_s or 0.0))), RETRY_MAX_MS)
        self.say(Fail(number, code, text, retry_ms))


def _explain(error: Exception, method: str) -> ShoalError:
    """Return what the caller may know of an error; what is not ours is logged in full."""
    inner = root_cause(error)
    if isinstance(inner, ShoalError):
        return inner
    log.error("rpc.handler_failed method=%s", method, exc_info=error)
    return RemoteError("internal", f"{method} failed at the server: {type(inner).__name__}")
