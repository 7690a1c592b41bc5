"""One stream as the protocols see it (wire.ports.Stream): our errors, and safe to cancel."""

from typing import TYPE_CHECKING

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from node.host.views import Path
from node.host.yamux_stream import MuxedStream
from wire.errors import PeerUnreachable
from wire.ids import PeerId
from wire.ports import Sink

if TYPE_CHECKING:
    from node.host.connection import Connection


class HostStream:
    """Wraps a muxed stream after its protocol is agreed."""

    def __init__(self, muxed: MuxedStream, connection: "Connection", protocol: str) -> None:
        self._muxed = muxed
        self._connection = connection
        self._peer = connection.peer
        self._waits = False
        self.protocol = protocol

    @property
    def peer(self) -> PeerId:
        """Who is at the other end; Noise has authenticated it."""
        return self._peer

    @property
    def path(self) -> Path:
        """How its connection runs."""
        return self._connection.path

    @property
    def remote(self) -> str:
        """The other end of its connection, as a multiaddr without the peer."""
        return self._connection.address

    @property
    def came_in_at(self) -> float | None:
        """When the other end connected to us, trio's clock; None if we connected to it."""
        return self._connection.began_at if self._connection.way == "in" else None

    @property
    def is_retired(self) -> bool:
        """True once a better connection to the peer is there."""
        return self._connection.is_retired

    def expect(self, *, waits: bool) -> None:
        """Tell whether somebody waits for the other side's word: silence is then noticed sooner."""
        if waits != self._waits:
            self._waits = waits
            self._connection.expect(waits=waits)

    async def read(self, max_bytes: int) -> bytes:
        """Return between 1 and `max_bytes` bytes, or b"" at the end. Raises PeerUnreachable."""
        try:
            return await self._muxed.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as error:
            raise PeerUnreachable(f"{self.protocol} of {self._peer}: {error}") from error

    async def read_exactly(self, size_bytes: int) -> bytes:
        """Return that many bytes. Raises PeerUnreachable if the stream ends before."""
        data = bytearray()
        while len(data) < size_bytes:
            more = await self.read(size_bytes - len(data))
            if not more:
                raise PeerUnreachable(f"{self.protocol} of {self._peer}: ended early")
            data += more
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Cancelled, it resets the stream: a part may have gone already.

        The connection stays whole, since only its own task writes frames to the socket.
        """
        try:
            await self._muxed.write(data)
        except MuxedStreamError as error:
            raise PeerUnreachable(f"{self.protocol} of {self._peer}: {error}") from error
        except trio.Cancelled:
            self._muxed.drop()
            raise

    async def finish(self) -> None:
        """Close our direction; the other end reads to its end."""
        await self._muxed.close()

    def finish_now(self) -> None:
        """Close our direction, behind what was pushed, without waiting: for a sink's methods."""
        self._muxed.finish()

    def attach(self, sink: Sink, *, paced: bool = False) -> None:
        """Give everything that arrives from now on to `sink`; read no more.

        paced: the other side may send 256 KiB (a Yamux window) beyond what the sink told `took`.
        """
        self._muxed.attach(sink, paced=paced)

    def took(self, size_bytes: int) -> None:
        """The paced sink is done with so many bytes: the other side may send as many again."""
        self._muxed.took(size_bytes)

    @property
    def has_room(self) -> bool:
        """True if `push` may be called now; when it is again, the sink's `on_room` says so."""
        return self._muxed.has_room

    def push(self, data: bytes, *, now: bool) -> None:
        """Queue up to PUSH_MAX bytes; only while there is room. Safe on a stream that is over.

        now: write them at once if the socket takes them. Pushed from a sink's method, they leave
        at the end of what the connection brought in one go, with everything else.
        """
        self._muxed.push(data, now=now)

    def drop(self) -> None:
        """Reset without waiting, for a `finally`."""
        self.expect(waits=False)
        self._muxed.drop()

    async def reset(self) -> None:
        """Throw the stream away, both directions. Safe at any time, also twice."""
        await self._muxed.reset()
