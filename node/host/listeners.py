"""Listening sockets. Ours, because libp2p 0.8.1's set SO_REUSEPORT: two daemons configured with the
same port would share it silently, each getting some of the other's connections.

What comes in is libp2p or a lane (bulk connection); the first byte tells, and is left in place.
"""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IListener
from multiaddr import Multiaddr

from node.host.addresses import Address
from node.host.gate import Gate
from protocols.bulk.wire import HELLO_MAGIC
from wire.errors import UsageError

BACKLOG = 128  # connections the kernel holds until we accept them
FIRST_BYTE_S = 10.0  # as long as a handshake: a dialler of either kind speaks first

Handler = Callable[[trio.SocketStream], Awaitable[None]]

log = logging.getLogger(__name__)


class Sorter:
    """Gives each inbound connection to whom it is for. Until then it has an unadmitted's place."""

    def __init__(self, gate: Gate, libp2p: Handler, lanes: Handler) -> None:
        self._gate, self._libp2p, self._lanes = gate, libp2p, lanes
        self.silent = 0  # connections that did not say a byte in time

    async def __call__(self, stream: trio.SocketStream) -> None:
        """Look at the first byte. Never raises: it runs beside all the others."""
        handler: Handler | None = None
        try:
            handler = await self._choose(stream)
            if handler is not None:
                await handler(stream)
        except Exception as error:  # of a stranger's bytes
            log.debug("sorter.failed %r", error)
        finally:
            if handler is not self._libp2p:
                stream.socket.close()

    async def _choose(self, stream: trio.SocketStream) -> Handler | None:
        """Return whom a connection is for; None if its time is up."""
        try:
            remote = str(stream.socket.getpeername()[0]).split("%")[0]
        except OSError:
            return self._libp2p  # it hung up already, and is counted there
        place = self._gate.enter(remote)
        if place is None:
            return self._libp2p  # which has no place for it either, and counts that
        try:
            with trio.move_on_after(FIRST_BYTE_S):
                first = await stream.socket.recv(1, socket.MSG_PEEK)
                return self._lanes if first == HELLO_MAGIC[:1] else self._libp2p
        except OSError:
            return self._libp2p
        finally:
            place.leave()
        self.silent += 1
        return None


class Listener(IListener):
    """One bound socket, in the form that libp2p's host asks for its addresses."""

    def __init__(self, sock: trio.socket.SocketType, network: str) -> None:
        self.sock = sock
        name = sock.getsockname()
        self.address = Address(network, str(name[0]), int(name[1]))

    async def serve(self, handler: Handler, nursery: trio.Nursery) -> None:
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
