"""Drives the reachability machine: watches this machine's network and its peers, and looks at what
the machine wants looked at. docs/protocols/reach.md, "Reachability".

The host is told when the addresses changed, ours or the router's, and when the machine slept.
"""

import hashlib
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from node.host.addresses import Address, is_loopback, parse_address
from node.host.interfaces import expand, interface_networks, is_global
from node.host.listeners import Listener, open_listener
from node.host.service import LibP2pHost
from node.host.views import PeerDown, PeerView
from node.reach.autonat import DialBackClient, DialBackServer
from node.reach.behaviour import next_ports
from node.reach.candidates import Vantage
from node.reach.family import AskDialBack, AskIdentify, Effect, HoldAnchor, ProbeMapping
from node.reach.identify import seen_by
from node.reach.machine import Reachability
from node.reach.stun_sockets import STUN_S, Anchor, StunServer, look, look_one
from wire.errors import BadMessage, PeerUnreachable, UsageError

POLL_S = 5.0  # between looks at the interfaces: a few milliseconds on a thread
ASLEEP_S = 10.0  # that passed unnoticed between two looks: the machine slept
VANTAGES_MAX = 16  # peers outside that we choose from; those that we dialled first
BEHAVIOUR_S = 1.0  # that a punch waits for how our router maps; it takes a few round trips
LOOKED_S = 2.0  # for one look; a system that takes longer is looked at the next time

_HAS_BOOT_TIME = hasattr(time, "CLOCK_BOOTTIME")  # Linux

log = logging.getLogger(__name__)


