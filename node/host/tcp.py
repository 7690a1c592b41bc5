"""A TCP connection as libp2p's raw stream: buffered, counted, and never written in part.

Replaces libp2p's TrioTCPStream, which makes two system calls per Noise record, reports no address
for IPv6, and swallows a write to a closed socket.
"""

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError

_RECEIVE_BYTES = 256 * 1024  # what one system call may bring: four Noise records


class Traffic:
    """Bytes that crossed sockets, in and out. One per connection, one for the whole host."""

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0


class CountedTcp(ReadWriteCloser):
    """One TCP connection. `own` counts its bytes alone, `total` those of all connections."""

    def __init__(self, stream: trio.SocketStream, total: Traffic) -> None:
        self._stream = stream
        self._total = total
        self._buffer = b""
        self._start = 0
        self.own = Traffic()
        try:
            name = stream.socket.getpeername()
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
            self.own.bytes_in += len(self._buffer)
            self._total.bytes_in += len(self._buffer)
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
        self.own.bytes_out += len(data)
        self._total.bytes_out += len(data)

    async def close(self) -> None:
        """Close the socket. Safe to repeat."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close the socket at once."""
        self._stream.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the IP address and port of the other end, also for IPv6."""
        return self._remote
