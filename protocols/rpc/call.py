"""A call in progress: what its holder does with it (`wire.ports.Call`), at either end.

The line hands in what arrives; whoever holds the call waits here. One task may send while another
receives.
"""

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast

import msgspec
import trio

from protocols.rpc.line import SMALL_BYTES, Line
from protocols.rpc.machine import Body, Incoming, Outgoing, check_size
from protocols.rpc.wire import End
from wire import codec, frames
from wire.errors import PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId

Out = TypeVar("Out")
In = TypeVar("In")
T = TypeVar("T")


class BodyType(Generic[T]):
    """Encodes and decodes the messages of one type; `bytes` are sent as they are."""

    def __init__(self, type_: type[T]) -> None:
        self._type = type_
        self._decoder = msgspec.msgpack.Decoder(type_)

    def encode(self, message: T) -> bytes:
        """Return the bytes of a message."""
        return message if isinstance(message, bytes) else codec.encode(message)

    def decode(self, body: Body, max_size: int) -> T:
        """Return the message in `body`. Raises BadMessage."""
        if self._type is bytes:
            return cast(T, bytes(body))
        return codec.decode(body, self._decoder, max_size)


class CallSide(Generic[Out, In]):
    """One side of a call. Its line feeds it through `incoming` and the `on_*` methods."""

    def __init__(
        self,
        line: Line[Any, Any],
        number: int,
        frame_max: int,
        outgoing: BodyType[Out],
        incoming: BodyType[In],
    ) -> None:
        self.line, self.number = line, number
        self.incoming = Incoming(frame_max, line.budget)
        self.outgoing = Outgoing(number, frame_max, line.outbox.waiting)
        self.failure: ShoalError | None = None  # why the call is over, if not in good order
        self.is_deaf = False  # the other side takes nothing more
        self._encode, self._decode = outgoing.encode, incoming.decode
        self._reader: trio.lowlevel.Task | None = None
        self._progress = trio.lowlevel.ParkingLot()

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self.line.stream.peer

    async def send(self, message: Out) -> None:
        """Send one message; waits while an earlier one still waits for the other side to read.

        Raises MessageTooBig, PeerUnreachable, or RemoteError if the other side has failed or is
        done ("call_ended"). Cancelled, it has sent the message or not, but never half of it.
        """
        await self._wait_to_send()
        body = self._encode(message)
        check_size(body, self.outgoing.frame_max)
        self.put(body)

    def put(self, body: bytes, *, is_reply: bool = False) -> None:
        """Queue a message of up to `frame_max`, and send what may go."""
        line, outgoing = self.line, self.outgoing
        was_empty = outgoing.is_empty
        outgoing.put(body, is_reply=is_reply)
        if was_empty and len(body) <= SMALL_BYTES and outgoing.is_ready:
            line.put(outgoing.next_frame())
        else:
            line.send(outgoing)

    async def receive(self) -> In:
        """Return the next message. Raises trio.EndOfChannel at the end, RemoteError on failure,
        PeerUnreachable if the connection broke, BadMessage if the message is none.
        """
        incoming = self.incoming
        if incoming.has_message:
            await trio.lowlevel.checkpoint()
        while not incoming.has_message:
            if self.failure is not None:
                raise self.failure
            if incoming.ended:
                raise trio.EndOfChannel
            await self._park()
        body = incoming.take()
        self.line.give_credit(self.number, incoming)
        return self._decode(body, incoming.frame_max)

    async def finish(self) -> None:
        """Say that no more messages come from this side. Does nothing the second time."""
        await trio.lowlevel.checkpoint()
        self.end()

    def end(self) -> None:
        """As `finish`, without a checkpoint."""
        if self.outgoing.ended or self.is_deaf:
            return
        frame = frames.pack(codec.encode(End(self.number)))
        if self.outgoing.is_empty:
            self.outgoing.ended = True
            self.line.put(frame)
        else:
            self.outgoing.put_frame(frame, is_end=True)

    async def drain(self, stall_s: float) -> bool:
        """Wait until all that was queued has gone out; False if none of it did for `stall_s`."""
        while not self.outgoing.is_empty and not self.is_deaf:
            with trio.move_on_after(stall_s) as patience:
                await self._progress.park()
            if patience.cancelled_caught:
                return False
        return True

    def __aiter__(self) -> AsyncIterator[In]:
        """Iterate over messages until the end."""
        return self

    async def __anext__(self) -> In:
        """Return the next message."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    # from the line

    def wake(self) -> None:
        """Something has come, or nothing will: let the reader look."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader)

    def on_progress(self) -> None:
        """Some of what waited has gone out."""
        if self._progress:
            self._progress.unpark_all()

    def on_lost(self, error: PeerUnreachable) -> None:
        """The line is gone."""
        self.fail(PeerUnreachable(str(error)))  # of its own: several tasks will raise it

    def fail(self, error: ShoalError) -> None:
        """The call is over, with an error."""
        self.failure = self.failure or error
        self.leave()

    def leave(self) -> None:
        """The other side takes nothing more."""
        self.is_deaf = True
        self.line.drop(self.outgoing)
        self.wake()
        self._progress.unpark_all()

    async def _wait_to_send(self) -> None:
        self._check_heard()
        await trio.lowlevel.checkpoint()
        while True:
            self._check_heard()
            if self.line.outbox.is_full:
                await self.line.wait_for_room()
            elif not self.outgoing.is_empty:
                await self._progress.park()
            else:
                return

    def _check_heard(self) -> None:
        """Raise what a sender must know: that nobody is there to hear it."""
        if self.failure is not None:
            raise self.failure
        if self.is_deaf:
            raise RemoteError("call_ended", f"{self.peer} has ended the call")

    async def _park(self) -> None:
        assert self._reader is None, "two tasks receive from one call"
        self._reader = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
