"""The libp2p host: TCP, Noise and Yamux, fenced; streams to admitted peers (wire.ports.Host).

`LibP2pHost` is what the daemon builds and runs. Facts: network, section 2; DESIGN, sections 5, 9.
"""

import logging
import pathlib
from collections import OrderedDict
from collections.abc import Sequence

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import identify_handler_for
from libp2p.peer.id import ID

from node.host.addresses import Address, parse_address
from node.host.connection import Connection
from node.host.dialler import Dialler
from node.host.gate import Gate, Limits
from node.host.holes import Holes
from node.host.interfaces import expand
from node.host.keeping import YIELD_S, Keeping
from node.host.lanes import HostLanes
from node.host.last_ports import read_ports, write_ports
from node.host.listeners import Listener, Sorter, open_listener
from node.host.mdns import Found, Mdns
from node.host.nearby import Nearby
from node.host.once import DialOnce
from node.host.peers import Peers, Watcher
from node.host.ping import PING, ping
from node.host.sessions import Sessions
from node.host.stream import HostStream
from node.host.swarm import FencedSwarm
from node.host.views import Counters, Path, PeerView, Pong
from node.tickets import SwarmKey, swarm_tag
from wire.errors import (
    BadMessage,
    DeadlineExceeded,
    PeerError,
    PeerUnreachable,
    ShoalError,
    UsageError,
)
from wire.ids import PeerId, Signer
from wire.ports import StreamServer

log = logging.getLogger(__name__)


class _FencedBasicHost(BasicHost):
    """libp2p's host, for the protocols that libp2p brings; it opens and dials nothing by itself.

    Overridden: both would run as trio system tasks, where an exception ends the process.
    """

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        return

    async def _push_identify_to_all_peers(self) -> None:
        return


