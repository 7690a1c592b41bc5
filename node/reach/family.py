"""Reachability over IPv4, or over IPv6: the part of node/reach/machine.py that each has its own of.
Pure; docs/protocols/reach.md, "Reachability".
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from node.host.addresses import Address
from node.reach.behaviour import Behaviour
from node.reach.candidates import DOUBT_S, RECHECK_S, Candidate, Outcome, Source, Vantage
from wire.ids import PeerId

State = Literal["unknown", "relayed", "punchable", "mapped", "public"]
RANKS: dict[State, int] = {"unknown": 0, "relayed": 1, "punchable": 2, "mapped": 3, "public": 4}

CANDIDATES_MAX = 16  # a family; a host has a few addresses, and each costs peers a dial
INTERFACES_MAX = 12  # of them: many containers must leave room for what is seen from outside
SERVERS_ASKED = 2  # that look at our mapping: what they see alike, a third would, too
IDENTIFIED_MAX = 8  # peers asked until one tells: they may all have dialled the other family
OPENED_S = 300.0  # for a router to forget whom an anchor let in, once it is closed
PATIENCE_S = 1.0  # that we wait for somebody to reach us before we say what else we know: who is
# not reached is told so by silence, and its relays should not wait for the end of that
ANCHOR_RETRY_S = 10.0  # before a server that failed as an anchor is tried again


@dataclass(frozen=True)
class HoldAnchor:
    """Keep a STUN connection from our listening port to `address`; tell `observed`, `released`."""

    peer: PeerId
    address: Address


@dataclass(frozen=True)
class ProbeMapping:
    """Ask these STUN servers from fresh ports; tell `probed`."""

    network: str
    servers: tuple[Address, ...]


@dataclass(frozen=True)
class AskDialBack:
    """Ask a peer to dial one address of ours; tell `dialled_back`."""

    peer: PeerId
    address: Address


@dataclass(frozen=True)
class AskIdentify:
    """Ask a peer that dialled us at which address; tell `identified`."""

    peer: PeerId


Effect = HoldAnchor | ProbeMapping | AskDialBack | AskIdentify


@dataclass
class Family:
    """One address family. `is_outside`: which addresses may be asked about at all."""

    network: str
    is_outside: Callable[[str], bool]
    own: list[Address] = field(default_factory=list[Address])
    candidates: dict[Address, Candidate] = field(default_factory=dict[Address, Candidate])
    vantages: list[Vantage] = field(default_factory=list[Vantage])
    anchor: HoldAnchor | None = None
    observed: Address | None = None
    behaviour: Behaviour | None = None
    state: State = "unknown"
    _opened: dict[PeerId | str, float] = field(default_factory=dict[PeerId | str, float])
    _barred: dict[PeerId, float] = field(default_factory=dict[PeerId, float])  # until when
    _identified: set[PeerId] = field(default_factory=set[PeerId])  # or asked to, or in vain
    _identified_as: Address | None = None  # what such a peer said
    _is_probing: bool = False
    _servers_asked: int = 0  # in the last probe
    _is_fresh: bool = True  # nothing was seen since the network changed: believe what is seen first
    _doubt_at: float | None = None  # since when the behaviour looks worse
    _probe_at: float = -math.inf

    def set_own(self, own: Sequence[Address]) -> bool:
        """Take the interfaces' addresses; True if they changed: all that was seen is void then."""
        if list(own) == self.own:
            return False
        self.own = list(own)
        self.restart()
        return True

    def restart(self) -> None:
        """Begin anew: the network may be another. An address that is gone does not count at all."""
        mapped = [one for one in self.candidates.values() if one.source == "mapped"]
        self.candidates.clear()
        outer = sorted(self.own, key=lambda one: not self.is_outside(one.host))
        for address in outer[:INTERFACES_MAX]:
            self._add(address, "interface")
        for one in mapped:
            self._add(one.address, "mapped", one.via)
        self.anchor = self.observed = self.behaviour = self._identified_as = None
        self._is_probing = False
        self._identified.clear()
        self._opened.clear()
        self._barred.clear()
        self._forget_behaviour()
        if RANKS[self.state] > RANKS["punchable"]:
            self.state = "unknown"

    def set_mapped(self, mapped: dict[Address, str]) -> None:
        """Take the addresses that routers gave us on request, and by which protocol."""
        for address, one in list(self.candidates.items()):
            if one.source == "mapped" and address not in mapped:
                del self.candidates[address]
        for address, via in mapped.items():
            self._add(address, "mapped", via)

    def set_vantages(self, vantages: list[Vantage], now: float) -> None:
        """Take who is outside; what few have seen is shown to the new ones."""
        known = {one.peer for one in self.vantages}
        is_new = any(one.peer not in known for one in vantages)
        self.vantages = vantages
        if not is_new:
            return
        for one in self.candidates.values():
            if one.proofs < 2:
                one.hurry(now if one.reached is None else now + DOUBT_S)
        self._probe_more(now)

    def set_observed(self, address: Address) -> None:
        """Take what the anchor's server sees. Another address than before: all is to be asked."""
        if address == self.observed or not self.own:  # without a listener, nothing is there
            return
        old, self.observed = self.observed, address
        if old is not None and (one := self.candidates.get(old)) and one.source == "observed":
            del self.candidates[old]
        self._add(address, "observed")
        if old is not None:
            self._opened.clear()  # what a router let in was for the mapping that is gone
            self._forget_behaviour()

    def set_identified(self, peer: PeerId, address: Address) -> None:
        """Take what a peer that we asked says, if nothing better told us since."""
        if peer in self._identified and self.is_outside(address.host) and self._is_unidentified():
            self.set_observed(address)
            self._identified_as = address

    def release(self, peer: PeerId, now: float) -> None:
        """Note that the anchor is gone. What it showed stays until another shows something else."""
        if self.anchor is not None and self.anchor.peer == peer:
            for key in (peer, self.anchor.address.host):
                self._opened[key] = now + OPENED_S
            self._barred[peer] = now + ANCHOR_RETRY_S
            self.anchor = None

    def probed(self, seen: Behaviour | None, now: float) -> None:
        """Take the result of a probe. A worse one must be seen twice, DOUBT_S apart."""
        if not self._is_probing:
            return
        self._is_probing = False
        self._probe_at = now + RECHECK_S
        if seen is None:
            self._probe_at = now + DOUBT_S
        self._probe_more(now)
        if seen is None:
            return
        is_worse = self.behaviour is not None and self.behaviour.is_punchable > seen.is_punchable
        if is_worse and not self._is_fresh:
            if self._doubt_at is None:
                self._doubt_at = now
            if now < self._doubt_at + DOUBT_S:
                self._probe_at = self._doubt_at + DOUBT_S
                return
        self.behaviour, self._is_fresh, self._doubt_at = seen, False, None

    def dialled_back(self, peer: PeerId, address: Address, outcome: Outcome, now: float) -> None:
        """Take what became of an `AskDialBack`. What nobody asked is dropped."""
        one = self.candidates.get(address)
        if one is not None:
            host = next((each.host for each in self.vantages if each.peer == peer), "")
            opened = self._opened_now(now)
            is_opened = peer in opened or host in opened
            if one.heard(peer, outcome, is_opened=is_opened, vantages=self.vantages):
                one.close(now)

    def due(self, now: float) -> list[Effect]:
        """Return what to begin now; each counts as begun until its outcome is told."""
        effects = list[Effect]()
        servers = self.servers()
        if self.anchor is None and (hold := self._next_anchor(now)):
            self.anchor = hold
            effects.append(hold)
        if servers and not self._is_probing and now >= self._probe_at:
            self._is_probing, self._servers_asked = True, len(servers[:SERVERS_ASKED])
            effects.append(ProbeMapping(self.network, tuple(servers[:SERVERS_ASKED])))
        elif peer := self._next_identified():
            self._identified.add(peer)
            effects.append(AskIdentify(peer))
        opened = self._opened_now(now)
        for one in self._askable():
            while (vantage := one.next_asked(self.vantages, opened, now)) is not None:
                effects.append(AskDialBack(vantage.peer, one.address))
        return effects

    def deadline(self, now: float) -> float:
        """When `due` may have more to say, if nothing is told before."""
        times = list[float]()
        if self.servers():
            if not self._is_probing:
                times.append(self._probe_at)
            if self.anchor is None:
                times += [self._barred.get(one.peer, now) for one in self.vantages if one.stun]
        if self.vantages:
            for one in self._askable():
                times += [one.round_at, one.asked_at + PATIENCE_S]
        return min((at for at in times if at > now), default=math.inf)

    def judge(self, now: float) -> State:
        """Return the verdict, and keep it: while nothing is decided, it stays what it was."""
        found = self._judged(now)
        if found is not None:
            self.state = found
        return self.state

    def _judged(self, now: float) -> State | None:
        reached = {one.source for one in self.candidates.values() if one.reached}
        if reached & {"interface", "observed"}:
            return "public"
        if reached:
            return "mapped"
        tried = [one for one in self._askable() if one.answers or one.reached is not None]
        if any(self._is_pending(one, now) for one in self._askable()):
            return None  # if there was a router's restart, what was said before stands for now
        has_servers = bool(self.servers())
        if self.behaviour is None and (self._is_probing or (has_servers and now >= self._probe_at)):
            return None
        if self.behaviour is not None:
            return "punchable" if self.behaviour.is_punchable else "relayed"
        if any(one.source == "interface" for one in tried):
            return "punchable"  # a global address of our own that cannot be dialled: a firewall
        return "relayed" if tried else None

    def _is_pending(self, one: Candidate, now: float) -> bool:
        if one.reached is not None or not self.vantages:
            return False
        return now < one.asked_at + PATIENCE_S if one.is_asking else now >= one.round_at

    def _askable(self) -> list[Candidate]:
        return [one for one in self.candidates.values() if self.is_outside(one.address.host)]

    def servers(self) -> list[Address]:
        """STUN servers, the one that our anchor holds last: it has seen us already."""
        if not self.own:
            return []
        held = self.anchor.peer if self.anchor else None
        ordered = sorted(self.vantages, key=lambda one: one.peer == held)
        found = [place for one in ordered for place in one.stun if place.network == self.network]
        return [one for at, one in enumerate(found) if one.host not in _hosts(found[:at])]

    def _next_anchor(self, now: float) -> HoldAnchor | None:
        if not self.own:
            return None
        for one in self.vantages:
            if self._barred.get(one.peer, now) <= now:
                for place in one.stun:
                    if place.network == self.network:
                        return HoldAnchor(one.peer, place)
        return None

    def _next_identified(self) -> PeerId | None:
        """Choose who may tell our address, where nobody answers STUN: all others have dialled us,
        as they do a server in a cloud whose interface has a private address.
        """
        if not self.own or self.servers() or not self._is_unidentified():
            return None
        if len(self._identified) >= IDENTIFIED_MAX:
            return None
        found = (one.peer for one in self.vantages if one.dialled_us)
        return next((peer for peer in found if peer not in self._identified), None)

    def _is_unidentified(self) -> bool:
        """True if there is no address to ask about, or only one that a peer told and none reached:
        it may have lied.
        """
        if self.observed not in (None, self._identified_as):
            return False
        return all(one.source == "observed" and one.reached is False for one in self._askable())

    def _opened_now(self, now: float) -> set[PeerId | str]:
        self._opened = {key: until for key, until in self._opened.items() if until > now}
        held = {self.anchor.peer, self.anchor.address.host} if self.anchor else set[str]()
        return held | self._opened.keys()

    def _add(self, address: Address, source: Source, via: str = "") -> None:
        if address not in self.candidates and len(self.candidates) < CANDIDATES_MAX:
            self.candidates[address] = Candidate(address, source, via)

    def _probe_more(self, now: float) -> None:
        """Probe at once if more servers can be asked than were: one alone sees little."""
        if self._servers_asked < min(SERVERS_ASKED, len(self.servers())):
            self._probe_at = min(self._probe_at, now)

    def _forget_behaviour(self) -> None:
        self._is_fresh, self._doubt_at, self._probe_at = True, None, -math.inf


def _hosts(places: Iterable[Address]) -> set[str]:
    return {place.host for place in places}
