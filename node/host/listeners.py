"""Listening sockets. Ours, because libp2p 0.8.1's set SO_REUSEPORT: two daemons configured with the
same port would share it silently, each getting some of the other's connections.
"""

import errno
import socket
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IListener
from multiaddr import Multiaddr

from node.host.addresses import Address
from wire.errors import UsageError

BACKLOG = 128  # connections the kernel holds until we accept them


class Listener(IListener):
    """One bound socket, in the form that libp2p's host asks for its addresses."""

    def __init__(self, sock: trio.socket.SocketType, network: str) -> None:
        self.sock = sock
        name = sock.getsockname()
        self.address = Address(network, str(name[0]), int(name[1]))

    async def serve(
        self, handler: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery
    ) -> None:
        """Accept until cancelled; each connection is a task in `nursery`."""
        await trio.serve_listeners(
            handler, [trio.SocketListener(self.sock)], handler_nursery=nursery
        )

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """Return where it listens, with the real port."""
        return (Multiaddr(str(self.address)),)

    async def listen(self, maddr: Multiaddr) -> None:
        """Nothing: it is listening since it was made."""

    async def close(self) -> None:
        """Close the socket."""
        self.sock.close()


async def open_listener(address: Address) -> Listener:
    """Bind and listen. Raises UsageError that says what is wrong with the address."""
    if not address.network.startswith("ip"):
        raise UsageError(f"cannot listen on a name: {address}", hint="use /ip4/0.0.0.0/tcp/PORT")
    sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # over TIME_WAIT only, on Linux
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # beside 0.0.0.0, same port
        await sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "another daemon may have it; choose another port, or 0 for any free one"
        raise UsageError(
            f"cannot listen on {address}: {error.strerror}",
            hint=hint if error.errno == errno.EADDRINUSE else "",
        ) from error
    return Listener(sock, address.network)
