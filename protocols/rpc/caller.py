"""The caller's end of a line: it numbers the calls and hears the answers."""

import math
from collections.abc import Callable
from typing import Any

import trio

from protocols.rpc import wire
from protocols.rpc.call import BodyType, CallSide
from protocols.rpc.line import SMALL_BYTES, Line, RpcCounters, new_budget, unknown
from protocols.rpc.wire import (
    DEADLINE_MAX_MS,
    Cancel,
    Credit,
    End,
    Fail,
    Left,
    Move,
    Open,
    Reply,
)
from wire import codec, frames
from wire.errors import BadMessage, Busy, PeerUnreachable, RemoteError, typed_error
from wire.ids import PeerId
from wire.ports import Method, Stream

LOOK_S = 0.5  # between two looks whether the stream that we move to still stands
CALLS_MAX = 192  # on one line at a time; more wait here. The other side answers 256 of a peer

Outcall = CallSide[Any, Any]


class Slots:
    """How many calls there may be at a time: on the line, and of each method."""

    def __init__(self) -> None:
        self._line = trio.Semaphore(CALLS_MAX)
        self._methods: dict[str, trio.Semaphore] = {}

    async def acquire(self, method: Method[Any, Any]) -> None:
        """Wait for a place."""
        limit = self._limit(method)
        if limit is not None:
            await _acquire(limit)
        try:
            await _acquire(self._line)
        except trio.Cancelled:
            if limit is not None:
                limit.release()
            raise

    def release(self, method: Method[Any, Any]) -> None:
        """Give a place back."""
        self._line.release()
        if limit := self._limit(method):
            limit.release()

    def _limit(self, method: Method[Any, Any]) -> trio.Semaphore | None:
        if method.at_once >= CALLS_MAX:
            return None
        if method.name not in self._methods:
            self._methods[method.name] = trio.Semaphore(method.at_once)
        return self._methods[method.name]


async def _acquire(semaphore: trio.Semaphore) -> None:
    try:
        semaphore.acquire_nowait()
    except trio.WouldBlock:
        await semaphore.acquire()


class CallerLine(Line[Outcall, wire.ToCaller]):
    """Makes calls on a stream that we opened. `on_over` is called once, when it is lost."""

    def __init__(
        self, stream: Stream, counters: RpcCounters, on_over: Callable[["CallerLine"], None]
    ) -> None:
        super().__init__(stream, wire.caller_decoder, counters, new_budget())
        self.slots = Slots()
        self._next_number = 0
        self._on_over = on_over
        self._waiting = set[int]()  # calls that somebody waits for the answer of

    def new_call(
        self, method: Method[Any, Any], request: BodyType[Any], reply: BodyType[Any]
    ) -> Outcall:
        """Number a call; `open` or `ask` makes it."""
        if self.lost is not None:
            raise PeerUnreachable(str(self.lost))
        number = self._next_number
        self._next_number += 1
        call = Outcall(self, number, method.frame_max, request, reply)
        self.add(number, call)
        return call

    def open(self, call: Outcall, method: str) -> None:
        """Begin a streaming call."""
        self._begin(call, frames.pack(codec.encode(Open(call.number, method, 0))))

    def ask(self, call: Outcall, method: str, body: bytes, key: bytes, until: float) -> None:
        """Make a unary call: one message and the end of our side."""
        left_ms = (until - trio.current_time()) * 1000
        deadline_ms = max(1, math.ceil(left_ms)) if left_ms < DEADLINE_MAX_MS else DEADLINE_MAX_MS
        if not self._waiting:
            self.stream.expect(waits=True)
        self._waiting.add(call.number)
        if len(body) <= SMALL_BYTES:
            call.outgoing.ended = True
            self._begin(call, wire.pack_ask(call.number, method, deadline_ms, key, body))
            return
        self._begin(call, frames.pack(codec.encode(Open(call.number, method, deadline_ms, key))))
        call.put(body)
        call.end()

    def _begin(self, call: Outcall, frame: bytes) -> None:
        self.put(frame + self.first_credit(call.number, call.incoming))

    def cancel(self, call: Outcall) -> None:
        """Give a call up; its handler is cancelled."""
        if call.number in self.calls and not call.is_deaf:
            self.say(Cancel(call.number))
        self.forget(call.number)

    def leave(self, call: Outcall) -> None:
        """End a call that its holder is through with; its handler may finish."""
        if call.number in self.calls and not call.is_deaf:
            self.say(Left(call.number))
        self.forget(call.number)

    def forget(self, number: int) -> None:
        """A call is over: what still comes of it is ignored."""
        super().forget(number)
        if number in self._waiting:
            self._waiting.discard(number)
            if not self._waiting:
                self.stream.expect(waits=False)

    async def move(self, stream: Stream, token: bytes) -> bool:
        """Go on over another stream, which the server knows by the token. False if the line is lost
        instead. Until the server has heard, which takes a round trip, what is sent waits here.
        """
        if self.lost is None:
            self.begin_move(stream, token)
        while self.stream is not stream and self.lost is None:
            with trio.move_on_after(LOOK_S):
                await self.turned.park()
            if self.stream is not stream and not stream.has_room:
                return False  # nothing was pushed to it yet: it broke before it was used
        return self.lost is None

    def go_on(self) -> None:
        """The server has heard and said everything on the present stream."""
        old = self.stream
        super().go_on()
        old.drop()
        if self._waiting:
            self.stream.expect(waits=True)

    def take(self, message: wire.ToCaller) -> None:
        """Handle one message of the server. Raises BadMessage."""
        if isinstance(message, Move):
            if self.successor is None or message.token != self._token:
                raise BadMessage("the server moves a line that is not its own")
            self.go_on()
            return
        call = self.calls.get(message.call)
        if call is None:
            unknown(message.call, self._next_number)
            return
        if isinstance(message, Reply):
            self._put(call, message)
            call.incoming.end()
            call.leave()
        elif isinstance(message, Credit):
            call.outgoing.credit(message.size_bytes)
            self.outbox.ready(call.outgoing)
            self.fill()
        elif isinstance(message, End):
            call.incoming.end()
            call.leave()
        elif isinstance(message, Fail):
            call.fail(_received(message))
        else:
            if call.is_deaf:
                raise BadMessage("a message after the end of its call")
            self._put(call, message)
            call.wake()

    def on_end(self, error: PeerUnreachable | None) -> None:
        """All calls of the line are over."""
        super().on_end(error)
        self._on_over(self)
        self.stream.drop()  # a server that only finished leaves our direction open

    def _put(self, call: Outcall, piece: wire.Part | wire.Data | Reply) -> None:
        try:
            call.incoming.put(piece)
        except Busy as error:
            self.cancel(call)
            call.fail(error)
            return
        if not call.incoming.has_message:
            self.give_credit(call.number, call.incoming)

    @property
    def peer(self) -> PeerId:
        """Who answers."""
        return self.stream.peer


def _received(fail: Fail) -> RemoteError:
    """Return a server's error as its caller sees it."""
    return typed_error(
        fail.code, _printable(fail.message), retry_after_s=fail.retry_ms / 1000 or None
    )


def _printable(text: str) -> str:
    """A peer's words go to logs and terminals: no line breaks, escapes or turned directions."""
    return "".join(character if character.isprintable() else "?" for character in text)
