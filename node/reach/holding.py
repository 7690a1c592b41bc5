"""Holds reservations on relays: carries out what node/reach/reservations.py decides."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import trio

from node.host.addresses import Address, parse_address
from node.host.service import LibP2pHost
from node.host.views import PeerDown, PeerView
from node.reach.offer import read_offer
from node.reach.reservations import Ask, Candidate, Effect, Reservations
from node.reach.views import Held
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId

LOOK_S = 1.0  # between two looks at who might relay, and whether we need it
ASK_S = 5.0  # for a relay to answer, a dial included
ADDRESSES_MAX = 4  # of one relay: IPv4 and IPv6, two of each
REASON = "relay"  # why the host keeps a relay connected

log = logging.getLogger(__name__)


class Member(Protocol):
    """What is needed of a member of the swarm."""

    @property
    def peer(self) -> PeerId:
        """Who it is."""
        ...

    @property
    def addrs(self) -> Sequence[str]:
        """Its multiaddrs, as it says."""
        ...

    @property
    def offers(self) -> Mapping[str, object]:
        """What it says it offers."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is there, as far as we know."""
        ...


class Granted(Protocol):
    """A reservation, as a relay gave it."""

    @property
    def until(self) -> float:
        """When it ends, trio's clock."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddrs of the relay, or of us through it."""
        ...


class Holding:
    """Start it once the host runs. `on_change` is called when our relay addresses are others.

    members: those of the swarm. reserve: asks a relay; raises ShoalError. is_needed: whether some
    cannot dial us. is_outside: which IP addresses are beyond our own network.
    """

    def __init__(
        self,
        host: LibP2pHost,
        members: Callable[[], Sequence[Member]],
        reserve: Callable[[PeerId], Awaitable[Granted]],
        *,
        is_needed: Callable[[], bool],
        is_outside: Callable[[str], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._host, self._members, self._reserve = host, members, reserve
        self._is_needed, self._is_outside, self._on_change = is_needed, is_outside, on_change
        self._machine = Reservations(host.peer)
        self._news = trio.Event()
        self._told: list[str] = []
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold what is needed until cancelled. A relay drops its part when we are gone."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch)
            task_status.started()
            while True:
                self._news = trio.Event()
                self._look()
                with trio.move_on_at(min(trio.current_time() + LOOK_S, self._machine.deadline)):
                    await self._news.wait()

    def look(self) -> None:
        """Decide anew: who is connected, or whether we need relays, has changed."""
        self._news.set()

    @property
    def addresses(self) -> list[str]:
        """Ours through the relays that we hold."""
        return self._machine.addresses

    def view(self) -> list[Held]:
        """The reservations, for people."""
        now = trio.current_time()
        return [
            Held(
                relay=peer,
                host=hold.relay.host,
                rtt_ms=None if hold.relay.rtt_s is None else round(hold.relay.rtt_s * 1000, 1),
                left_s=round(hold.until - now, 1),
                addresses=list(hold.addresses),
            )
            for peer, hold in self._machine.held.items()
        ]

    # --- inside --------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for event in self._host.watch():
            if isinstance(event, PeerDown):
                self._apply(self._machine.lost(event.peer, trio.current_time()))
            self.look()

    def _look(self) -> None:
        now = trio.current_time()
        if not (self._is_needed() or self._machine.is_wanted):
            return
        views = self._host.peers()
        direct = {view.peer: view for view in views if view.path == "direct"}
        for peer in self._machine.held.keys() - direct.keys():
            self._apply(self._machine.lost(peer, now))
        candidates = self._candidates(direct)
        self._apply(
            self._machine.update(candidates, is_wanted=self._is_needed(), now=now),
        )

    def _candidates(self, direct: Mapping[PeerId, PeerView]) -> list[Candidate]:
        """Members that offer, and peers that we could dial: of those we know that others can."""
        found: dict[PeerId, Candidate] = {}
        silent: list[Candidate] = []
        offers = {
            one.peer: (read_offer(one.offers), one.addrs) for one in self._members() if one.alive
        }
        for peer, view in direct.items():
            offer, _ = offers.pop(peer, (None, ()))
            host = parse_address(view.address).host
            rtt_s = None if view.rtt_ms is None else view.rtt_ms / 1000
            if not self._is_outside(host):
                continue
            if offer is not None and offer.relay:
                found[peer] = Candidate(peer, host, offer.relay, rtt_s)
            elif view.direction == "out" and not view.is_punched:
                is_silent = offer is None or offer.state == "unknown"
                silent.append(Candidate(peer, host, None if is_silent else 0, rtt_s))
        for peer, (offer, addrs) in offers.items():
            place = self._outside_host(addrs)
            if offer is not None and offer.relay and place and peer != self._host.peer:
                found[peer] = Candidate(peer, place, offer.relay)
        return [*found.values(), *silent]

    def _outside_host(self, addrs: Sequence[str]) -> str | None:
        for address in _parsed(addrs):
            if address.relay is None and self._is_outside(address.host):
                return address.host
        return None

    def _apply(self, effects: list[Effect]) -> None:
        assert self._nursery is not None
        for effect in effects:
            if isinstance(effect, Ask):
                self._nursery.start_soon(self._ask, effect.peer)
            else:
                self._host.forget(effect.peer, reason=REASON)
        if (addresses := self.addresses) != self._told:
            self._told = addresses
            log.info("relays %s", [f"{peer}" for peer in self._machine.held])
            self._on_change()

    async def _ask(self, relay: PeerId) -> None:
        machine, effects = self._machine, list[Effect]()
        try:
            with trio.fail_after(ASK_S):
                granted = await self._reserve(relay)
        except (ShoalError, trio.TooSlowError) as error:
            log.debug("relay.refused relay=%s %s", relay, error or f"no answer in {ASK_S:.0f} s")
            effects = machine.refused(relay, trio.current_time())
        else:
            now, addresses = trio.current_time(), self._ours(relay, granted.addresses)
            if addresses:
                effects = machine.granted(relay, addresses, granted.until - now, now)
            else:
                log.debug("relay.useless relay=%s addresses=%s", relay, granted.addresses)
                effects = machine.refused(relay, now)
        if relay in machine.held:
            self._host.keep(relay, [], reason=REASON)
        self._apply(effects)
        self.look()  # the deadline is another now

    def _ours(self, relay: PeerId, addresses: Sequence[str]) -> list[str]:
        """Our addresses at a relay: those outside that it tells, and where we reached it."""
        here = [
            view.address
            for view in self._host.peers()
            if view.peer == relay and view.direction == "out" and not view.is_punched
        ]
        places = [
            Address(one.network, one.host, one.port, self._host.peer, relay)
            for one in _parsed([*here, *addresses])
            if one.port and self._is_outside(one.host)
        ]
        return [str(place) for place in dict.fromkeys(places)][:ADDRESSES_MAX]


def _parsed(texts: Sequence[str]) -> list[Address]:
    found: list[Address] = []
    for text in texts:
        try:
            found.append(parse_address(text))
        except BadMessage:
            continue
    return found