def _boot_s() -> float:
    """Return time that no one sets and that goes on in sleep; where there is none, the wall's."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _HAS_BOOT_TIME else time.time()


@dataclass(frozen=True)
class _Interfaces:
    """Where we listen on each interface, and the networks of all."""

    own: tuple[Address, ...]
    networks: tuple[str, ...]


class Probe:
    """Start it once the host runs: `await nursery.start(probe.run)`.

    It serves STUN at the host's listening ports and AutoNAT. `changed` wakes when anything that
    `machine` says may have. is_outside: which IP addresses are asked about; tests allow more.
    boot_s: time that also passes while the machine sleeps. poll_s: between looks at the interfaces.
    """

    def __init__(
        self,
        host: LibP2pHost,
        *,
        is_outside: Callable[[str], bool] = is_global,
        boot_s: Callable[[], float] = _boot_s,
        poll_s: float = POLL_S,
    ) -> None:
        self._host, self._is_outside = host, is_outside
        self._boot_s, self._poll_s = boot_s, poll_s
        self.machine = Reachability(is_outside)
        self.changed = trio.lowlevel.ParkingLot()
        self.stun_port: int | None = None  # our second STUN port, that OTHER-ADDRESS tells
        self._stun = StunServer(lambda: self.stun_port)
        host.sorter.stun = self._stun.serve
        self._asking = DialBackClient(host)
        self._serving = DialBackServer(host, self._own_hosts, is_outside, self._is_near)
        self._news = trio.Event()
        self._looking = trio.CancelScope()  # what looks at the network as it is now
        self._anchors: dict[str, Anchor] = {}  # the last one of each family
        self._interfaces = _Interfaces((), ())
        self._vantages = list[Vantage]()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch and look until cancelled."""
        await self._look_at_interfaces()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_interfaces)
            nursery.start_soon(self._watch_peers)
            nursery.start_soon(self._serve_second_port)
            task_status.started()
            while True:
                async with trio.open_nursery() as looking:
                    self._looking = looking.cancel_scope
                    await self._drive(looking)

    def set_mapped(self, mapped: dict[Address, str]) -> None:
        """Take the routers' port maps (node.reach.portmap), whenever they change."""
        self.machine.mapped(mapped, trio.current_time())
        self._wake()

    def dial_backs(self) -> dict[str, int]:
        """How many we asked for, and did for others, since the start."""
        return {"asked": self._asking.asked, "served": self._serving.served}

    async def predicted(self, count: int) -> list[Address]:
        """Where a sequential router will let our next connections come from: a STUN probe, now.

        Empty if the router is not sequential, or no server answers within STUN_S. While that it is
        so is being found out, after a start or a move, this waits: a try without would be in vain.
        """
        with trio.move_on_after(BEHAVIOUR_S):
            while any(
                one.behaviour is None and one.servers() for one in self.machine.families.values()
            ):
                await self.changed.park()
        for network, family in self.machine.families.items():
            kind, listener = family.behaviour, self._listener(network)
            if listener is None or kind is None or kind.mapping != "sequential":
                continue
            mapped = None
            with trio.move_on_after(STUN_S):
                mapped = await look_one(listener, family.servers())
            return next_ports(mapped, kind, count) if mapped is not None else []
        return []

    def restart(self) -> None:
        """Begin anew at once, whatever was seen: the user asks, or the machine slept."""
        self.machine.restart(trio.current_time())
        self._begin_anew()

    # what the machine wants

    async def _drive(self, nursery: trio.Nursery) -> None:
        """Begin what is due, until cancelled."""
        while True:
            await trio.lowlevel.checkpoint()  # cancelled, it must not begin what would be lost
            self._news = trio.Event()
            for effect in self.machine.due(trio.current_time()):
                nursery.start_soon(self._perform, effect, nursery.cancel_scope)
            self.changed.unpark_all()
            with trio.move_on_at(self.machine.deadline(trio.current_time())):
                await self._news.wait()

    async def _perform(self, effect: Effect, scope: trio.CancelScope) -> None:
        """Look at one thing, and tell the machine. Never raises."""
        try:
            tell = await self._look(effect, scope)
        except Exception:  # a bug, but one look's only: the machine must hear that it is over
            log.exception("reach.look_failed %s", effect)
            tell = self._nothing(effect)
        if not scope.cancel_called:  # or it was about a network that we have left
            tell()
            self._wake()

    async def _look(self, effect: Effect, scope: trio.CancelScope) -> Callable[[], None]:
        """Do it; returns what tells the outcome."""
        machine = self.machine
        match effect:
            case HoldAnchor(_, address):
                await self._hold(address, scope)
                return self._nothing(effect)
            case ProbeMapping(network, servers):
                listener = self._listener(network)
                seen = None if listener is None else await look(listener, servers)
                return lambda: machine.probed(network, seen, trio.current_time())
            case AskIdentify(peer):
                place = await seen_by(self._host, peer)
                return lambda: machine.identified(peer, place, trio.current_time())
            case AskDialBack(peer, address):
                outcome = await self._asking.ask(peer, address)
                log.debug("reach.dial_back peer=%s address=%s %s", peer, address, outcome)
                return lambda: machine.dialled_back(peer, address, outcome, trio.current_time())

    def _nothing(self, effect: Effect) -> Callable[[], None]:
        """Return what tells the machine that an effect is over without a result."""
        machine = self.machine
        match effect:
            case HoldAnchor(peer, address):
                return lambda: machine.released(address.network, peer, trio.current_time())
            case ProbeMapping(network):
                return lambda: machine.probed(network, None, trio.current_time())
            case AskIdentify(peer):
                return lambda: machine.identified(peer, None, trio.current_time())
            case AskDialBack(peer, address):
                return lambda: machine.dialled_back(peer, address, "no answer", trio.current_time())

    async def _hold(self, server: Address, scope: trio.CancelScope) -> None:
        """Hold an anchor until it breaks."""
        family = self.machine.families[server.network]

        def told(mapped: Address) -> None:
            if scope.cancel_called or mapped == family.observed:
                return
            is_new = family.observed is not None
            log.info("reach.observed at=%s by=%s", mapped, server)
            self.machine.observed(mapped, trio.current_time())
            self._see_peers()  # those that we share the address with are not outside
            self._wake()
            if is_new:
                self._host.network_changed()

        listener = self._listener(server.network)
        if listener is not None:
            anchor = self._anchors[server.network] = Anchor(listener, server, told)
            try:
                await anchor.hold()
            except (PeerUnreachable, BadMessage) as error:
                log.debug("reach.anchor_lost server=%s %r", server, error)

    # what is there

    async def _watch_interfaces(self) -> None:
        bound = [one.address for one in self._host.listeners]
        if bound and all(is_loopback(one.host) and not self._is_outside(one.host) for one in bound):
            return  # nothing that could change; of a machine without a network all may
        asleep_s = self._asleep_s()
        while True:
            await trio.sleep(self._poll_s)
            before, asleep_s = asleep_s, self._asleep_s()
            slept_s = asleep_s - before
            if await self._look_at_interfaces():
                log.info("reach.interfaces %s", self._interfaces.own)
                self._begin_anew()
                self._host.network_changed()
            elif slept_s > ASLEEP_S:
                log.info("reach.slept s=%.0f", slept_s)
                self.restart()
                self._host.network_changed()
            self._see_peers()

    def _asleep_s(self) -> float:
        """What trio's clock has not counted; a difference means sleep."""
        return self._boot_s() - trio.current_time()

    async def _look_at_interfaces(self) -> bool:
        """Read the addresses; True if they changed."""
        listening = [listener.address for listener in self._host.listeners]
        if any(place.is_unspecified for place in listening):
            found = self._interfaces
            with trio.move_on_after(LOOKED_S):
                found = await trio.to_thread.run_sync(_read, listening, abandon_on_cancel=True)
        else:
            found = _Interfaces(tuple(listening), ())
        self._interfaces = found
        return self.machine.interfaces(found.own, trio.current_time())

    async def _watch_peers(self) -> None:
        async for event in self._host.watch():
            self._see_peers()
            if isinstance(event, PeerDown):
                for anchor in self._anchors.values():
                    anchor.ask_now()  # the router may be another, or have forgotten

    def _see_peers(self) -> None:
        """Tell the machine who is outside, if that is not as before."""
        views = [view for view in self._host.peers() if self._is_vantage(view)]
        views.sort(key=lambda view: (view.direction == "in", _mixed(self._host.peer, view.peer)))
        found = [self._vantage(view) for view in views[:VANTAGES_MAX]]
        if found != self._vantages:
            self._vantages = found
            self.machine.outside(found, trio.current_time())
            self._wake()

    def _is_vantage(self, view: PeerView) -> bool:
        """Tell whether a peer sees us as the Internet does: over no relay, through no hole that
        our listening port made, from no network of ours, and not from behind our own router.
        """
        host = parse_address(view.address).host
        if view.path != "direct" or view.is_punched or not self._is_outside(host):
            return False
        if host in self._host.holes.opened:
            return False  # it may have dialled us, through the hole that we punched
        return not self._is_near(host)

    def _is_near(self, host: str) -> bool:
        """Tell whether an address is in a network of ours, or the one that our own router shows."""
        families = self.machine.families.values()
        if any(one.observed is not None and one.observed.host == host for one in families):
            return True
        return is_global(host) and _is_neighbour(host, self._interfaces.networks)

    def _vantage(self, view: PeerView) -> Vantage:
        """Where a peer answers STUN: at the address that we dialled; else where it says it listens,
        if it comes from there, too.
        """
        seen = parse_address(view.address)
        known = [parse_address(text) for text in self._host.addresses_of(view.peer)]
        known = [one for one in known if one.relay is None and self._is_outside(one.host)]
        is_there = view.direction == "out" or any(one.host == seen.host for one in known)
        # Of the family that we see, only where it is: others may be anybody's.
        known = [one for one in known if one.network != seen.network or one.host == seen.host]
        places = {one.network: replace(one, peer=None) for one in reversed(known) if is_there}
        if view.direction == "out":
            places[seen.network] = seen
        return Vantage(view.peer, seen.host, tuple(places.values()), view.direction == "in")

    def _own_hosts(self) -> set[str]:
        return {place.host for place in self._interfaces.own}

    def _listener(self, network: str) -> Listener | None:
        """The first of a family, whose port is the one that others know."""
        found = (one for one in self._host.listeners if one.address.network == network)
        return next(found, None)

    def _begin_anew(self) -> None:
        self._host.holes.opened.clear()  # by another router, or one that has forgotten
        self._looking.cancel()
        self._wake()

    def _wake(self) -> None:
        self._news.set()

    # the second STUN port

    async def _serve_second_port(self) -> None:
        """Serve it from when it seems that we can be reached: others tell their routers by it."""
        while not self._may_serve():
            await self.changed.park()
        listeners, port = list[Listener](), 0
        try:
            for listener in self._host.listeners:
                listeners.append(await open_listener(replace(listener.address, port=port)))
                port = listeners[0].address.port
        except UsageError as error:
            log.info("reach.no_second_port %s", error)
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(listener.serve, self._stun.serve, nursery)
            self.stun_port = port or None
            try:
                await trio.sleep_forever()
            finally:
                self.stun_port = None
                for listener in listeners:
                    listener.sock.close()

    def _may_serve(self) -> bool:
        own = any(self._is_outside(host) for host in self._own_hosts())
        return own or self.machine.verdict == "public"


def _read(listening: list[Address]) -> _Interfaces:
    return _Interfaces(tuple(expand(listening)), tuple(interface_networks()))


def _is_neighbour(host: str, networks: tuple[str, ...]) -> bool:
    ip = ipaddress.ip_address(host)
    return any(ip in ipaddress.ip_network(network) for network in networks)


def _mixed(own: str, other: str) -> bytes:
    """An order of peers that is another one at each node, so that all share the work."""
    return hashlib.sha256(f"{own} {other}".encode()).digest()
