"""A call in progress on its stream: the thin trio driver of `machine.CallMachine`.

One task pumps the stream into a bounded queue; whoever holds the call sends and receives. A queue
that nobody reads stalls the pump, and so, through the stream's window, the sender at the far end;
then a reset, too, is noticed only once what came before it has been received.
"""

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import msgspec
import trio

from protocols.rpc.machine import CallMachine, Ended, Event, Failed, Got
from wire import codec
from wire.errors import BadMessage, PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Stream

Out = TypeVar("Out")
In = TypeVar("In")
T = TypeVar("T")

READ_BYTES = 64 * 1024  # per read; what the stream carries best (facts: network, section 1)
QUEUE_MAX = 8  # messages that wait to be received; when full, the sender waits
QUEUE_BYTES = 256 * 1024  # the same in bytes, though one message always fits


@dataclass
class RpcCounters:
    """Totals since the start; bytes are those of RPC frames, both as caller and as server."""

    calls_out: int = 0
    calls_in: int = 0
    errors_out: int = 0  # calls of ours that failed, whatever the reason
    errors_in: int = 0  # calls that we answered with an error
    refused: int = 0  # calls that we answered "busy"
    bad_messages: int = 0  # calls to us that broke the protocol
    bytes_out: int = 0
    bytes_in: int = 0
    active_in: int = 0  # calls being answered now


class Body(Generic[T]):
    """Encodes and decodes the messages of one type; `bytes` are sent as they are."""

    def __init__(self, type_: type[T]) -> None:
        self._type = type_
        self._decoder = msgspec.msgpack.Decoder(type_)

    def encode(self, message: T) -> bytes:
        """Return the bytes of a message."""
        return message if isinstance(message, bytes) else codec.encode(message)

    def decode(self, body: bytes, max_size: int) -> T:
        """Return the message in `body`. Raises BadMessage."""
        if self._type is bytes:
            return cast(T, body)
        return codec.decode(body, self._decoder, max_size)


class StreamCall(Generic[Out, In]):
    """One side of a call: `wire.ports.Call`. One task may send while another receives."""

    def __init__(
        self,
        stream: Stream,
        machine: CallMachine,
        outgoing: Body[Out],
        incoming: Body[In],
        counters: RpcCounters,
    ) -> None:
        self._stream, self._machine, self._counters = stream, machine, counters
        self._outgoing, self._incoming = outgoing, incoming
        room = max(1, min(QUEUE_MAX, QUEUE_BYTES // max(1, machine.frame_max)))
        self._arrived, self._inbox = trio.open_memory_channel[bytes](room)  # full: wait
        self._failure: ShoalError | None = None
        self._write_lock = trio.Lock()
        self._sending = trio.move_on_after(math.inf)
        self._tail = b""
        self.over = trio.Event()  # nothing more comes from the other side
        self.is_broken = False  # reset, or broke the protocol: nobody hears us any more
        self.has_left = False  # the other side closed its stream in good order

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._stream.peer

    async def send(self, message: Out) -> None:
        """Send one message; waits while the other side is not reading.

        Cancelling it in the middle breaks the call. Raises MessageTooBig, PeerUnreachable, or
        RemoteError if the server has failed or is done ("call_ended").
        """
        body = self._outgoing.encode(message)
        async with self._write_lock:
            self._check_heard()
            await self._write(self._machine.send(body))

    def hold(self, message: Out) -> None:
        """Keep a message back, to go out together with the end of the call: one write less."""
        self._tail += self._machine.send(self._outgoing.encode(message))

    async def receive(self) -> In:
        """Return the next message. Raises trio.EndOfChannel at the end, RemoteError on failure,
        PeerUnreachable if the call broke, BadMessage if the message is none.
        """
        try:
            body = await self._inbox.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            raise
        return self._incoming.decode(body, self._machine.frame_max)

    async def finish(self) -> None:
        """Say that no more messages come from this side. Does nothing the second time."""
        async with self._write_lock:
            if not self._machine.ended and not self.is_broken and not self.has_left:
                await self._write(self._machine.end())

    async def close(self) -> None:
        """Write what was held, end our side if it has not ended, close our half of the stream."""
        async with self._write_lock:
            if not self._machine.ended:
                self._tail += self._machine.end()
            if self._tail:
                await self._stream.write(self._tail)
                self._counters.bytes_out += len(self._tail)
            await self._stream.finish()

    def __aiter__(self) -> AsyncIterator[In]:
        """Iterate over messages until the end."""
        return self

    async def __anext__(self) -> In:
        """Return the next message."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def pump(self, on_break: Callable[[], None]) -> None:
        """Read the stream to its end; `on_break` is called if that is not an orderly one."""
        try:
            while True:
                while (event := self._machine.next_event()) is not None:
                    await self._take(event)
                data = await self._stream.read(READ_BYTES)
                if not data:
                    self._machine.feed_eof()
                    self.has_left = True
                    break
                self._counters.bytes_in += len(data)
                self._machine.feed(data)
        except (PeerUnreachable, BadMessage) as error:
            self._failure = self._failure or error
            self.is_broken = True
            on_break()
        finally:
            self._arrived.close()
            self._sending.cancel()
            self.over.set()

    def ignore_rest(self) -> None:
        """Throw away what still arrives, so that the pump reaches the end of the stream."""
        self._inbox.close()

    @property
    def failure(self) -> ShoalError | None:
        """Why the call failed, as far as the other side told or the stream showed."""
        return self._failure

    async def _take(self, event: Event) -> None:
        if isinstance(event, Got):
            try:
                await self._arrived.send(event.body)
            except trio.BrokenResourceError:
                return  # nobody listens any more
        elif isinstance(event, Failed):
            self._failure = RemoteError(event.code, event.message)
            self._arrived.close()
            self._sending.cancel()
        else:
            assert isinstance(event, Ended)
            self._arrived.close()

    async def _write(self, data: bytes) -> None:
        with trio.move_on_after(math.inf) as self._sending:
            try:
                await self._stream.write(data)
            except PeerUnreachable as error:
                raise self._failure or error from None
            self._counters.bytes_out += len(data)
            return
        self._check_heard()

    def _check_heard(self) -> None:
        """Raise what a sender must know: that nobody is there to hear it."""
        if self._failure is not None:
            raise self._failure
        if self.has_left:
            raise RemoteError("call_ended", f"{self.peer} has ended the call")
