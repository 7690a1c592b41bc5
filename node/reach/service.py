"""Everything that this node does to be reached: probes, port mapping, relays, hole punching.

`Reach` builds the parts of node/reach over one host, starts them in order, and says what the node
announces of itself: it is also the DHT's book of addresses. docs/protocols/reach.md
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from node.host.addresses import Address, parse_address
from node.host.interfaces import is_global
from node.host.service import LibP2pHost
from node.reach.announce import in_order, source_host
from node.reach.circuit import CircuitClient
from node.reach.family import State
from node.reach.holding import Holding, Member
from node.reach.hop import RelayBudget
from node.reach.offer import ReachOffer
from node.reach.portmap import PortMaps
from node.reach.puncher import Puncher
from node.reach.relay import Relay
from node.reach.views import (
    Announced,
    Origin,
    PortMapView,
    Punch,
    ReachView,
    RelayMode,
    RelayServing,
)
from node.reach.watch import Probe
from wire.ids import PeerId

# A node with a global address may be public: it waits so long for a verdict before it asks for
# relays, whose addresses it would have to take back from everybody.
VERDICT_S = 1.0

_log = structlog.get_logger("reach")


@dataclass(frozen=True)
class ReachOptions:
    """What [net] of the configuration says about reaching."""

    relay: RelayMode = "auto"
    relay_bytes_per_s: float = 8 * 2**20
    port_mapping: bool = True


class Reach:
    """One per node. Make it before the host runs, start it afterwards.

    members: those of the swarm, with what their leases offer. is_closed: all of them are Shoal's.
    is_outside: whether an IP address is beyond our own network; tests pass their own.
    `on_change` is called when what we announce is not what it was, `on_verdict` with a new one.
    """

    def __init__(
        self,
        host: LibP2pHost,
        members: Callable[[], Sequence[Member]],
        options: ReachOptions,
        *,
        is_closed: bool = True,
        is_outside: Callable[[str], bool] = is_global,
    ) -> None:
        self._host, self._options = host, options
        self.on_change: Callable[[], None] = lambda: None
        self.on_verdict: Callable[[State], None] = lambda _: None
        self._is_outside = is_outside
        self._probe = Probe(host, is_outside=is_outside)
        self._ports = PortMaps(self._listening_port, _private_host)
        self._mapping = trio.CancelScope()
        self.relay = Relay(host, RelayBudget(rate_bytes_s=options.relay_bytes_per_s), self._relays)
        self._circuits = CircuitClient(host, is_closed=is_closed)
        self._holding = Holding(
            host,
            members,
            self._circuits.reserve,
            is_needed=self._needs_relays,
            is_outside=is_outside,
            on_change=self._changed,
        )
        self._puncher = Puncher(host, self._probe.machine.candidates, self._probe.predicted)
        self._outside_since: float | None = None
        self._announced = list[Announced]()  # kept: it is asked for with every message of the DHT
        self._told: tuple[list[str], bool] = ([], False)  # our addresses; whether we relay

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all parts until cancelled; then give back what routers and relays gave us."""
        self._told = (self.addresses(), self._offers_relay())  # as our lease says already
        self._announced = self._compose()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.relay.run)
            await nursery.start(self._probe.run)
            await nursery.start(self._puncher.run)
            nursery.start_soon(self._follow_probe)
            if self._options.port_mapping:
                nursery.start_soon(self._map_ports)
            await nursery.start(self._holding.run)
            task_status.started()

    def peer_moved(self, peer: PeerId) -> None:
        """A peer announces other addresses: a hole to it may be punched now."""
        self._puncher.moved(peer)

    def leave(self) -> None:
        """Give the router its port back now: the node is about to stop."""
        self._mapping.cancel()

    def addresses(self) -> list[str]:
        """Multiaddrs to announce, the most useful first, each with our peer ID."""
        return [one.address for one in self._announced or self._compose()]

    def addresses_of(self, peer: PeerId) -> list[str]:
        """What we know of a peer's addresses."""
        return self._host.addresses_of(peer)

    def hear(self, peer: PeerId, addrs: list[str]) -> None:
        """Remember where others say that a peer is, behind what is known."""
        self._host.learn(peer, addrs, is_hearsay=True)

    def offer(self) -> ReachOffer:
        """What goes into `offers["reach"]` of our member lease."""
        state = self._probe.machine.verdict
        free = self.relay.free if self._offers_relay() else 0
        return ReachOffer(state, free)

    def view(self) -> ReachView:
        """How we can be reached, for people."""
        machine, now = self._probe.machine, trio.current_time()
        kind = machine.behaviour
        return ReachView(
            machine.verdict,
            [one.told(now) for one in machine.evidence],
            self._announced,
            mapping=kind.words if kind else "",
            behaviour=kind.mapping if kind else "",
            ip4=machine.families["ip4"].state,
            ip6=machine.families["ip6"].state,
            outside=len(self._outside()),
            port_maps=self._port_maps(),
            port_maps_tried={str(via): said for via, said in self._ports.tried.items()},
            held=self._holding.view(),
            relay=self._relay_view(),
            punches=self._punches(),
            punched=self._puncher.outcomes(),
            dial_backs=self._probe.dial_backs(),
        )

    # --- inside --------------------------------------------------------------------------------

    def _compose(self) -> list[Announced]:
        own = self._own()
        mapped = self._ports.current.address if self._ports.current else None
        known = set(own)
        others: list[tuple[str, Origin]] = [
            (str(named), "mapped" if one == mapped else "observed")
            for one in self._probe.machine.addresses()
            if (named := one.with_peer(self._host.peer)) not in known
        ]
        sources = [source_host(family) for family in (socket.AF_INET, socket.AF_INET6)]
        return in_order(own, others, self._holding.addresses, sources)

    def _own(self) -> list[Address]:
        """Where we listen, as the probe saw it last: to look costs milliseconds."""
        families = self._probe.machine.families.values()
        seen = [one.with_peer(self._host.peer) for family in families for one in family.own]
        return seen or [parse_address(text) for text in self._host.addresses()]

    def _offers_relay(self) -> bool:
        mode = self._options.relay
        is_reachable = self._probe.machine.verdict in ("public", "mapped")
        return mode == "on" or (mode == "auto" and is_reachable)

    def _relays(self) -> bool:
        """Whether we serve as a relay now. Who reached us may ask before we know the verdict."""
        is_early = self._probe.machine.verdict == "unknown" and self._has_global_address()
        return self._offers_relay() or (self._options.relay == "auto" and is_early)

    def _needs_relays(self) -> bool:
        machine = self._probe.machine
        if machine.verdict != "unknown":
            return machine.needs_relays
        now = trio.current_time()
        if not self._outside():
            self._outside_since = None
            return False
        if self._outside_since is None:
            self._outside_since = now
        return now >= self._outside_since + VERDICT_S or not self._has_global_address()

    def _outside(self) -> list[PeerId]:
        """Peers beyond our own network that we have a direct connection to."""
        return [
            view.peer
            for view in self._host.peers()
            if view.path == "direct" and self._is_outside(parse_address(view.address).host)
        ]

    def _has_global_address(self) -> bool:
        return any(self._is_outside(one.host) for one in self._own())

    def _changed(self) -> None:
        """Tell, if others can reach us otherwise now. The rest comes when the lease is renewed."""
        self._announced = self._compose()
        told = (self.addresses(), self._offers_relay())
        if told != self._told:
            if told[0] != self._told[0]:
                self._puncher.moved()
            self._told = told
            self.on_change()

    async def _follow_probe(self) -> None:
        machine = self._probe.machine
        verdict, place = machine.verdict, self._place()
        while True:
            await self._probe.changed.park()
            if verdict != machine.verdict:
                verdict = machine.verdict
                _log.info("reachability", verdict=verdict)
                self.on_verdict(verdict)
            if place != (now_at := self._place()):
                if place[1]:
                    self._ports.refresh()  # another network, or another router
                place = now_at
            self._holding.look()
            self._changed()

    def _place(self) -> tuple[list[Address], Address | None]:
        """Where we are: our addresses, and that by which others see us on IPv4."""
        return self._own(), self._probe.machine.families["ip4"].observed

    async def _map_ports(self) -> None:
        with self._mapping:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._ports.run)
                while True:
                    current = self._ports.current
                    self._probe.set_mapped({current.address: current.via} if current else {})
                    self._changed()
                    await self._ports.changed.park()

    def _listening_port(self) -> int:
        """Our port on IPv4 that the LAN can reach; 0 if there is none."""
        source = source_host(socket.AF_INET)
        return next(
            (one.port for one in self._own() if one.network == "ip4" and one.host == source), 0
        )

    def _relay_view(self) -> RelayServing:
        view = self.relay.view()
        return RelayServing(
            is_on=view.is_on,
            reservations=len(view.reservations),
            circuits=len(view.circuits),
            bytes=view.moved_bytes,
            refused=view.refused,
        )

    def _punches(self) -> list[Punch]:
        now = trio.current_time()
        return [
            Punch(
                peer=one.peer,
                outcome=one.outcome,
                tries=one.tries,
                took_s=round(one.took_s, 3),
                age_s=round(now - one.began_at, 1),
            )
            for one, _ in self._puncher.view()
        ]

    def _port_maps(self) -> list[PortMapView]:
        current = self._ports.current
        if current is None:
            return []
        left_s = round(current.until - trio.current_time(), 1)
        return [PortMapView(str(current.address), current.via, current.gateway, left_s)]


def _private_host() -> str | None:
    """Our address for the world outside, if a router must translate it."""
    host = source_host(socket.AF_INET)
    return None if host is None or is_global(host) else host
