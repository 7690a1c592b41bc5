"""Which relays a node that is not public holds reservations on: pure, time is passed in.

Two, in different networks where there are such, the nearest with free places; renewed at half
their life, replaced at once when they are lost, given up when the node is public. A relay that is
only a little better than one we hold is left alone: each move costs everybody who knows our
addresses. docs/protocols/reach.md, "Relays".
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from node.host.interfaces import network_of
from wire.ids import PeerId

HELD = 2  # one may die, or its network, and others still reach us
CANDIDATES_MAX = 64  # that are compared: nearer ones than the best of 64 are hardly worth more
RETRY_S = 0.5  # after a first refusal: a node that just started may not know yet that it is public
RETRY_MAX_S = 300.0  # a relay that is full stays so for a while
BETTER = 0.5  # a relay must cost less than so much of a held one's
BETTER_S = 0.03  # and so much less, or two near ones would change places all the time
SETTLED_S = 300.0  # that we leave the relays as they are before a better one may take a place
UNKNOWN_RTT_S = 0.3  # of a member that we are not connected to: most of the world is nearer
STEP_S = 0.01  # round trips closer than that are the same: then chance spreads the load
FULL_S = 0.1  # by so much a relay without free places would be farther away
PLENTY = 128  # free places: more make no difference


@dataclass(frozen=True)
class Candidate:
    """A relay that may be asked. `host` is its IP address; `free` its places, None: not told."""

    peer: PeerId
    host: str
    free: int | None = None
    rtt_s: float | None = None


@dataclass(frozen=True)
class Ask:
    """Ask a relay for a reservation, or to renew it; tell `granted` or `refused`."""

    peer: PeerId


@dataclass(frozen=True)
class Release:
    """We are done with a relay: it need not be kept connected for us."""

    peer: PeerId


Effect = Ask | Release


@dataclass
class Hold:
    """A reservation that stands. `renew_at` is half-way to `until`."""

    relay: Candidate
    until: float
    renew_at: float
    addresses: list[str]


@dataclass
class _Refusals:
    wait_s: float = RETRY_S
    until: float = -math.inf


@dataclass
class Reservations:
    """One per node. `own` makes different nodes choose different ones of equal relays."""

    own: PeerId
    is_wanted: bool = False
    held: dict[PeerId, Hold] = field(default_factory=dict[PeerId, Hold])
    _asking: set[PeerId] = field(default_factory=set[PeerId])
    _refused: dict[PeerId, _Refusals] = field(default_factory=dict[PeerId, _Refusals])
    _candidates: dict[PeerId, Candidate] = field(default_factory=dict[PeerId, Candidate])
    _moved_at: float = -math.inf

    @property
    def addresses(self) -> list[str]:
        """Our relay addresses, in an order that stays: a change is told to the whole swarm."""
        return [address for hold in self.held.values() for address in hold.addresses]

    @property
    def deadline(self) -> float:
        """When `tick` has something to do; infinity if only news can change anything."""
        if not self.is_wanted:
            return math.inf
        renewals = [
            max(hold.renew_at, self._retry_at(peer))
            for peer, hold in self.held.items()
            if peer not in self._asking
        ]
        ends = [hold.until for hold in self.held.values()]
        retries = [self._retry_at(peer) for peer in self._free_candidates()]
        is_short = len(self.held) + len(self._asking - self.held.keys()) < HELD
        times = [*renewals, *ends, *(retries if is_short else [])]
        return min(times, default=math.inf)

    def update(
        self, candidates: Iterable[Candidate], *, is_wanted: bool, now: float
    ) -> list[Effect]:
        """Take who may relay now, the likeliest first, and whether we need any."""
        before = self._candidates
        self._candidates = {one.peer: one for one in [*candidates][:CANDIDATES_MAX]}
        for peer, one in self._candidates.items():
            had_room = peer in before and bool(before[peer].free)
            if one.free and not had_room:
                self._refused.pop(peer, None)  # now it says that it has room
            if peer in self.held:
                self.held[peer].relay = one
        known = self._candidates.keys() | self.held.keys()
        self._refused = {peer: one for peer, one in self._refused.items() if peer in known}
        self.is_wanted = is_wanted
        return self.tick(now)

    def granted(
        self, peer: PeerId, addresses: list[str], lasts_s: float, now: float
    ) -> list[Effect]:
        """Take a reservation, new or renewed. One that came too late is released."""
        if peer not in self._asking:
            return []
        self._asking.remove(peer)
        relay = self._candidates.get(peer) or (self.held[peer].relay if peer in self.held else None)
        if relay is None:
            return [Release(peer), *self.tick(now)]
        if peer not in self.held:
            self._moved_at = now
        self._refused.pop(peer, None)
        self.held[peer] = Hold(relay, now + lasts_s, now + lasts_s / 2, addresses)
        return self.tick(now)

    def refused(self, peer: PeerId, now: float) -> list[Effect]:
        """Note that a relay said no, or nothing. What it granted before stands until its end."""
        if peer not in self._asking:
            return []
        self._asking.remove(peer)
        one = self._refused.setdefault(peer, _Refusals())
        one.until = now + one.wait_s
        one.wait_s = min(2 * one.wait_s, RETRY_MAX_S)
        return self.tick(now)

    def lost(self, peer: PeerId, now: float) -> list[Effect]:
        """Note that the connection to a relay ended, and with it the reservation."""
        self._asking.discard(peer)  # what was asked there will not be answered
        hold = self.held.pop(peer, None)
        if hold is None:
            return self.tick(now)
        one = self._refused.setdefault(peer, _Refusals())
        one.until = now + one.wait_s  # the others come first
        return [Release(peer), *self.tick(now)]

    def tick(self, now: float) -> list[Effect]:
        """Do what time asks for."""
        if not self.is_wanted:
            return self._give_up()
        effects: list[Effect] = []
        for peer, hold in list(self.held.items()):
            if hold.until <= now:
                del self.held[peer]
                effects.append(Release(peer))
            elif peer not in self._asking and max(hold.renew_at, self._retry_at(peer)) <= now:
                self._asking.add(peer)
                effects.append(Ask(peer))
        effects += self._leave_surplus()
        while (new := self._next_new(now)) is not None:
            self._asking.add(new)
            effects.append(Ask(new))
        return effects

    # --- inside --------------------------------------------------------------------------------

    def _give_up(self) -> list[Effect]:
        released = [*self.held, *(self._asking - self.held.keys())]
        self.held.clear()
        self._asking.clear()
        return [Release(peer) for peer in released]

    def _next_new(self, now: float) -> PeerId | None:
        """Choose whom to ask for a new reservation; None if all is well, or nobody can help."""
        new = self._asking - self.held.keys()
        free = [peer for peer in self._free_candidates() if self._retry_at(peer) <= now]
        if not free:
            return None
        if len(self.held) + len(new) < HELD:
            asked = [self._candidates[peer] for peer in new if peer in self._candidates]
            return self._best(free, [*(hold.relay for hold in self.held.values()), *asked])
        if new:
            return None  # one move at a time
        worst, *rest = self._worst_first()
        kept = [hold.relay for hold in rest]
        best = self._best(free, kept)
        is_better = self._is_better(self._candidates[best], worst.relay, kept, now)
        return best if is_better else None

    def _best(self, free: list[PeerId], taken: list[Candidate]) -> PeerId:
        return min(free, key=lambda peer: self._order(self._candidates[peer], taken))

    def _is_better(
        self, best: Candidate, worst: Candidate, kept: list[Candidate], now: float
    ) -> bool:
        """True if `best` should take the place of `worst`."""
        networks = {network_of(one.host) for one in kept}
        is_apart, was_apart = (network_of(one.host) not in networks for one in (best, worst))
        if is_apart != was_apart:
            return is_apart
        cost, held = _cost(best), _cost(worst)
        is_much = cost < BETTER * held and cost < held - BETTER_S
        return is_much and now >= self._moved_at + SETTLED_S

    def _leave_surplus(self) -> list[Effect]:
        """Let the worst go if a better one has come."""
        effects: list[Effect] = []
        while len(self.held) > HELD:
            worst = self._worst_first()[0].relay.peer
            del self.held[worst]
            self._asking.discard(worst)
            effects.append(Release(worst))
        return effects

    def _worst_first(self) -> list[Hold]:
        """One whose network another shares is worse than all others; then the farthest."""
        networks = [network_of(hold.relay.host) for hold in self.held.values()]

        def badness(hold: Hold) -> tuple[bool, float]:
            return networks.count(network_of(hold.relay.host)) > 1, _cost(hold.relay)

        return sorted(self.held.values(), key=badness, reverse=True)

    def _order(self, one: Candidate, taken: list[Candidate]) -> tuple[bool, bool, int, bytes]:
        networks = {network_of(other.host) for other in taken}
        chance = hashlib.sha256(f"{self.own} {one.peer}".encode()).digest()
        steps = round(_cost(one) / STEP_S)
        return network_of(one.host) in networks, one.free is None, steps, chance

    def _free_candidates(self) -> list[PeerId]:
        return [
            peer
            for peer, one in self._candidates.items()
            if peer not in self.held and peer not in self._asking and one.free != 0
        ]

    def _retry_at(self, peer: PeerId) -> float:
        one = self._refused.get(peer)
        return one.until if one is not None else -math.inf


def _cost(one: Candidate) -> float:
    """Return the round trip, as if a full relay were `FULL_S` farther away."""
    rtt_s = UNKNOWN_RTT_S if one.rtt_s is None else one.rtt_s
    free = PLENTY // 2 if one.free is None else min(one.free, PLENTY)
    return rtt_s + FULL_S * (1 - free / PLENTY)