class LibP2pHost:
    """Start it with `await nursery.start(host.run)`; it stops by cancellation, within a second.

    signer_seed: the node's Ed25519 seed. swarm: its key, or None for an open swarm.
    listen: multiaddrs, port 0 for any; none to only dial. mdns: find members on the LAN;
    mdns_interfaces: on these IP addresses only.
    """

    def __init__(
        self,
        signer_seed: bytes,
        swarm: SwarmKey | None,
        listen: list[str],
        *,
        limits: Limits | None = None,
        mdns: bool = False,
        mdns_interfaces: list[str] | None = None,
    ) -> None:
        self._peer = Signer(signer_seed).peer
        self._is_open = swarm is None
        self._listen = list(listen)
        self.ports_file: pathlib.Path | None = (
            None  # where the ports are kept that the system chose
        )
        self._limits = limits or Limits()
        self.listeners: list[Listener] = []
        self._peers = Peers()
        self._swarm = FencedSwarm(
            create_new_key_pair(signer_seed), Gate(self._limits), is_closed=swarm is not None
        )
        self._libp2p = _FencedBasicHost(self._swarm, default_protocols=_no_protocols())
        public: dict[TProtocol, StreamHandlerFn] = {IDENTIFY: identify_handler_for(self._libp2p)}
        self._libp2p.multiselect.handlers.clear()
        self._libp2p.multiselect.handlers[IDENTIFY] = public[IDENTIFY]
        self._libp2p.multiselect.handlers[TProtocol(PING)] = _never  # only for identify to tell
        self._sessions = Sessions(self._peer, swarm, self._peers, self._limits, public)
        self.take = self._swarm.serve_carrier  # for connections to us through a relay
        self._dialler = Dialler(self._peer, self._swarm, self._peers)
        self.use_circuits = self._dialler.use  # for relay addresses
        self.once = DialOnce(self._swarm, self._sessions)
        self.lanes = HostLanes(self._peers)
        self.holes = Holes(self._swarm, self.listeners)
        self.sorter = Sorter(self._swarm.gate, self._swarm.serve_tcp, self.lanes.accept)
        self._swarm.session = self._sessions.run
        self._swarm.serve = self._sessions.serve
        self._swarm.reach = self._reach_for_libp2p
        self._keeping = Keeping(self._peer, self._dialler, self._peers)
        self._nearby = Nearby(self._try)
        self.found = self._nearby.found
        self.mdns: Mdns | None = None
        if mdns:
            self.mdns = Mdns(
                self._peer,
                swarm_tag(swarm),
                self.addresses,
                self.found,
                interfaces=mdns_interfaces,
            )

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        return self._peer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial and serve until cancelled. Raises UsageError if it cannot listen."""
        try:
            await self._open_listeners()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._swarm.run)
                assert self._swarm.background_nursery is not None
                for listener in self.listeners:
                    nursery.start_soon(listener.serve, self.sorter, self._swarm.background_nursery)
                self._dialler.nursery = nursery
                nursery.start_soon(self._nearby.run)
                self._keeping.begin()
                if self.mdns is not None:
                    await nursery.start(self.mdns.run)
                log.info("host.listening peer=%s addresses=%s", self._peer, self.addresses())
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._dialler.nursery = None
            for listener in self.listeners:
                listener.sock.close()

    async def _open_listeners(self) -> None:
        last = read_ports(self.ports_file) if self.ports_file else {}
        for text in self._listen:
            listener = await open_listener(_listen_address(text), wanted_port=last.get(text, 0))
            self.listeners.append(listener)
            self._swarm.listeners[text] = listener
        ports = {
            text: each.address.port for text, each in zip(self._listen, self.listeners, strict=True)
        }
        if self.ports_file and ports != last:
            write_ports(self.ports_file, ports)

    # wire.ports.Host

    def connected(self) -> list[PeerId]:
        """Admitted peers that we hold a connection to now."""
        return self._peers.connected()

    def serve(self, protocol: str, server: StreamServer, *, before_admission: bool = False) -> None:
        """Answer streams of a protocol, before or after the start.

        When `server` returns, the stream is over in both directions; when it raises, it is reset.
        A second later than its connection ends, it is cancelled.
        before_admission: whoever dialled us may open it.
        """
        assert protocol not in self._sessions.servers, protocol
        self._sessions.servers[protocol] = server
        if before_admission:
            self._sessions.early.add(protocol)
        if self._is_open:
            # Other implementations choose by what identify tells; in a closed swarm it tells
            # strangers no more than they may use. Only the name is seen, nothing calls this.
            self._libp2p.multiselect.handlers[TProtocol(protocol)] = _never

    def unserve(self, protocol: str) -> None:
        """Refuse new streams of a protocol from now on; those that are open go on."""
        del self._sessions.servers[protocol]
        self._sessions.early.discard(protocol)
        self._libp2p.multiselect.handlers.pop(TProtocol(protocol), None)

    async def open(
        self,
        peer: PeerId,
        protocol: str | Sequence[str],
        *,
        timeout_s: float,
        path: Path | None = None,
    ) -> HostStream:
        """Open a stream, connecting first if need be. Raises PeerUnreachable, DeadlineExceeded.

        protocol: one, whose refusal ends the stream later in a closed swarm; or several in order of
        preference: the first that the peer accepts.
        path: over a connection of this kind that is there, or not at all.
        """
        protocols = [protocol] if isinstance(protocol, str) else list(protocol)
        with trio.move_on_after(timeout_s):
            return (await self._open(peer, protocols, path))[1]
        raise DeadlineExceeded(f"no stream to {peer} within {timeout_s:g} s")

    async def _open(
        self, peer: PeerId, protocols: list[str], path: Path | None
    ) -> tuple[Connection, HostStream]:
        try:
            connection = self._peers.by(peer, path) if path else await self._dialler.reach(peer)
            return connection, (await self._sessions.open(connection, protocols))[0]
        except PeerError as error:
            raise PeerUnreachable(str(error)) from error

    # peers

    def learn(self, peer: PeerId, addrs: list[str], *, is_hearsay: bool = False) -> None:
        """Remember where a peer is (with or without /p2p); malformed addresses are dropped.

        is_hearsay: another peer says so, which pushes out nothing that is known.
        """
        self._dialler.learn(peer, addrs, is_hearsay=is_hearsay)

    def addresses_of(self, peer: PeerId) -> list[str]:
        """Multiaddrs known for a peer, the one that worked last first."""
        return self._dialler.addresses_of(peer)

    async def connect(self, target: PeerId | str, addrs: list[str] | None = None) -> PeerId:
        """Connect to a peer ID or to a multiaddr that ends in /p2p/PEER; returns whom to, once both
        ends have admitted each other.

        Nothing is dialled if it is connected. Raises PeerUnreachable, NotAdmitted (another swarm),
        or UsageError if the multiaddr names no peer.
        """
        peer = PeerId(target)
        if target.startswith("/"):
            try:
                address = parse_address(target)
            except BadMessage as error:
                raise UsageError(str(error)) from error
            if address.peer is None:
                raise UsageError(f"{target} names no peer", hint="add /p2p/PEER to it")
            peer = address.peer
            self.learn(peer, [target])
        self.learn(peer, addrs or [])
        connection = await self._dialler.reach(peer)
        await connection.agreed.wait()
        if connection.over.is_set():
            raise PeerUnreachable(f"{peer}: {connection.refusal}")
        return peer

    def rtt_s(self, peer: PeerId) -> float | None:
        """Return the least of the round trips measured to a peer lately: of the others each has
        waited for a busy process, too. None if none was measured.
        """
        best = self._peers.best(peer)
        return None if best is None else min(best.rtts_s, default=None)

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer, politely. If it is kept, it is dialled again."""
        async with trio.open_nursery() as nursery:
            for connection in self._peers.of(peer):
                nursery.start_soon(connection.close)

    def keep(self, peer: PeerId, addrs: list[str], *, reason: str = "member") -> None:
        """Stay connected to a peer: dial it now and whenever it is gone, with back-off.

        If `KEPT_MAX` are kept, it takes the place of one that never was here, or not for long.
        reason: who wants it; it is kept until each has said `forget`.
        """
        self._keeping.keep(peer, addrs, reason)

    def forget(self, peer: PeerId, *, reason: str = "member") -> None:
        """Stop keeping a peer for that reason; a connection that is there stays."""
        self._keeping.forget(peer, reason)

    def network_changed(self) -> None:
        """Ask on all connections at once whether somebody is there, and dial kept peers now: the
        machine has other addresses, or has slept.
        """
        for peer in self._peers.connected():
            for connection in self._peers.of(peer):
                connection.doubt()
        self._keeping.hurry()
        if self.mdns is not None:
            self.mdns.refresh()

    async def ping(self, peer: PeerId, *, timeout_s: float = 5.0) -> float:
        """Return one round trip in seconds. Raises PeerUnreachable, DeadlineExceeded."""
        return (await self.probe(peer, timeout_s=timeout_s)).rtt_s

    async def probe(self, peer: PeerId, *, timeout_s: float = 5.0) -> Pong:
        """Ping a peer, and tell which way it went. Raises PeerUnreachable, DeadlineExceeded."""
        with trio.move_on_after(timeout_s):
            connection, stream = await self._open(peer, [PING], None)
            try:
                rtt_s = await ping(stream)
            finally:
                stream.drop()
            way = connection.path, connection.address, connection.relay, connection.is_punched
            return Pong(rtt_s, *way)
        raise DeadlineExceeded(f"no answer from {peer} within {timeout_s:g} s")

    # views

    def addresses(self) -> list[str]:
        """Where others can dial us: real ports, interfaces' addresses for 0.0.0.0, our peer ID."""
        dialable = expand(listener.address for listener in self.listeners)
        return [str(place.with_peer(self._peer)) for place in dialable]

    def peers(self) -> list[PeerView]:
        """Admitted peers and how they are connected."""
        return [_view(self._peers, peer) for peer in self._peers.connected()]

    def watch(self) -> Watcher:
        """Iterate over PeerUp, PeerDown and PeerMoved, beginning with those who are here."""
        return Watcher(self._peers)

    def counters(self) -> Counters:
        """Totals since the start."""
        return Counters(
            bytes_in=self._swarm.traffic.bytes_in,
            bytes_out=self._swarm.traffic.bytes_out,
            connections=self._swarm.gate.total,
            accepted=self._swarm.accepted,
            refused=self._swarm.refused,
            failed_handshakes=self._swarm.failed_handshakes,
            failed_admissions=self._sessions.failed_admissions,
            server_errors=self._sessions.server_errors,
        )

    async def _try(self, found: Found) -> None:
        """Connect once to what was found on the LAN; keep it if the swarm's admission says so."""
        is_known = bool(self.addresses_of(found.peer))
        self.learn(found.peer, list(found.addresses))
        if self._peer > found.peer:
            await trio.sleep(YIELD_S)
        try:
            await self._dialler.reach(found.peer)
            self.keep(found.peer, [])
        except ShoalError as error:
            log.debug("mdns.unreachable peer=%s %s", found.peer, error)
        finally:
            if not is_known and self._peers.best(found.peer) is None:
                self._dialler.forget(found.peer)

    async def _reach_for_libp2p(self, peer_id: ID) -> Connection:
        return await self._dialler.reach(PeerId(peer_id.to_base58()))


