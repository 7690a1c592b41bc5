"""Listening sockets, and connections from their ports.

Ours, because libp2p 0.8.1's set SO_REUSEPORT as they bind: two daemons with the same port would
share it silently, each getting some of the other's connections.

What comes in is libp2p, a lane (bulk connection) or STUN; the first byte tells, and is left in
place.
"""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio
from libp2p.abc import IListener
from multiaddr import Multiaddr

from node.host.addresses import Address
from node.host.gate import Gate
from protocols.bulk.wire import HELLO_MAGIC
from wire.errors import UsageError
from wire.faults import OnFailure

BACKLOG = 128  # connections the kernel holds until we accept them
ANSWERS = 2  # SYN-ACKs after the first, 7 s: a punched router may let in the first packet of a try
# and not the answer; then no other connection with that peer is possible until we give this one up
FIRST_BYTE_S = 1.0  # a lane's comes at once; who is silent for longer may be a libp2p node that
# waits for our greeting, and gets it, and then a handshake's time

STUN_FIRST = (b"\x00", b"\x01")  # the upper byte of a message's type (RFC 8489, section 5)

Handler = Callable[[trio.SocketStream], Awaitable[None]]

log = logging.getLogger(__name__)


class Sorter:
    """Gives each inbound connection to whom it is for. Until then it has an unadmitted's place."""

    def __init__(self, gate: Gate, libp2p: Handler, lanes: Handler) -> None:
        self._gate, self._libp2p, self._lanes = gate, libp2p, lanes
        self.stun: Handler | None = None  # has places of its own, and closes the connection

    async def __call__(self, stream: trio.SocketStream) -> None:
        """Look at the first byte, and hand over. Never raises: it runs beside all the others."""
        try:
            with OnFailure(stream.socket.close):
                if not await self._was_other(stream):
                    await self._libp2p(stream)  # what is nobody's too: it hangs up, and counts that
        except Exception as error:  # a boundary: a stranger's bytes reach deep into libp2p
            log.debug("inbound.failed %r", error)

    async def _was_other(self, stream: trio.SocketStream) -> bool:
        """Let lanes or STUN have it, if it is for them."""
        try:
            remote = str(stream.socket.getpeername()[0]).split("%")[0]
        except OSError:
            return False  # it hung up already
        place = self._gate.enter(remote)
        if place is None:
            return False  # libp2p has no place for it either
        try:
            first = b""
            with trio.move_on_after(FIRST_BYTE_S):
                first = await stream.socket.recv(1, socket.MSG_PEEK)
            if first == HELLO_MAGIC[:1]:
                await self._lanes(stream)
                return True
        finally:
            place.leave()
        if self.stun is None or first not in STUN_FIRST:
            return False
        await self.stun(stream)
        return True


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


async def open_listener(address: Address, *, wanted_port: int = 0) -> Listener:
    """Bind and listen. wanted_port: to be taken, if it is free, where any would do.

    Raises UsageError that says what is wrong with the address.
    """
    if wanted_port and not address.port:
        try:
            return await open_listener(replace(address, port=wanted_port))
        except UsageError as error:
            log.debug("listener.another_port %s", error)
    if not address.network.startswith("ip"):
        raise UsageError(f"cannot listen on a name: {address}", hint="use /ip4/0.0.0.0/tcp/PORT")
    sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # over TIME_WAIT only, on Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, ANSWERS)
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


def start_connecting(
    listener: Listener, remote: Address, *, port: int | None = None
) -> socket.socket:
    """Send the first packet of a connection from a listener's own port, at once; `connected` waits.

    remote: an IP address of the listener's family. port: another one (0: any free one). Raises
    OSError (EADDRNOTAVAIL: that connection stands already).
    """
    # Only now, with the port bound: SO_REUSEPORT then lets none in that has not set it at its own
    # bind, as `open_listener` does not (Linux: inet_csk_get_port; tried in test_host_ports.py).
    listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    family = listener.sock.family
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with OnFailure(sock.close):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listener.address.host, listener.address.port if port is None else port))
        with contextlib.suppress(BlockingIOError):  # it is on its way
            sock.connect((remote.host, remote.port))
    return sock


async def connected(sock: socket.socket) -> trio.SocketStream:
    """Wait until a connection stands; closes the socket if none does. Raises OSError."""
    with OnFailure(sock.close):
        await trio.lowlevel.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def connect_from(listener: Listener, remote: Address, timeout_s: float) -> trio.SocketStream:
    """Connect from a listener's own port, for a router to see what it sees of the listener.

    Raises OSError and trio.TooSlowError; `start_connecting` says more.
    """
    with trio.fail_after(timeout_s):
        return await connected(start_connecting(listener, remote))
