"""Sockets for bulk connections ("lanes") to peers that we are directly connected to.

A lane is a TCP connection beside the libp2p one, to the same listening port (`listeners.py` tells
them apart). Here its socket is dialled or taken, and handed over to blocking threads; what makes it
a peer's is in `protocols/bulk/pool.py`, which sees the hello.
"""

import logging
import socket
from collections.abc import AsyncIterator, Callable

import trio

from node.host.connection import Connection
from node.host.peers import Peers, Watcher
from node.host.views import PeerDown
from protocols.bulk.pool import Route, Welcome
from protocols.bulk.wire import HELLO_BYTES
from wire.errors import PeerUnreachable
from wire.faults import OnFailure
from wire.ids import PeerId

DIAL_S = 5.0  # to connect and be answered: three SYNs
HELLO_S = 5.0  # from the first byte of a hello to its last
UNHEARD_MS = 15_000  # that the other end leaves bytes unacknowledged, or its window shut

log = logging.getLogger(__name__)


class HostLanes:
    """Implements `protocols.bulk.pool.Sockets` for the host."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._greet: Callable[[bytes], Welcome | None] = _nobody

    def welcome(self, greet: Callable[[bytes], Welcome | None]) -> None:
        """Ask `greet` about every hello."""
        self._greet = greet

    def route(self, peer: PeerId) -> Route | None:
        """How a peer is connected; None if it is not."""
        best, dialable = self._peers.best(peer), self._dialable(peer)
        if best is None:
            return None
        if dialable is None:
            return Route(is_ours=False, rtt_s=best.rtt_s, is_dialable=False)
        return Route(dialable.way == "out", dialable.rtt_s)

    async def dial(
        self, peer: PeerId, first: bytes, answer_bytes: int
    ) -> tuple[socket.socket, bytes]:
        """Connect to where our connection to the peer goes, send `first`, and read the answer."""
        connection = self._dialable(peer)
        remote = connection.carrier.get_remote_address() if connection else None
        if connection is None or connection.way != "out" or remote is None:
            raise PeerUnreachable(f"no connection to {peer} that we dialled")
        family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            with OnFailure(sock.close), trio.fail_after(DIAL_S):
                await sock.connect(remote)
                stream = trio.SocketStream(sock)
                await stream.send_all(first)
                answer = await _receive(stream, answer_bytes)
                return _blocking(stream), answer
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, EOFError) as error:
            raise PeerUnreachable(f"no lane to {peer}: {error!r}") from error

    async def accept(self, stream: trio.SocketStream) -> None:
        """One inbound connection that begins like a lane. It is a lane, or over, afterwards."""
        try:
            with trio.fail_after(HELLO_S):
                welcome = self._greet(await _receive(stream, HELLO_BYTES))
                if welcome is None:
                    return
                await stream.send_all(welcome.answer)
            welcome.take(_blocking(stream))
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, EOFError) as error:
            log.debug("lane.no_hello %r", error)
        finally:
            stream.socket.close()

    async def changes(self) -> AsyncIterator[tuple[PeerId, bool]]:
        """Yield peers as their connections come, end or move, and whether the last one is gone."""
        async for event in Watcher(self._peers):
            yield event.peer, isinstance(event, PeerDown)

    def _dialable(self, peer: PeerId) -> Connection | None:
        """Whose other end, or ours, takes more of its kind: direct, and not through a hole. The
        newest that we dialled, or else the newest.
        """
        held = [c for c in self._peers.of(peer) if c.path == "direct" and not c.is_punched]
        ours = [connection for connection in held if connection.way == "out"]
        return next(reversed(ours or held), None)


async def _receive(stream: trio.SocketStream, count: int) -> bytes:
    """Receive just so many bytes: what follows them is encrypted, and for others."""
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise EOFError("the other end hung up")
        data += more
    return data


def _blocking(stream: trio.SocketStream) -> socket.socket:
    """Take the socket out of trio, for threads."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)
    return sock


def _nobody(_first: bytes) -> Welcome | None:
    return None