def _listen_address(text: str) -> Address:
    try:
        return parse_address(text)
    except BadMessage as error:
        raise UsageError(f"cannot listen: {error}") from error


def _no_protocols() -> "OrderedDict[TProtocol, StreamHandlerFn]":
    # libp2p takes an empty dict as "the default ones", so this one is put in and taken out again.
    return OrderedDict({TProtocol("/shoal/none"): _never})


async def _never(_stream: object) -> None:
    return


def _view(peers: Peers, peer: PeerId) -> PeerView:
    held, best = peers.of(peer), peers.best(peer)
    assert best is not None
    now = trio.current_time()
    traffic = [connection.carrier.own for connection in held]
    rates = [connection.rates.since(now, connection.carrier.own) for connection in held]
    return PeerView(
        peer=peer,
        address=best.address,
        direction=best.way,
        path=best.path,
        rtt_ms=None if best.rtt_s is None else round(best.rtt_s * 1000, 3),
        bytes_in=sum(own.bytes_in for own in traffic),
        bytes_out=sum(own.bytes_out for own in traffic),
        since=held[0].since,
        connections=len(held),
        relay=best.relay,
        is_punched=best.is_punched,
        bytes_in_s=sum(rate_in for rate_in, _ in rates),
        bytes_out_s=sum(rate_out for _, rate_out in rates),
    )
