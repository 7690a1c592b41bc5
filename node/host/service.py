"""The libp2p host: TCP, Noise and Yamux, fenced; streams to admitted peers (wire.ports.Host).

`LibP2pHost` is what the daemon builds and runs. Facts: network, section 2; DESIGN, sections 5, 9.
"""

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import identify_handler_for
from libp2p.peer.id import ID

from node.host.addresses import Address, parse_address
from node.host.backoff import Backoff
from node.host.carrier import Carrier
from node.host.connection import Connection
from node.host.dialler import Circuits, Dialler
from node.host.gate import Gate, Limits
from node.host.holes import Holes
from node.host.interfaces import expand
from node.host.lanes import HostLanes
from node.host.listeners import Listener, Sorter, open_listener
from node.host.mdns import Found, Mdns
from node.host.nearby import Nearby
from node.host.once import DialOnce
from node.host.peers import Peers, Watcher
from node.host.ping import PING, ping
from node.host.sessions import Sessions
from node.host.stream import HostStream
from node.host.swarm import FencedSwarm
from node.host.views import Counters, Path, PeerView
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

KEPT_MAX = 256  # peers that we stay connected to; beyond, a node is a hub that nobody needs
GONE_S = 3600.0  # a kept peer that was away for so long, or never here, loses its place to another
STABLE_S = 30.0  # a connection that lived for longer was a good one: the back-off begins anew
YIELD_S = 0.2  # of two that want each other, the larger peer ID lets the other dial first


class _FencedBasicHost(BasicHost):
    """libp2p's host, for the protocols that libp2p brings; it opens and dials nothing by itself.

    Overridden: both would run as trio system tasks, where an exception ends the process.
    """

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        return

    async def _push_identify_to_all_peers(self) -> None:
        return


