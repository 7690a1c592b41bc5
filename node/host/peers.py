"""Who is connected: admitted connections by peer, and those who watch for changes."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import trio

from node.host.views import PeerDown, PeerEvent, PeerUp
from wire.ids import PeerId

if TYPE_CHECKING:
    from node.host.connection import Connection


class Peers:
    """Admitted connections, oldest first, of each peer that has any."""

    def __init__(self) -> None:
        self._connections: dict[PeerId, list[Connection]] = {}
        self._generation: dict[PeerId, int] = {}  # of each connected peer: tells a return apart
        self._last_generation = 0
        self.changed = trio.lowlevel.ParkingLot()

    def add(self, connection: "Connection") -> None:
        """A connection was admitted."""
        held = self._connections.setdefault(connection.peer, [])
        held.append(connection)
        if len(held) == 1:
            self._last_generation += 1
            self._generation[connection.peer] = self._last_generation
            self.changed.unpark_all()

    def remove(self, connection: "Connection") -> None:
        """A connection is over, admitted or not."""
        held = self._connections.get(connection.peer, [])
        if connection in held:
            held.remove(connection)
            if not held:
                del self._connections[connection.peer]
                del self._generation[connection.peer]
                self.changed.unpark_all()

    def connected(self) -> list[PeerId]:
        """Peers with a connection, longest known first."""
        return list(self._connections)

    def of(self, peer: PeerId) -> list["Connection"]:
        """A peer's connections, oldest first."""
        return list(self._connections.get(peer, ()))

    def best(self, peer: PeerId) -> "Connection | None":
        """The newest: if a peer came back after a crash, the older one leads nowhere."""
        held = self._connections.get(peer)
        return held[-1] if held else None

    def generations(self) -> dict[PeerId, int]:
        """Each connected peer with the number of its coming."""
        return dict(self._generation)


class Watcher(AsyncIterator[PeerEvent]):
    """Peers coming and going, beginning with those who are here. Holds no queue: a slow reader
    learns where each peer stands now, and of a peer that left and came back that it did.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._told: dict[PeerId, int] = {}

    def __aiter__(self) -> "Watcher":
        return self

    async def __anext__(self) -> PeerEvent:
        await trio.lowlevel.checkpoint()
        while (event := self._next_change()) is None:
            await self._peers.changed.park()
        return event

    def _next_change(self) -> PeerEvent | None:
        now = self._peers.generations()
        for peer, generation in self._told.items():
            if now.get(peer) != generation:
                del self._told[peer]
                return PeerDown(peer)
        for peer, generation in now.items():
            if peer not in self._told:
                self._told[peer] = generation
                return PeerUp(peer)
        return None
