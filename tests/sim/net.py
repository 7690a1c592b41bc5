"""An in-memory network for tests on a virtual clock: real services, streams without sockets.

    net = Net(nursery, latency_s=0.01)
    a, b = net.rpc(A), net.rpc(B)        # the real RpcService over in-memory streams
    net.cut(A, B)                        # streams break, new ones fail at once
    net.cut(A, B, silent=True)           # or nothing arrives any more and nobody is told
    net.heal()
    net.move(A, B)                       # there is a better connection between them

By default all hosts are connected with each other as soon as they exist. With `mesh=False` two
hosts are connected once one has opened a stream to the other.
"""

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import trio

from node.host.views import PeerDown, PeerEvent, PeerMoved, PeerUp
from protocols.rpc.service import RpcService
from tests.sim.net_stream import SimStream
from wire.errors import DeadlineExceeded, PeerUnreachable
from wire.ids import PeerId
from wire.ports import Network, Stream, StreamServer

RETIRED_S = 10.0  # that what is on a retired connection may still take


@dataclass
class Link:
    """What lies between two hosts."""

    connected: bool
    generation: int = 1  # counts the connections, so that a watcher sees a quick return
    moves: int = 0  # times that a better connection came
    refused: bool = False  # cut loudly
    silent: bool = False  # cut silently


class Net:
    """Hosts and the links between them. Stream servers run in `nursery`."""

    def __init__(
        self, nursery: trio.Nursery, *, latency_s: float = 0.01, mesh: bool = True
    ) -> None:
        self.latency_s, self.mesh = latency_s, mesh
        self.nursery = nursery
        self.hosts: dict[PeerId, SimHost] = {}
        self.errors: list[Exception] = []  # what stream servers raised
        self.bytes_sent: defaultdict[PeerId, int] = defaultdict(int)
        self.changed = trio.lowlevel.ParkingLot()
        self._links: dict[frozenset[PeerId], Link] = {}
        self._rpcs: dict[PeerId, RpcService] = {}

    def host(self, peer: PeerId) -> "SimHost":
        """Return the host of a peer, making it at first."""
        if peer not in self.hosts:
            self.hosts[peer] = SimHost(self, peer)
            self.changed.unpark_all()
        return self.hosts[peer]

    def rpc(self, peer: PeerId) -> RpcService:
        """Return the peer's RPC service, making it at first."""
        if peer not in self._rpcs:
            rpc = self._rpcs[peer] = RpcService(self.host(peer))
            self.nursery.start_soon(rpc.run)
        return self._rpcs[peer]

    def network(self, peer: PeerId, name: str) -> Network:
        """Return the byte-wise `Network` port of a peer under a method name."""
        return self.rpc(peer).network(name)

    def cut(self, a: PeerId, b: PeerId, *, silent: bool = False) -> None:
        """Cut a link: loudly (all breaks and is refused) or silently (all hangs)."""
        link = self.link(a, b)
        if silent:
            link.silent = True
        else:
            link.refused = True
            self._disconnect(a, b)

    def heal(self) -> None:
        """Mend all links. What hung arrives now; what broke stays broken."""
        for ends, link in self._links.items():
            link.refused = link.silent = False
            link.connected = link.connected or (self.mesh and self._alive(*ends))
        self._wake()

    def move(self, a: PeerId, b: PeerId) -> None:
        """Retire all streams between two hosts, as when a direct connection joins a relayed one."""
        for stream in self.streams(a, b):
            stream.is_retired = True
        self.link(a, b).moves += 1
        self.changed.unpark_all()
        self.nursery.start_soon(self._close_retired, a, b)

    def streams(self, a: PeerId, b: PeerId) -> list[SimStream]:
        """Return both ends of all streams between two hosts."""
        return [
            stream
            for one, other in ((a, b), (b, a))
            for stream in (self.hosts[one].streams if one in self.hosts else ())
            if stream.peer == other
        ]

    async def _close_retired(self, a: PeerId, b: PeerId) -> None:
        retired = [stream for stream in self.streams(a, b) if stream.is_retired]
        await trio.sleep(RETIRED_S)
        for stream in retired:
            stream.break_at(trio.current_time())

    def kill(self, peer: PeerId) -> None:
        """Take a host away, as `kill -9` would: its streams break, its stream servers end."""
        host = self.host(peer)
        host.alive = False
        for other in self.hosts:
            if other != peer:
                self._disconnect(peer, other)
        for scope in list(host.scopes):
            scope.cancel()

    def revive(self, peer: PeerId) -> None:
        """Bring a killed host back as it was, with all that it serves."""
        self.host(peer).alive = True
        for ends, link in self._links.items():
            if peer in ends and self.mesh and self._alive(*ends) and not link.refused:
                link.connected = True
        self._wake()

    def restart(self, peer: PeerId) -> RpcService:
        """Bring a host back with nothing served yet, as a new process; returns its new RPC."""
        if peer in self.hosts:
            self.kill(peer)
            del self.hosts[peer]
            self._rpcs.pop(peer, None)
        rpc = self.rpc(peer)
        self.revive(peer)
        return rpc

    def link(self, a: PeerId, b: PeerId) -> Link:
        """Return what lies between two hosts."""
        assert a != b
        return self._links.setdefault(frozenset((a, b)), Link(connected=self.mesh))

    def connections(self, peer: PeerId) -> dict[PeerId, int]:
        """Return the peers connected to `peer`, each with the number of its coming."""
        links = {
            other: self.link(peer, other)
            for other, host in self.hosts.items()
            if other != peer and host.alive and self.host(peer).alive
        }
        return {other: link.generation for other, link in links.items() if link.connected}

    def _alive(self, *peers: PeerId) -> bool:
        return all(peer in self.hosts and self.hosts[peer].alive for peer in peers)

    def _disconnect(self, a: PeerId, b: PeerId) -> None:
        link = self.link(a, b)
        if link.connected:
            link.connected = False
            link.generation += 1
        for stream in self.streams(a, b):
            stream.break_at(trio.current_time())
        self._wake()

    def _wake(self) -> None:
        self.changed.unpark_all()
        for host in self.hosts.values():
            for stream in host.streams:
                stream.lot.unpark_all()