@dataclass
class _Kept:
    """A peer that we stay connected to."""

    left_at: float = -math.inf  # when the last connection ended; never was there one
    reasons: set[str] = field(default_factory=set[str])  # while there is one, it is kept
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


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
        self._limits = limits or Limits()
        self.listeners: list[Listener] = []
        self._peers = Peers()
        self._swarm = FencedSwarm(create_new_key_pair(signer_seed), Gate(self._limits))
        self._libp2p = _FencedBasicHost(self._swarm, default_protocols=_no_protocols())
        public: dict[TProtocol, StreamHandlerFn] = {IDENTIFY: identify_handler_for(self._libp2p)}
        self._libp2p.multiselect.handlers.clear()
        self._libp2p.multiselect.handlers[IDENTIFY] = public[IDENTIFY]
        self._libp2p.multiselect.handlers[TProtocol(PING)] = _never  # only for identify to tell
        self._sessions = Sessions(self._peer, swarm, self._peers, self._limits, public)
        self._dialler = Dialler(self._peer, self._swarm, self._peers)
        self.once = DialOnce(self._swarm, self._sessions)
        self.lanes = HostLanes(self._peers)
        self.holes = Holes(self._swarm, self.listeners)
        self.sorter = Sorter(self._swarm.gate, self._swarm.serve_tcp, self.lanes.accept)
        self._swarm.session = self._sessions.run
        self._swarm.serve = self._sessions.serve
        self._swarm.reach = self._reach_for_libp2p
        self._kept: dict[PeerId, _Kept] = {}
        self._nearby = Nearby(self._try)
        self.found = self._nearby.found
        self._mdns: Mdns | None = None
        if mdns:
            self._mdns = Mdns(
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
            for text in self._listen:
                self.listeners.append(await open_listener(_listen_address(text)))
                self._swarm.listeners[text] = self.listeners[-1]
            async with trio.open_nursery() as nursery:
                await nursery.start(self._swarm.run)
                assert self._swarm.background_nursery is not None
                for listener in self.listeners:
                    nursery.start_soon(listener.serve, self.sorter, self._swarm.background_nursery)
                self._dialler.nursery = nursery
                nursery.start_soon(self._nearby.run)
                for peer, kept in self._kept.items():
                    nursery.start_soon(self._keep, peer, kept)
                if self._mdns is not None:
                    await nursery.start(self._mdns.run)
                log.info("host.listening peer=%s addresses=%s", self._peer, self.addresses())
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._dialler.nursery = None
            for listener in self.listeners:
                listener.sock.close()

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

    async def open(
        self,
        peer: PeerId,
        protocol: str | Sequence[str],
        *,
        timeout_s: float,
        path: Path | None = None,
    ) -> HostStream:
        """Open a stream, connecting first if need be. Raises PeerUnreachable, DeadlineExceeded.

        protocol: one, or several in order of preference: the first that the peer accepts.
        path: only over a connection that runs so, and is there already.
        """
        protocols = [protocol] if isinstance(protocol, str) else list(protocol)
        with trio.move_on_after(timeout_s):
            try:
                if path is None:
                    connection = await self._dialler.reach(peer)
                else:
                    connection = self._on_path(peer, path)
                stream, _ = await self._sessions.open(connection, protocols)
            except PeerError as error:
                raise PeerUnreachable(str(error)) from error
            return stream
        raise DeadlineExceeded(f"no stream to {peer} within {timeout_s:g} s")

    # circuits

    async def take(self, carrier: Carrier) -> None:
        """Run a connection that somebody made to us through a relay, to its end. Never raises."""
        await self._swarm.serve_carrier(carrier)

    def use_circuits(self, circuits: Circuits) -> None:
        """Dial relay addresses, too."""
        self._dialler.circuits = circuits

    def _on_path(self, peer: PeerId, path: Path) -> Connection:
        fits = [one for one in self._peers.of(peer) if one.path == path]
        if not fits:
            raise PeerUnreachable(f"no {path} connection to {peer}")
        return fits[-1]

    # peers

    def learn(self, peer: PeerId, addrs: list[str]) -> None:
        """Remember where a peer is (with or without /p2p); malformed addresses are dropped."""
        self._dialler.learn(peer, addrs)

    def addresses_of(self, peer: PeerId) -> list[str]:
        """Multiaddrs known for a peer, the one that worked last first."""
        return self._dialler.addresses_of(peer)

    async def connect(self, target: PeerId | str, addrs: list[str] | None = None) -> PeerId:
        """Connect to a peer ID or to a multiaddr that ends in /p2p/PEER; returns whom to.

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
        await self._dialler.reach(peer)
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
        known = set(self.addresses_of(peer))
        self.learn(peer, addrs)
        if kept := self._kept.get(peer):
            if not known.issuperset(self.addresses_of(peer)):
                kept.news.unpark_all()  # it moved: do not wait for the back-off
        elif peer != self._peer and self._has_place():
            kept = self._kept[peer] = _Kept()
            if self._dialler.nursery is not None:
                self._dialler.nursery.start_soon(self._keep, peer, kept)
        if kept := self._kept.get(peer):
            kept.reasons.add(reason)

    def forget(self, peer: PeerId, *, reason: str = "member") -> None:
        """Stop keeping a peer for that reason; a connection that is there stays."""
        kept = self._kept.get(peer)
        if kept is None:
            return
        kept.reasons.discard(reason)
        if not kept.reasons:
            del self._kept[peer]
            kept.scope.cancel()

    async def ping(self, peer: PeerId, *, timeout_s: float = 5.0) -> float:
        """Return one round trip in seconds. Raises PeerUnreachable, DeadlineExceeded."""
        with trio.move_on_after(timeout_s):
            stream = await self.open(peer, PING, timeout_s=timeout_s)
            try:
                return await ping(stream)
            finally:
                stream.drop()
        raise DeadlineExceeded(f"no answer from {peer} within {timeout_s:g} s")

    # views

    def addresses(self) -> list[str]:
        """Where others can dial us: real ports, interfaces' addresses for 0.0.0.0, our peer ID."""
        dialable = [place for listener in self.listeners for place in expand(listener.address)]
        return [str(place.with_peer(self._peer)) for place in dialable]

    def peers(self) -> list[PeerView]:
        """Admitted peers and how they are connected."""
        return [_view(peer, self._peers.of(peer)) for peer in self._peers.connected()]

    def watch(self) -> Watcher:
        """Iterate over PeerUp and PeerDown, beginning with a PeerUp for each peer that is here."""
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

    async def _keep(self, peer: PeerId, kept: "_Kept") -> None:
        backoff = Backoff()
        with kept.scope:
            if self._peer > peer:
                await trio.sleep(YIELD_S)
            while True:
                since, reason = trio.current_time(), "the connection ended"
                try:
                    await self._dialler.reach(peer)
                except (PeerUnreachable, PeerError) as error:
                    reason = str(error)
                while self._peers.best(peer) is not None:
                    await self._peers.changed.park()
                    kept.left_at = trio.current_time()
                if trio.current_time() - since > STABLE_S:
                    backoff.reset()
                wait_s = backoff.after_failure(random.random())
                log.debug("keep.retry peer=%s in_s=%.2f %s", peer, wait_s, reason)
                with trio.move_on_after(wait_s):
                    await kept.news.park()

    def _has_place(self) -> bool:
        """Tell whether another peer can be kept, making room if there is somebody to let go."""
        if len(self._kept) < KEPT_MAX:
            return True
        for peer, kept in self._kept.items():  # who was kept first goes first
            is_gone = trio.current_time() - kept.left_at > GONE_S
            if is_gone and self._peers.best(peer) is None:
                del self._kept[peer]
                kept.scope.cancel()
                return True
        return False

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


def _view(peer: PeerId, connections: list[Connection]) -> PeerView:
    newest = connections[-1]
    rtts = [connection.rtt_s for connection in connections if connection.rtt_s is not None]
    return PeerView(
        peer=peer,
        address=newest.address,
        direction=newest.way,
        path=newest.path,
        rtt_ms=round(rtts[-1] * 1000, 3) if rtts else None,
        bytes_in=sum(connection.carrier.own.bytes_in for connection in connections),
        bytes_out=sum(connection.carrier.own.bytes_out for connection in connections),
        since=connections[0].since,
        connections=len(connections),
    )
