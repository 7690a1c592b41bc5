"""A connection for one stream, to one address, whoever is connected already: AutoNAT's dial-back.

It stays unadmitted at both ends: no other stream comes of it, and nobody is told of it.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from node.host.addresses import Address
from node.host.connection import Connection
from node.host.sessions import Sessions
from node.host.stream import HostStream
from node.host.swarm import FencedSwarm
from node.host.tcp import CountedTcp
from node.host.yamux_stream import MuxedStream
from wire.errors import PeerUnreachable
from wire.faults import OnFailure, open_helpers
from wire.ids import PeerId


class DialOnce:
    """One per host."""

    def __init__(self, swarm: FencedSwarm, sessions: Sessions) -> None:
        self._swarm, self._sessions = swarm, sessions

    async def connect(self, address: Address) -> trio.SocketStream:
        """Open a TCP connection to an IP address, from a port of its own. Raises PeerUnreachable.

        Cancel it: it waits for as long as the kernel does.
        """
        sock = trio.socket.socket(address.family)
        try:
            with OnFailure(sock.close):
                await sock.connect((address.host, address.port))
        except OSError as error:
            raise PeerUnreachable(str(error)) from error
        return trio.SocketStream(sock)

    @asynccontextmanager
    async def stream(
        self, tcp: trio.SocketStream, peer: PeerId, protocol: str
    ) -> AsyncGenerator[HostStream]:
        """Make a libp2p connection of a TCP one, for one stream, and close it after the block.

        Raises PeerUnreachable if that is not the peer, or it does not speak the protocol.
        """
        place = self._swarm.gate.enter(None)
        if place is None:
            tcp.socket.close()
            raise PeerUnreachable("too many connections here")
        carrier = CountedTcp(tcp, self._swarm.traffic)
        try:
            muxed = await self._swarm.secure(carrier, peer)
            connection = Connection(muxed, self._swarm, carrier, place)
            async with open_helpers() as nursery:
                await nursery.start(connection.run, _no_session, _refuse)
                stream, _ = await self._sessions.open(connection, [protocol])
                yield stream
                await connection.close()
        finally:
            place.leave()
            carrier.abort()


async def _no_session(_connection: Connection) -> None:
    return


async def _refuse(_connection: Connection, stream: MuxedStream) -> None:
    stream.drop()
