"""Sockets for hole punching: connections from our listening ports, and how one of them becomes a
direct connection to a peer. When to which addresses is `node.reach.punch`'s matter.
"""

import socket

import trio

from node.host.addresses import Address
from node.host.admission import NotAdmitted
from node.host.connection import Connection
from node.host.listeners import Listener, start_connecting
from node.host.swarm import FencedSwarm
from node.host.tcp import CountedTcp
from wire.errors import PeerUnreachable
from wire.faults import OnFailure
from wire.ids import PeerId

OPENED_MAX = 1024  # addresses; a node punches with 8 peers at a time, 16 addresses each
ADOPT_S = 1.0  # to begin a connection's tasks: nothing in it waits for the peer


class Holes:
    """What a host gives to whom punches holes."""

    def __init__(self, swarm: FencedSwarm, listeners: list[Listener]) -> None:
        self._swarm = swarm
        self._listeners = listeners  # the host's own list, filled when it starts
        self.opened = dict[str, None]()  # IP addresses that our router may let in at our port now

    def connect(self, remote: Address, *, port: int | None = None) -> socket.socket:
        """Begin to connect from the listening port: the first packet is sent when this returns.

        The first listener of the address's family is used: the one whose port others know. port:
        another one (0: any free one). Raises OSError.
        """
        for listener in self._listeners:
            if listener.sock.family == remote.family:
                if port is None:
                    self._note(remote.host)
                return start_connecting(listener, remote, port=port)
        raise OSError(f"no listener for {remote}")

    def _note(self, host: str) -> None:
        """Remember whom a hole was made for: that they get in says nothing about others."""
        self.opened.pop(host, None)
        self.opened[host] = None  # last: the oldest falls out first
        if len(self.opened) > OPENED_MAX:
            del self.opened[next(iter(self.opened))]

    async def adopt(
        self, stream: trio.SocketStream, peer: PeerId, *, initiator: bool, is_ours: bool
    ) -> None:
        """Secure a connected socket and hold it as a connection; return once it is admitted.

        initiator: whether we are the dialler for Noise, admission and Yamux; the other end is not.
        is_ours: whether we choose among several that are secured: cancelled, this one is closed.
        On the other side it goes on, or each side may close what the other one has chosen.
        Raises PeerUnreachable, NotAdmitted.
        """
        carrier = CountedTcp(stream, self._swarm.traffic, is_punched=True)
        with OnFailure(carrier.reset):
            place = self._swarm.gate.enter(None)
            if place is None:
                raise PeerUnreachable("too many connections here")
            with OnFailure(place.leave):
                muxed = await self._swarm.secure(carrier, peer, initiator=initiator)
                connection: Connection | None = None
                with trio.move_on_after(ADOPT_S, shield=True):
                    connection = await self._swarm.adopt(muxed, carrier, place)
                if connection is None:
                    raise PeerUnreachable(f"{peer}: no connection within {ADOPT_S:.0f} s")
        with OnFailure(lambda: connection.abort("another was first") if is_ours else None):
            await connection.settled.wait()
        if not connection.is_admitted:
            raise NotAdmitted(f"{peer}: {connection.refusal}")
