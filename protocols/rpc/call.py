"""The driver of one call over one stream: typed messages in and out, for either side."""

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import msgspec
import trio

from protocols.rpc.machine import CallMachine
from protocols.rpc.wire import Data, End, Fail
from wire import codec
from wire.errors import BadMessage, PeerUnreachable, RemoteError
from wire.ids import PeerId
from wire.ports import Stream

Out = TypeVar("Out")
In = TypeVar("In")

READ_BYTES = 256 * 1024  # asked of the stream at a time: a Yamux window


class StreamCall(Generic[Out, In]):
    """A `wire.ports.Call`. What the caller says first travels in one write with its opening."""

    def __init__(
        self,
        stream: Stream,
        machine: CallMachine,
        incoming: type[In],
        frame_max: int,
        *,
        opening: bytes = b"",
    ) -> None:
        self._stream = stream
        self._machine = machine
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._frame_max = frame_max
        self._opening = opening
        machine.expect(frame_max)

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._stream.peer

    async def send(self, message: Out) -> None:
        """Send one message; waits while the other side is not reading."""
        body = codec.encode(message)
        if len(body) > self._frame_max:
            raise ValueError(f"message of {len(body)} B is over its limit of {self._frame_max} B")
        await self._write(self._machine.data(body))

    async def finish(self) -> None:
        """Say that no more messages come from this side; again is harmless."""
        if self._machine.may_send:
            await self._write(self._machine.end())

    async def receive(self) -> In:
        """Return the next message. Raises trio.EndOfChannel at the end, RemoteError on failure."""
        return self.decode(await self.receive_body())

    def decode(self, body: bytes) -> In:
        """Parse the body of one message. Raises BadMessage."""
        return codec.decode(body, self._decoder, self._frame_max)

    async def receive_body(self) -> bytes:
        """Return the next message's bytes; ends and failures as `receive`."""
        if self._machine.has_ended:
            raise trio.EndOfChannel
        await self.flush()
        while (event := self._machine.next_event()) is None:
            data = await self._stream.read(READ_BYTES)
            if not data:
                raise PeerUnreachable(f"{self.peer} hung up in the middle of a call")
            self._machine.feed(data)
        match event:
            case Data(body):
                return body
            case End():
                raise trio.EndOfChannel
            case Fail(code, message):
                raise RemoteError(code, message)
            case _:
                raise BadMessage("a call is opened once")

    async def flush(self) -> None:
        """Send the opening if nothing else took it along."""
        if self._opening:
            await self._write(b"")

    async def drain(self) -> None:
        """Read to the other side's end and throw it away. Raises RemoteError on failure."""
        while not self._machine.has_ended:
            try:
                await self.receive_body()
            except trio.EndOfChannel:
                return

    async def __aiter__(self) -> AsyncIterator[In]:
        while True:
            try:
                yield await self.receive()
            except trio.EndOfChannel:
                return

    async def _write(self, data: bytes) -> None:
        data, self._opening = self._opening + data, b""
        await self._stream.write(data)
