"""Who is connected: admitted connections by peer, and those who watch for changes."""

import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import trio

from node.host.views import Path, PeerDown, PeerEvent, PeerMoved, PeerUp
from wire.errors import PeerUnreachable
from wire.ids import PeerId

if TYPE_CHECKING:
    from node.host.connection import Connection


class Peers:
    """Admitted connections, oldest first, of each peer that has any.

    Relayed ones are retired by a direct one whose other end was there after they were admitted:
    nothing new is opened on them. One that is only believed to be alive is asked first, for the
    peer may have come back by a relay because it has lost us there.
    """

    def __init__(self) -> None:
        self._connections: dict[PeerId, list[Connection]] = {}
        self._generation: dict[PeerId, int] = {}  # of each connected peer: tells a return apart
        self._last_generation = 0
        self._paths: dict[PeerId, tuple[Path, int]] = {}  # the best one's, and how often it changed
        self.changed = trio.lowlevel.ParkingLot()

    def add(self, connection: "Connection") -> None:
        """A connection was admitted."""
        peer = connection.peer
        held = self._connections.setdefault(peer, [])
        held.append(connection)
        connection.admitted_at = connection.proven_at = trio.current_time()
        if len(held) == 1:
            self._last_generation += 1
            self._generation[peer] = self._last_generation
            self._paths[peer] = connection.path, 0
            self.changed.unpark_all()
        else:
            self._judge(peer, held)
        if connection.path == "relayed":
            for other in held:
                if other.path == "direct":
                    other.doubt()

    def remove(self, connection: "Connection") -> None:
        """A connection is over, admitted or not."""
        peer = connection.peer
        held = self._connections.get(peer, [])
        if connection in held:
            held.remove(connection)
            if held:
                self._judge(peer, held)
            else:
                del self._connections[peer], self._generation[peer], self._paths[peer]
                self.changed.unpark_all()

    def proven(self, connection: "Connection") -> None:
        """Somebody has answered on a connection."""
        connection.proven_at = trio.current_time()
        held = self._connections.get(connection.peer, [])
        if len(held) > 1:
            self._judge(connection.peer, held)

    def _judge(self, peer: PeerId, held: "list[Connection]") -> None:
        proven_at = max((one.proven_at for one in held if one.path == "direct"), default=-math.inf)
        for connection in held:
            is_worse = connection.path == "relayed" and connection.admitted_at <= proven_at
            connection.retire(is_retired=is_worse)
        path, moves = self._paths[peer]
        best = _best(held)
        if best.path != path:
            self._paths[peer] = best.path, moves + 1
            self.changed.unpark_all()

    def connected(self) -> list[PeerId]:
        """Peers with a connection, longest known first."""
        return list(self._connections)

    def of(self, peer: PeerId) -> list["Connection"]:
        """A peer's connections, oldest first."""
        return list(self._connections.get(peer, ()))

    def best(self, peer: PeerId) -> "Connection | None":
        """Direct before relayed, then the newest: if a peer came back after a crash, the older one
        leads nowhere.
        """
        held = self._connections.get(peer)
        return _best(held) if held else None

    def by(self, peer: PeerId, path: Path) -> "Connection":
        """A peer's newest connection of a kind. Raises PeerUnreachable."""
        for connection in reversed(self.of(peer)):
            if connection.path == path:
                return connection
        raise PeerUnreachable(f"no {path} connection to {peer}")

    def standings(self) -> dict[PeerId, tuple[int, int]]:
        """Each connected peer with the number of its coming, and how often its path changed."""
        return {peer: (came, self._paths[peer][1]) for peer, came in self._generation.items()}


def _best(held: "list[Connection]") -> "Connection":
    return next((one for one in reversed(held) if one.path == "direct"), held[-1])


class Watcher(AsyncIterator[PeerEvent]):
    """Peers coming, going and moving, beginning with those who are here. Holds no queue: a slow
    reader learns where each peer stands now, and of one that left and came back that it did.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._told: dict[PeerId, tuple[int, int]] = {}

    def __aiter__(self) -> "Watcher":
        return self

    async def __anext__(self) -> PeerEvent:
        await trio.lowlevel.checkpoint()
        while (event := self._next_change()) is None:
            await self._peers.changed.park()
        return event

    def _next_change(self) -> PeerEvent | None:
        now = self._peers.standings()
        for peer, (came, _) in self._told.items():
            if peer not in now or now[peer][0] != came:
                del self._told[peer]
                return PeerDown(peer)
        for peer, standing in now.items():
            told = self._told.get(peer)
            if told != standing:
                self._told[peer] = standing
                return PeerUp(peer) if told is None else PeerMoved(peer)
        return None