class SimHost:
    """Implements `wire.ports.Host`, and `watch` as the real host has it."""

    def __init__(self, net: Net, peer: PeerId) -> None:
        self._net, self._peer = net, peer
        self._servers: dict[str, StreamServer] = {}
        self.alive = True
        self.streams: set[SimStream] = set()
        self.scopes: set[trio.CancelScope] = set()

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._peer

    def connected(self) -> list[PeerId]:
        """Peers that we hold a connection to now."""
        return list(self._net.connections(self._peer))

    def serve(self, protocol: str, server: StreamServer) -> None:
        """Answer streams of a protocol."""
        self._servers[protocol] = server

    async def open(
        self, peer: PeerId, protocol: str | Sequence[str], *, timeout_s: float
    ) -> Stream:
        """Open a stream: one round trip. Raises PeerUnreachable, DeadlineExceeded."""
        with trio.move_on_after(timeout_s):
            await trio.sleep(2 * self._net.latency_s)
            host = self._net.hosts.get(peer)
            if host is None or not host.alive or not self.alive or peer == self._peer:
                raise PeerUnreachable(f"{peer} is not there")
            link = self._net.link(self._peer, peer)
            if link.refused:
                raise PeerUnreachable(f"the link to {peer} is cut")
            while link.silent:
                await self._net.changed.park()
            wanted = [protocol] if isinstance(protocol, str) else protocol
            spoken = next((name for name in wanted if name in host._servers), None)
            if spoken is None:
                raise PeerUnreachable(f"{peer} does not speak {' or '.join(wanted)}")
            if not link.connected:
                link.connected = True
                self._net.changed.unpark_all()
            return host._accept(self, spoken)
        raise DeadlineExceeded(f"no stream to {peer} within {timeout_s:g} s")

    async def watch(self) -> AsyncIterator[PeerEvent]:
        """Yield peers coming and going, beginning with those who are here."""
        told: dict[PeerId, int] = {}
        moves: dict[PeerId, int] = {}
        while True:
            now = self._net.connections(self._peer)
            gone = [peer for peer in told if now.get(peer) != told[peer]]
            for peer in gone:
                del told[peer]
                yield PeerDown(peer)
            new = [peer for peer in now if peer not in told]
            for peer in new:
                told[peer] = now[peer]
                moves[peer] = self._net.link(self._peer, peer).moves
                yield PeerUp(peer)
            moved = [peer for peer in told if self._net.link(self._peer, peer).moves > moves[peer]]
            for peer in moved:
                moves[peer] = self._net.link(self._peer, peer).moves
                yield PeerMoved(peer)
            if not gone and not new and not moved:
                await self._net.changed.park()

    def _accept(self, caller: "SimHost", protocol: str) -> SimStream:
        near, far = (
            SimStream(self._net, caller, self._peer, protocol),
            SimStream(self._net, self, caller.peer, protocol),
        )
        near.other, far.other = far, near
        self._net.nursery.start_soon(self._run, self._servers[protocol], far)
        return near

    async def _run(self, server: StreamServer, stream: "SimStream") -> None:
        with trio.move_on_after(math.inf) as scope:
            self.scopes.add(scope)
            try:
                await server(stream)
            except Exception as error:  # the fence: a server's errors end its stream only
                self._net.errors.append(error)
                await stream.reset()
            finally:
                self.scopes.discard(scope)
