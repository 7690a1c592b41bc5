"""Muxed connections over a link in memory, for the tests of this folder."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.abc import ISecureConn
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from node.host.yamux import MuxedConnection
from node.host.yamux_stream import MuxedStream

PEER = ID(b"\x00" * 34)
Link = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    """A frame written from the specification, not with our own code."""
    return struct.pack(">BBHII", 0, kind, flags, stream, length) + body


class MemoryLink(ISecureConn):
    """A secured connection in memory: what the record layer gives, and libp2p's, without Noise.

    `send` takes nothing; what is sealed leaves in `wait_writable`.
    """

    def __init__(self, stream: Link, is_initiator: bool) -> None:
        self._stream = stream
        self.is_initiator = is_initiator
        self._left = b""
        self._unsent = b""
        self.written: list[int] = []

    async def receive(self) -> list[bytes]:
        return [await self.read(None)]

    def seal(self, frames: list[bytes]) -> None:
        self.written.append(sum(len(frame) for frame in frames))
        self._unsent += b"".join(frames)

    def send(self) -> bool:
        return not self._unsent

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent)

    async def wait_writable(self) -> None:
        await self.write(self._unsent)
        self._unsent = b""

    async def read(self, n: int | None = None) -> bytes:
        if not self._left:
            try:
                self._left = bytes(await self._stream.receive_some())
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(str(error), transport="memory") from error
            if not self._left:
                raise ConnectionClosedError("end", transport="memory")
        data, self._left = (self._left, b"") if n is None else (self._left[:n], self._left[n:])
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error), transport="memory") from error

    async def close(self) -> None:
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Any]:
        return []

    def get_connection_type(self) -> Any:
        return None

    def get_local_peer(self) -> ID:
        return PEER

    def get_local_private_key(self) -> Any:
        return None

    def get_remote_peer(self) -> ID:
        return PEER

    def get_remote_public_key(self) -> Any:
        return None


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[MuxedConnection, MuxedConnection]]:
    """Two ends that have admitted each other."""
    ours, theirs = memory_stream_pair()
    a = MuxedConnection(MemoryLink(ours, True), PEER)
    b = MuxedConnection(MemoryLink(theirs, False), PEER)
    a.trust()
    b.trust()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        yield a, b
        nursery.cancel_scope.cancel()


async def open_pair(a: MuxedConnection, b: MuxedConnection) -> tuple[MuxedStream, MuxedStream]:
    """Both ends of a new stream."""
    return await a.open_stream(), await b.accept_stream()


async def read_exactly(stream: MuxedStream, size: int) -> bytes:
    """Read until there are `size` bytes."""
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data
