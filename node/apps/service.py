"""Methods of users' own programs, called by peers: what `shoal rpc` and `client.rpc` stand on.

Values are passed on as they are, once their bounds are checked. Who answers is decided in
`places.py`; the programs' connections are in node/control/links.py.
"""

import math
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio
from msgspec import Raw

from node.apps.places import Incoming, Places
from node.apps.wire import (
    CALL,
    DEADLINE_MAX_S,
    LIST,
    STREAM,
    Ask,
    List,
    Listing,
    Offered,
    Open,
    Up,
    Value,
    check,
    check_own,
    name_of,
)
from wire.errors import BadMessage, Busy, DeadlineExceeded, RemoteError, UsageError
from wire.faults import OnFailure
from wire.ids import PeerId
from wire.ports import Call, Rpc

OPEN_S = 10.0  # for the first message of a stream: against those who open and are silent


@dataclass
class AppCounters:
    """Totals since the start."""

    calls_out: int = 0
    calls_in: int = 0
    errors_out: int = 0  # calls of ours that failed, whatever the reason
    errors_in: int = 0  # calls that we answered with an error
    refused: int = 0  # calls that we answered "busy"

    def add_error_out(self) -> None:
        """Count a call of ours that failed."""
        self.errors_out += 1

    def add_error_in(self) -> None:
        """Count a call that we answered with an error."""
        self.errors_in += 1


class AppRpc:
    """Calls methods of peers' programs, and lets the programs of this node answer."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self.places = Places()
        self.counters = AppCounters()
        rpc.serve(CALL, self._answer_call)
        rpc.serve_stream(STREAM, self._answer_stream)
        rpc.serve(LIST, self._answer_list)

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._rpc.peer

    async def call(self, peer: PeerId, method: str, value: bytes, *, timeout_s: float) -> Raw:
        """One value there, one back. Raises what `Rpc.call` does, and UsageError."""
        with self._counted(peer):
            await check_own(value)
            ask = Ask(name_of(method), Raw(value))
            try:
                answer = await self._rpc.call(peer, CALL, ask, timeout_s=timeout_s)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"{method}: no answer within {timeout_s:g} s") from error
            await check(answer.value)
            return answer.value

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, method: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator["Outgoing"]:
        """Open a call with any number of values each way; `timeout_s` bounds all of it."""
        left_s = DEADLINE_MAX_S if timeout_s is None else min(timeout_s, DEADLINE_MAX_S)
        with self._counted(peer):
            with trio.move_on_after(math.inf if timeout_s is None else left_s):
                async with self._rpc.stream(peer, STREAM, timeout_s=min(left_s, OPEN_S)) as call:
                    deadline_ms = 0 if timeout_s is None else math.ceil(left_s * 1000)
                    await call.send(Up(Open(name_of(method), deadline_ms)))
                    yield Outgoing(call)
                return
            raise DeadlineExceeded(f"{method}: not done within {left_s:g} s")

    async def methods(self, peer: PeerId, *, timeout_s: float) -> list[Offered]:
        """Ask a peer which methods its programs serve."""
        if peer == self.peer:
            return self.places.offered()
        return (await self._rpc.call(peer, LIST, List(), timeout_s=timeout_s)).methods

    async def _dispatch(self, call: Incoming) -> None:
        async with self.places.take(call.method, call.peer) as place:
            await place.answer(call)

    async def _answer_call(self, peer: PeerId, ask: Ask) -> Value:
        with self._answering():
            await check(ask.value)
            call = _One(peer, ask.method, ask.value)
            await self._dispatch(call)
            if call.answer is None:
                raise RemoteError("no_answer", f"{ask.method} ended without an answer")
            return Value(call.answer)

    async def _answer_stream(self, call: Call[Value, Up]) -> None:
        with self._answering():
            opening = await _opening(call)
            left_s = opening.deadline_ms / 1000 or math.inf
            with trio.move_on_after(left_s):
                await self._dispatch(_Many(call, opening.method))
                return
            raise DeadlineExceeded(f"{opening.method}: over the caller's deadline")

    async def _answer_list(self, _peer: PeerId, _message: List) -> Listing:
        return Listing(self.places.offered())

    @contextmanager
    def _answering(self) -> Generator[None]:
        self.counters.calls_in += 1
        with OnFailure(self.counters.add_error_in, Exception):
            try:
                yield
            except Busy:
                self.counters.refused += 1
                raise

    @contextmanager
    def _counted(self, peer: PeerId) -> Generator[None]:
        if peer == self.peer:
            raise UsageError(
                "that is this node itself", hint="name another member: `shoal members`"
            )
        self.counters.calls_out += 1
        with OnFailure(self.counters.add_error_out, Exception):
            yield


class Outgoing:
    """A streaming call to a peer's program, in values."""

    def __init__(self, call: Call[Up, Value]) -> None:
        self._call = call

    async def send(self, value: Raw) -> None:
        """Send one value; waits while the program is not reading. Raises UsageError."""
        await check_own(value)
        await self._call.send(Up(Value(value)))

    async def finish(self) -> None:
        """Say that no more values come from this side."""
        await self._call.finish()

    async def receive(self) -> Raw:
        """Return the next value. Raises trio.EndOfChannel at the end, RemoteError on failure."""
        value = (await self._call.receive()).value
        await check(value)
        return value


class _One:
    """A call with one value each way, as the program sees it."""

    def __init__(self, peer: PeerId, method: str, value: Raw) -> None:
        self.peer, self.method = peer, method
        self._value: Raw | None = value
        self.answer: Raw | None = None

    async def receive(self) -> Raw:
        """Return the value, once."""
        value, self._value = self._value, None
        if value is None:
            raise trio.EndOfChannel
        return value

    async def send(self, value: Raw) -> None:
        """Take the answer. Raises RemoteError if it is a second one."""
        if self.answer is not None:
            raise RemoteError("is_stream", f"{self.method} answers with a stream; call it as one")
        await _check_answer(value)
        self.answer = value


class _Many:
    """A streaming call, as the program sees it."""

    def __init__(self, call: Call[Value, Up], method: str) -> None:
        self._call, self.method = call, method

    @property
    def peer(self) -> PeerId:
        """Who calls."""
        return self._call.peer

    async def receive(self) -> Raw:
        """Return the caller's next value. Raises trio.EndOfChannel after the last."""
        body = (await self._call.receive()).body
        if not isinstance(body, Value):
            raise BadMessage("a stream is opened once")
        await check(body.value)
        return body.value

    async def send(self, value: Raw) -> None:
        """Answer with one more value."""
        await _check_answer(value)
        await self._call.send(Value(value))


async def _check_answer(value: Raw) -> None:
    """Bound what a program answers: over the bounds, it is the program that fails."""
    try:
        await check_own(value)
    except UsageError as error:
        raise RemoteError("bad_answer", str(error)) from error


async def _opening(call: Call[Value, Up]) -> Open:
    with trio.move_on_after(OPEN_S):
        try:
            body = (await call.receive()).body
        except trio.EndOfChannel:
            raise BadMessage("the stream ended before it named its method") from None
        if not isinstance(body, Open):
            raise BadMessage("a stream begins with the name of its method")
        return body
    raise DeadlineExceeded(f"no method was named within {OPEN_S:g} s")
