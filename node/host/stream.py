"""One stream as the protocols see it (wire.ports.Stream): our errors, and safe to cancel."""

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from node.host.yamux_stream import MuxedStream
from wire.errors import PeerUnreachable
from wire.ids import PeerId
from wire.ports import Sink


class HostStream:
    """Wraps a muxed stream after its protocol is agreed."""

    def __init__(self, muxed: MuxedStream, peer: PeerId, protocol: str) -> None:
        self._muxed = muxed
        self._peer = peer
        self.protocol = protocol

    @property
    def peer(self) -> PeerId:
        """Who is at the other end; Noise has authenticated it."""
        return self._peer

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

    def attach(self, sink: Sink) -> None:
        """Give everything that arrives from now on to `sink`; read no more."""
        self._muxed.attach(sink)

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
        self._muxed.drop()

    async def reset(self) -> None:
        """Throw the stream away, both directions. Safe at any time, also twice."""
        await self._muxed.reset()
