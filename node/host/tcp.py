"""A TCP connection: as libp2p's raw stream for the handshake, then bare for the record layer.

Replaces libp2p's TrioTCPStream, which makes two system calls per Noise record, reports no address
for IPv6, and swallows a write to a closed socket.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError

from node.host.views import Traffic
from wire.ids import PeerId

_RECEIVE_BYTES = 16 * 1024  # during the handshake, whose messages are a few hundred bytes
NOT_SENT_BYTES = 128 * 1024  # that wait in the kernel; a small frame never waits behind more


class CountedTcp(ReadWriteCloser):
    """One TCP connection. `own` counts its bytes alone, `total` those of all connections."""

    relay: PeerId | None = None

    def __init__(
        self, stream: trio.SocketStream, total: Traffic, *, is_punched: bool = False
    ) -> None:
        self.is_punched = is_punched
        self._stream = stream
        self._socket = stream.socket
        self._total = total
        self._buffer = b""
        self._start = 0
        self.own = Traffic()
        self.heard_at = trio.current_time()  # when the last bytes came
        with contextlib.suppress(OSError, AttributeError):  # gone already; or not Linux
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)
        try:
            name = self._socket.getpeername()
            self._remote: tuple[str, int] | None = (str(name[0]).split("%")[0], int(name[1]))
        except OSError:  # the other end hung up already
            self._remote = None

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes, or b"" at the end. Raises ConnectionClosedError."""
        if self._start >= len(self._buffer):
            try:
                self._buffer = bytes(await self._stream.receive_some(_RECEIVE_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(str(error), transport="tcp") from error
            self._start = 0
            self._count_in(len(self._buffer))
            if not self._buffer:
                # A reader of "exactly n" would ask a hundred times more before it gives up.
                raise ConnectionClosedError("end of stream", transport="tcp")
        end = len(self._buffer) if n is None else self._start + n
        data = self._buffer[self._start : end]
        self._start += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises ConnectionClosedError."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error), transport="tcp") from error
        self._count_out(len(data))

    def take_buffered(self) -> bytes:
        """Return what came and was not read yet; the methods below do not see it."""
        left, self._buffer = self._buffer[self._start :], b""
        return left

    def read_now(self, into: memoryview) -> int:
        """Read what is there; 0 if nothing is. Raises ConnectionClosedError, also at the end."""
        try:
            size = os.readv(self._socket.fileno(), [into])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionClosedError(str(error), transport="tcp") from error
        if not size:
            raise ConnectionClosedError("end of stream", transport="tcp")
        self._count_in(size)
        return size

    def write_now(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Write what the socket takes and return how much. Raises ConnectionClosedError."""
        try:
            size = os.writev(self._socket.fileno(), buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionClosedError(str(error), transport="tcp") from error
        self._count_out(size)
        return size

    async def wait_readable(self) -> None:
        """Wait until `read_now` has something to say. Raises trio.ClosedResourceError."""
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        """Wait until the socket takes bytes. Raises trio.ClosedResourceError."""
        await trio.lowlevel.wait_writable(self._socket)

    async def close(self) -> None:
        """Close the socket. Safe to repeat."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close the socket at once."""
        self._socket.close()

    def reset(self) -> None:
        """Close the socket at once with a RST: its ports, which are our listening port's if it went
        through a hole, can be used again for the same peer, not only when a FIN that nobody answers
        is given up, after minutes.
        """
        with contextlib.suppress(OSError):  # closed already
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the IP address and port of the other end, also for IPv6."""
        return self._remote

    def _count_in(self, size: int) -> None:
        self.heard_at = trio.current_time()
        self.own.bytes_in += size
        self._total.bytes_in += size

    def _count_out(self, size: int) -> None:
        self.own.bytes_out += size
        self._total.bytes_out += size
