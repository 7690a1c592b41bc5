"""What lies under a secured connection: a TCP socket (`tcp.CountedTcp`), or a circuit of a relay
(`node.reach.circuit`). Noise's handshake reads and writes it, then the record layer does, without
waiting.
"""

from collections.abc import Sequence
from typing import Protocol

from node.host.views import Traffic
from wire.ids import PeerId


class Carrier(Protocol):
    """One byte stream between two peers. Its end is libp2p's ConnectionClosedError."""

    own: Traffic  # what crossed it
    heard_at: float  # when the last bytes came, trio's clock
    relay: PeerId | None  # whom it runs through; None for a socket
    is_punched: bool  # through a hole of two routers: nothing else can be dialled there

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes; only before the record layer takes over."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        ...

    def take_buffered(self) -> bytes:
        """Return what came and was not read yet; the methods below do not see it."""
        ...

    def read_now(self, into: memoryview) -> int:
        """Read what is there; 0 if nothing is."""
        ...

    def write_now(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Take what fits now and return how much."""
        ...

    async def wait_readable(self) -> None:
        """Wait until `read_now` has something to say."""
        ...

    async def wait_writable(self) -> None:
        """Wait until `write_now` takes something."""
        ...

    async def close(self) -> None:
        """Close it. Safe to repeat."""
        ...

    def abort(self) -> None:
        """Close it at once."""
        ...

    def reset(self) -> None:
        """Close it at once, and let its addresses and ports be used again at once, too."""
        ...

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the IP address and port of the other end: of the relay, if there is one."""
        ...
