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
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import trio

from node.host.views import PeerDown, PeerEvent, PeerMoved, PeerUp
from protocols.rpc.service import RpcService
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable
from wire.ids import PeerId
from wire.ports import PUSH_MAX, Network, Sink, Stream, StreamServer

WINDOW_BYTES = 256 * 1024  # unread bytes in one direction of a stream, as Yamux has it
ATTACHED_BYTES = 16 * 1024 * 1024  # the same towards a sink, which never leaves anything unread
PIECE_BYTES = 64 * 1024  # what one write puts on the wire at a time
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

    def streams(self, a: PeerId, b: PeerId) -> list["SimStream"]:
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

    def _accept(self, caller: "SimHost", protocol: str) -> "SimStream":
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


@dataclass(eq=False)
class SimStream:
    """One end of a stream. Implements `wire.ports.Stream`."""

    net: Net
    owner: SimHost
    peer: PeerId
    protocol: str
    other: "SimStream" = field(init=False)
    lot: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _arriving: deque[tuple[float, bytes]] = field(default_factory=deque[tuple[float, bytes]])
    _unread_bytes: int = 0
    _broken_at: float = math.inf
    _finished: bool = False
    _is_reset: bool = False
    _sink: Sink | None = None
    _wants_room: bool = False
    _is_fed: bool = False  # the sink has heard of the end
    _error: PeerUnreachable | None = None  # and this of it
    is_retired: bool = False
    waits: bool = False  # somebody expects something

    def __post_init__(self) -> None:
        self.owner.streams.add(self)

    async def read(self, max_bytes: int) -> bytes:
        """Return between 1 and `max_bytes` bytes, or b"" at the end of the stream."""
        await trio.lowlevel.checkpoint()
        while True:
            if not self._is_ended():  # what came whole can be read even after a reset
                self._check()
            when, data = self._arriving[0] if self._arriving else (math.inf, b"")
            if when > trio.current_time() or self._is_silent():
                await self._wait(when)
                continue
            if not data:
                return b""  # stays there, for the next read
            self._arriving.popleft()
            if len(data) > max_bytes:
                self._arriving.appendleft((when, data[max_bytes:]))
                data = data[:max_bytes]
            self._unread_bytes -= len(data)
            self.other.lot.unpark_all()
            return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the other end has a full window unread."""
        assert not self._finished, "written after finish"
        try:
            await trio.lowlevel.checkpoint()
            for start in range(0, len(data), PIECE_BYTES):
                self._check()
                while self.other._unread_bytes >= WINDOW_BYTES:
                    await self._wait(math.inf)
                    self._check()
                self._send(data[start : start + PIECE_BYTES])
        except trio.Cancelled:
            self._drop()
            raise

    async def finish(self) -> None:
        """Close our direction; the other end reads to its end."""
        await trio.lowlevel.checkpoint()
        self._check()
        if not self._finished:
            self._finished = True
            self._send(b"")
            self._forget()
            self.other._forget()

    async def reset(self) -> None:
        """Throw the stream away, both directions. Safe at any time, also twice."""
        self._drop()
        await trio.lowlevel.checkpoint()

    def drop(self) -> None:
        """Reset without waiting."""
        self._drop()

    def attach(self, sink: Sink) -> None:
        """Give everything that arrives to `sink`."""
        is_first, self._sink = self._sink is None, sink
        if is_first:
            self.net.nursery.start_soon(self._feed)
        elif self._is_fed:
            sink.on_end(self._error)

    def expect(self, *, waits: bool) -> None:
        """Note it."""
        self.waits = waits

    @property
    def has_room(self) -> bool:
        """True if `push` may be called now."""
        is_over = self._is_reset or self._finished or trio.current_time() >= self._broken_at
        self._wants_room = not is_over and self.other._unread_bytes >= ATTACHED_BYTES
        return not is_over and not self._wants_room

    def push(self, data: bytes, *, now: bool) -> None:
        """Queue bytes without waiting."""
        assert len(data) <= PUSH_MAX
        if not (self._is_reset or self._finished):
            self._send(data)

    async def _feed(self) -> None:
        assert self._sink is not None
        try:
            while data := await self.read(PIECE_BYTES):
                self._sink.on_data(data)
                if self.other._sink is not None and self.other._wants_room:
                    self.other._wants_room = False
                    self.other._sink.on_room()
        except PeerUnreachable as broken:
            self._error = broken
        except BadMessage as bad:
            self._drop()
            self._error = PeerUnreachable(str(bad))
        finally:
            self._is_fed = True
            self._sink.on_end(self._error)

    def break_at(self, when: float) -> None:
        """Make this end fail from a moment on."""
        self._broken_at = min(self._broken_at, when)
        self.lot.unpark_all()

    def _drop(self) -> None:
        if not self._is_reset:
            self._is_reset = True
            if not (self._finished and self._is_ended()):
                self.other.break_at(trio.current_time() + self.net.latency_s)
            self._arriving.clear()
            self.lot.unpark_all()
            self.owner.streams.discard(self)

    def _send(self, piece: bytes) -> None:
        self.net.bytes_sent[self.owner.peer] += len(piece)
        self.other._arriving.append((trio.current_time() + self.net.latency_s, piece))
        self.other._unread_bytes += len(piece)
        self.other.lot.unpark_all()

    def _forget(self) -> None:
        if self._finished and self._is_ended():
            self.owner.streams.discard(self)

    def _is_ended(self) -> bool:
        """Tell whether the other side's finish has arrived (or is on its way)."""
        return bool(self._arriving) and not self._arriving[-1][1]

    def _is_silent(self) -> bool:
        return self.net.link(self.owner.peer, self.peer).silent

    def _check(self) -> None:
        if self._is_reset:
            raise PeerUnreachable(f"stream to {self.peer}: reset here")
        if trio.current_time() >= self._broken_at and not self._is_silent():
            self.owner.streams.discard(self)
            raise PeerUnreachable(f"stream to {self.peer}: reset by the peer")

    async def _wait(self, until: float) -> None:
        """Sleep until something changes, data is due, or the stream breaks."""
        breaks_at = math.inf if self._is_ended() else self._broken_at
        when = math.inf if self._is_silent() else min(until, breaks_at)
        with trio.move_on_at(when):
            await self.lot.park()
