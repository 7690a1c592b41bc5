"""A line: one long-lived stream that carries many calls. What both of its ends share.

It is a sink (wire.ports): what arrives is handled on the reader's own turn, without a task or a
queue of its own; what goes out is pushed while the stream has room. Small frames go first, large
messages piece by piece and in turn, so that nobody waits behind somebody else's megabytes.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
import trio

from protocols.rpc import wire
from protocols.rpc.machine import Budget, Incoming, Outgoing
from wire import codec, frames
from wire.errors import BadMessage, PeerUnreachable, ShoalError
from wire.ports import Stream

M = TypeVar("M")

SMALL_BYTES = 16 * 1024  # a message up to this size goes before all large ones
URGENT_MAX_BYTES = 1024 * 1024  # of small frames waiting; when full, senders wait
URGENT_ABUSE_BYTES = 8 * URGENT_MAX_BYTES  # beyond what all senders that wait add when they wake
BUDGET_BYTES = 64 * 1024 * 1024  # of what a peer sends us: windows that grew, large messages
WAITING_BYTES = 64 * 1024 * 1024  # of messages to one peer that wait; when full, senders wait
QUIET_CALLS = 2  # up to so many calls a frame goes out at once; beyond, frames are coalesced


@dataclass
class RpcCounters:
    """Totals since the start; bytes are those of RPC frames, both as caller and as server."""

    calls_out: int = 0
    calls_in: int = 0
    errors_out: int = 0  # calls of ours that failed, whatever the reason
    errors_in: int = 0  # calls that we answered with an error
    refused: int = 0  # calls that we answered "busy"
    repeated: int = 0  # calls of ours that were made again after the connection broke
    replayed: int = 0  # calls with a key that we answered from memory
    bad_messages: int = 0  # calls to us, or lines, that broke the protocol
    bytes_out: int = 0
    bytes_in: int = 0
    active_in: int = 0  # calls being answered now
    lines: int = 0  # open now, both ways
    moved: int = 0  # times that a line went on over a better connection, both ways


class Outbox:
    """Which frame goes next: the small ones in order, then one of each call that has pieces."""

    def __init__(self) -> None:
        self._urgent: deque[bytes] = deque()
        self._ring: OrderedDict[Outgoing, None] = OrderedDict()  # whose turn is next, in order
        self.urgent_bytes = 0
        self.waiting = Budget(WAITING_BYTES)  # of messages that wait for a turn or for credit

    def __bool__(self) -> bool:
        return bool(self._urgent or self._ring)

    @property
    def is_full(self) -> bool:
        """Tell whether so much waits that who sends more must wait."""
        return self.urgent_bytes > URGENT_MAX_BYTES or self.waiting.left_bytes < 0

    def put(self, frame: bytes) -> None:
        """Queue a small frame."""
        self._urgent.append(frame)
        self.urgent_bytes += len(frame)

    def ready(self, outgoing: Outgoing) -> None:
        """Let a call take its turns, if it has something that may go."""
        if outgoing.is_ready:
            self._ring.setdefault(outgoing)

    def drop(self, outgoing: Outgoing) -> None:
        """Nothing of what a call has queued is wanted any more."""
        self._ring.pop(outgoing, None)
        outgoing.drop()

    def next_frame(self) -> tuple[bytes, Outgoing | None] | None:
        """Remove and return the next frame, and the call whose turn it was."""
        if self._urgent:
            frame = self._urgent.popleft()
            self.urgent_bytes -= len(frame)
            return frame, None
        while self._ring:
            outgoing = next(iter(self._ring))
            if not outgoing.is_ready:
                del self._ring[outgoing]
                continue
            frame = outgoing.next_frame()
            if outgoing.is_ready:
                self._ring.move_to_end(outgoing)
            else:
                del self._ring[outgoing]
            return frame, outgoing
        return None


class CallEnd(Protocol):
    """What a line needs of a call: its two directions, and to be told what happened."""

    incoming: Incoming
    outgoing: Outgoing

    def on_progress(self) -> None:
        """Some of what waited has gone out."""
        ...

    def on_lost(self, error: PeerUnreachable) -> None:
        """The line is gone."""
        ...

    def fail(self, error: ShoalError) -> None:
        """The call is over, with an error."""
        ...


C = TypeVar("C", bound=CallEnd)


class Nobody:
    """A sink for what still comes on a stream that a line has left: nothing, or nonsense."""

    def on_data(self, data: bytes | memoryview) -> None:
        """Refuse it."""
        raise BadMessage(f"{len(data)} B after the last message")

    def on_room(self) -> None:
        """Nothing is said here any more."""

    def on_end(self, error: PeerUnreachable | None) -> None:
        """As it should."""


class Line(Generic[C, M]):
    """One end of a line. A subclass handles the messages; `attach` begins."""

    def __init__(
        self,
        stream: Stream,
        decoder: msgspec.msgpack.Decoder[M],
        counters: RpcCounters,
        budget: Budget,
    ) -> None:
        self.stream, self.counters = stream, counters
        self.calls: dict[int, C] = {}
        self.budget = budget
        self.outbox = Outbox()
        self.lost: PeerUnreachable | None = None  # why the line is over, if it is
        self.room = trio.lowlevel.ParkingLot()  # senders wait here while too much waits to be sent
        self.turned = trio.lowlevel.ParkingLot()  # it has moved, or is lost
        self.successor: Stream | None = None  # where it goes on, once both sides have said so
        self._token = b""  # of the move
        self._has_said_so = False
        self._decoder = decoder
        self._parser = frames.FrameParser(wire.FRAME_MAX)
        self._senders: dict[Outgoing, C] = {}

    def attach(self) -> None:
        """Begin to read; may handle the first messages before it returns."""
        self.counters.lines += 1
        self.stream.attach(self)

    def add(self, number: int, call: C) -> None:
        """A call begins."""
        self.calls[number] = call
        self._senders[call.outgoing] = call

    def forget(self, number: int) -> None:
        """A call is over: what still comes of it is ignored."""
        call = self.calls.pop(number, None)
        if call is not None:
            del self._senders[call.outgoing]
            self.drop(call.outgoing)
            call.incoming.release()

    def drop(self, outgoing: Outgoing) -> None:
        """Nothing of what a call has queued is wanted any more: there may be room for others."""
        was_full = self.outbox.is_full
        self.outbox.drop(outgoing)
        if was_full and not self.outbox.is_full:
            self.room.unpark_all()

    def say(self, message: object) -> None:
        """Send a small message of the protocol, before all that waits."""
        self.put(frames.pack(codec.encode(message)))

    def put(self, frame: bytes) -> None:
        """Send a small frame, before all that waits."""
        if self.lost is None:
            self.outbox.put(frame)
            self.fill()

    def send(self, outgoing: Outgoing) -> None:
        """Send what a call has queued, as far as it may go now."""
        self.outbox.ready(outgoing)
        self.fill()

    def fill(self) -> None:
        """Push frames while the stream has room."""
        stream, outbox = self.stream, self.outbox
        if self.successor is not None:
            self._say_move()
            return
        if not outbox:
            return
        is_quiet = len(self.calls) <= QUIET_CALLS
        was_full = outbox.is_full
        while stream.has_room and (found := outbox.next_frame()):
            frame, outgoing = found
            self.counters.bytes_out += len(frame)
            stream.push(frame, now=is_quiet and not outbox)  # what goes together, at the end
            if outgoing is not None and (call := self._senders.get(outgoing)):
                call.on_progress()
        if was_full and not outbox.is_full:
            self.room.unpark_all()

    async def wait_for_room(self) -> None:
        """Wait while too much waits to be sent."""
        while self.outbox.is_full and self.lost is None:
            await self.room.park()

    def begin_move(self, stream: Stream, token: bytes) -> None:
        """Say no more on the present stream but where we go on: on this one, when `go_on` is called
        by who knows that the other side has said the same.
        """
        assert self.successor is None, "moves twice at once"
        self.successor, self._token, self._has_said_so = stream, token, False
        self.fill()

    def _say_move(self) -> None:
        """Say it, once the stream takes it."""
        if not self._has_said_so and self.stream.has_room:
            self._has_said_so = True
            frame = frames.pack(codec.encode(wire.Move(self._token)))
            self.counters.bytes_out += len(frame)
            self.stream.push(frame, now=True)
            self.on_said_move()

    def on_said_move(self) -> None:
        """Our last word on the present stream is said."""

    def go_on(self) -> None:
        """Both sides have said their last word on the present stream: go on with the next."""
        assert self.successor is not None
        old, self.stream, self.successor = self.stream, self.successor, None
        self._parser = frames.FrameParser(wire.FRAME_MAX)
        self.counters.moved += 1
        old.attach(Nobody())
        self.stream.attach(self)
        self.turned.unpark_all()
        self.fill()

    def take(self, message: M) -> None:
        """Handle one message. Raises BadMessage."""
        raise NotImplementedError

    def give_credit(self, number: int, incoming: Incoming) -> None:
        """Let the other side of a call send more, if it is time to."""
        if size_bytes := incoming.grant():
            self.say(wire.Credit(number, size_bytes))

    def first_credit(self, number: int, incoming: Incoming) -> bytes:
        """Return the frame that lets the other side begin with more, or nothing."""
        size_bytes = incoming.widen()
        return frames.pack(codec.encode(wire.Credit(number, size_bytes))) if size_bytes else b""

    # wire.ports.Sink

    def on_data(self, data: bytes | memoryview) -> None:
        """Handle what arrived. Raises BadMessage, which ends the line."""
        self.counters.bytes_in += len(data)
        try:
            for frame in self._parser.feed(data):
                self.take(codec.decode(frame, self._decoder, wire.FRAME_MAX))
                if self.outbox.urgent_bytes > URGENT_ABUSE_BYTES:  # errors and credit never wait
                    raise BadMessage("asks more than it reads")
        except BadMessage as error:
            self.counters.bad_messages += 1
            for call in list(self.calls.values()):
                call.fail(BadMessage(str(error)))
            raise

    def on_room(self) -> None:
        """Push on."""
        self.fill()

    def on_end(self, error: PeerUnreachable | None) -> None:
        """All calls of the line are over."""
        if self.lost is None:
            self.counters.lines -= 1
            self.lost = error or PeerUnreachable(f"{self.stream.peer} has ended the connection")
            for call in list(self.calls.values()):
                call.on_lost(self.lost)
            self.room.unpark_all()
            self.turned.unpark_all()


def new_budget() -> Budget:
    """Return what a caller's line, or all lines that one peer opened, may hold."""
    return Budget(BUDGET_BYTES)


def unknown(number: int, first_unused: int) -> None:
    """Accept a message of a call that is over. Raises BadMessage if it never was."""
    if number >= first_unused:
        raise BadMessage(f"a message of call {number}, which was never made")
