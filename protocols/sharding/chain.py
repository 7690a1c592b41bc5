"""A route in use: which stages a session has, who of them is lost, who takes over. No I/O.

The chain is a list of legs (stages, opening or open) and gaps (blocks that nobody computes now),
from the first block to the last. Events come from the driver (`generate.py`), which applies the
effects in order. What a stage was told of its neighbours is kept, so after every event the chain
says `Rewire` to exactly those for whom something changed; catch-up between stages does the rest
(docs/protocols/sharding.md, "Failover").
"""

import math
from dataclasses import dataclass, field, replace

from protocols.sharding.parts import (
    BROKEN_MAX,
    FIRST_PATIENCE_S,
    LOSSES_MAX,
    OPEN_S,
    PATIENCE_S,
    RESUME_S,
    RETRY_S,
    ROOM_S,
    DropStage,
    Effect,
    EndStage,
    Feeding,
    FeedStage,
    Find,
    Gap,
    GiveUp,
    HopLost,
    Leg,
    Loss,
    NoRoom,
    OpenStage,
    PingStage,
    RewireStage,
    merged,
)
from protocols.sharding.route import NoRoute, RouteHop
from protocols.sharding.wire import SILENCE_S, Place
from wire.errors import Busy, ShoalError
from wire.ids import PeerId

ENTRY = 0  # the number of the entry's own end of the ring, where a leg's number is asked for


@dataclass
class Chain:
    """The stages of one session. Every method returns the effects of its event."""

    entry: PeerId
    n_layers: int
    find: Find
    now: float
    replaced: int = 0
    whole_once: bool = False
    _parts: list[Leg | Gap] = field(default_factory=list["Leg | Gap"])
    _own: Feeding = field(default_factory=Feeding)
    _lost: dict[PeerId, bool] = field(default_factory=dict[PeerId, bool])  # last: last; only full?
    _numbers: int = ENTRY
    _losses: int = 0  # of open stages, since a pick
    _is_disturbed: bool = False  # something broke since a pick
    _room_s: float = ROOM_S
    _over: bool = False

    def begin(self, route: list[RouteHop]) -> list[Effect]:
        """Open the first route."""
        takes = "ids"
        for hop in route:
            self._parts.append(self._leg(hop, takes, self.now))
            takes = hop.codec
        opening: list[Effect] = [self._opening(part) for part in self._legs()]
        return [*opening, *self._settle()]

    # What the driver looks at.

    @property
    def hops(self) -> list[tuple[int, RouteHop]]:
        """The stages in use, each with its number."""
        return [(leg.number, leg.hop) for leg in self._legs()]

    @property
    def failed(self) -> list[PeerId]:
        """Who was lost, but for those that were only full."""
        return [peer for peer, is_full in self._lost.items() if not is_full]

    @property
    def is_whole(self) -> bool:
        """Whether every block has a stage that is open."""
        return all(isinstance(part, Leg) and part.is_open for part in self._parts)

    @property
    def position(self) -> int:
        """The rows that all stages had when they were opened."""
        return min((leg.position for leg in self._legs()), default=0)

    @property
    def truncates(self) -> bool:
        """Whether the caches of all stages can be truncated."""
        return all(leg.truncates for leg in self._legs())

    @property
    def deadline(self) -> float:
        """When `tick` is needed next; infinity once it is over."""
        if self._over:
            return math.inf
        times = [part.deadline if isinstance(part, Leg) else part.retry_s for part in self._parts]
        return min(times)

    # Events.

    def close(self) -> None:
        """The session ends: no event changes anything any more."""
        self._over = True

    def opened(self, number: int, position: int, *, truncates: bool, now: float) -> list[Effect]:
        """A stage has opened its session; it has the rows before `position`."""
        self.now = now
        leg = self._by_number(number)
        if leg is None or leg.is_open:
            return []
        leg.is_open, leg.position, leg.truncates = True, position, truncates
        leg.deadline = now + SILENCE_S
        self.whole_once = self.whole_once or self.is_whole
        return self._settle()

    def heard(self, number: int, now: float) -> list[Effect]:
        """A stage answered a ping."""
        self.now = now
        leg = self._by_number(number)
        if leg is None or not leg.is_open or leg.is_ending:
            return []
        leg.deadline = now + SILENCE_S
        return self._settle() if self._before(leg).feed_down else []

    def picked(self, now: float) -> None:
        """Tokens were picked: all stages did their work."""
        if not self._is_disturbed:
            return
        self.now = now
        self._is_disturbed, self._losses = False, 0
        for part in (self._own, *self._legs()):
            part.broken = 0
        for leg in self._legs():
            leg.has_worked = True

    def broken(self, number: int, to: Place, *, forgot: bool, now: float) -> list[Effect]:
        """A stage (or the entry) cannot feed its next, or has forgotten what that one lacks."""
        self.now = now
        part = self._own if number == ENTRY else self._by_number(number)
        if part is None or part.next != to or self._over:
            return []  # of a neighbour that it does not have any more
        self._is_disturbed = True
        if forgot and isinstance(part, Leg):
            if part.is_fresh and not part.has_worked:
                return self.lost(number, Loss.FAILED, "it forgets all that it computes", now)
            part.is_ending = True
            part.deadline = now + RESUME_S
            return [EndStage(part.number)]
        part.feed_down = True
        part.broken += 1
        following = self._after(part)
        if part.broken > BROKEN_MAX:
            # one of the two cannot be reached: the one after, and if that was not it, the other
            part.broken, part.has_blamed = 0, not part.has_blamed
            blamed = following.number if following and (part.has_blamed or not number) else number
            return self.lost(blamed, Loss.FAILED, f"no feed to {to.peer} can be opened", now)
        return [PingStage(following.number)] if following else self._settle()

    def lost(
        self, number: int, loss: Loss, why: str, now: float, *, error: ShoalError | None = None
    ) -> list[Effect]:
        """A stage is lost. `error`: what it said, where that goes to who asked."""
        self.now = now
        leg = self._by_number(number)
        if leg is None:
            return []
        if isinstance(error, Busy):
            self._room_s = min(error.retry_after_s or self._room_s, PATIENCE_S)
        self._make_gap(leg, loss, why)
        return [DropStage(number), *self._settle()]

    def stalled(self, now: float, *, is_again: bool = False) -> list[Effect]:
        """No picks came for long though all stages answer: all feeds are opened anew.

        `is_again`: that did not help; who holds them up cannot be seen, so all for whom there is
        another are replaced.
        """
        self.now = now
        for part in (self._own, *self._legs()):
            part.feed_down = True
        effects: list[Effect] = []
        if is_again:
            self._lost.update({leg.hop.peer: False for leg in self._legs()})
            for leg in self._legs():
                if self._has_other(leg):
                    effects += self.lost(leg.number, Loss.FAILED, "no tokens come", now)
        return [*effects, *self._settle()]

    def _has_other(self, leg: Leg) -> bool:
        previous, following = self._previous_peer(leg), self._next_place(leg, is_open=False)
        after = PeerId(following.peer) if following else self.entry
        try:
            self.find(leg.hop.start, leg.hop.end, previous, after, frozenset(self._lost))
        except NoRoute:
            return False
        return True

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        self.now = now
        if self._over:
            return []
        effects: list[Effect] = []
        for leg in self._legs():
            if leg.deadline <= now:
                why = f"silent for {SILENCE_S:g} s" if leg.is_open else "it did not open in time"
                self._make_gap(leg, Loss.SILENT, why)
                effects.append(DropStage(leg.number))
        return [*effects, *self._settle()]

    # Gaps.

    def _make_gap(self, leg: Leg, loss: Loss, why: str) -> None:
        hop = leg.hop
        if leg.is_ending:
            loss = Loss.ENDED
        elif loss is Loss.ENDED:
            loss = Loss.FAILED  # nobody asked for that
        self._losses += leg.is_open
        self._is_disturbed = True
        self._before(leg).feed_down = True
        since = self.now if leg.is_open else leg.since
        is_busy = loss is Loss.BUSY
        gap = Gap(hop.peer, hop.start, hop.end, leg.takes, hop.codec, why, since, is_busy)
        # A stream that broke may be our own path that changed: the stage keeps the session for a
        # while, and if its process is dead the peer says so at once.
        gap.is_fresh = loss is Loss.ENDED or leg.is_fresh
        if loss is Loss.BROKEN and leg.is_open:
            gap.resume = hop
        elif loss is not Loss.ENDED:
            self._lost.pop(hop.peer, None)
            self._lost[hop.peer] = is_busy
            self.replaced += self.whole_once and (leg.is_open or leg.is_resumed)
        self._parts[self._parts.index(leg)] = gap
        self._parts = merged(self._parts)

    def _settle(self) -> list[Effect]:
        """Fill the gaps whose time has come, then tell neighbours of each other."""
        if self._over:
            return []
        effects: list[Effect] = []
        for gap in [part for part in self._parts if isinstance(part, Gap)]:
            if gap.retry_s <= self.now:
                effects += self._fill(gap)
            if self._over:
                return effects
        return [*effects, *self._wire()]

    def _fill(self, gap: Gap) -> list[Effect]:
        patience_s = PATIENCE_S if self.whole_once else FIRST_PATIENCE_S
        if self._losses > LOSSES_MAX or self.now - gap.since >= patience_s:
            return self._give_up(self._error_of(gap))
        try:
            route = [gap.resume] if gap.resume else self._route(gap)
        except NoRoute:
            if not self.whole_once and gap.busy:
                return self._give_up(self._error_of(gap))
            gap.retry_s = self.now + RETRY_S
            return []
        takes = gap.takes
        legs: list[Leg] = []
        for hop in route:
            gives = gap.gives if hop is route[-1] else hop.codec
            legs.append(self._leg(replace(hop, codec=gives), takes, gap.since))
            takes = gives
            legs[-1].is_fresh = gap.is_fresh
        if gap.resume:
            legs[0].is_resumed = True
            legs[0].deadline = self.now + RESUME_S
        at = self._parts.index(gap)
        self._parts[at : at + 1] = legs
        return [self._opening(leg) for leg in legs]

    def _route(self, gap: Gap) -> list[RouteHop]:
        """Stages for a gap: others than were lost; if nobody else has the blocks, they again, the
        one that was lost first before the others: of the last one we know best that it is gone.
        """
        at = self._parts.index(gap)
        previous, following = self._peer_at(at - 1), self._peer_at(at + 1)
        lost = list(self._lost)
        while True:
            try:
                return self.find(gap.start, gap.end, previous, following, frozenset(lost))
            except NoRoute:
                is_first = gap.retry_s == -math.inf  # they have only just been lost
                if not lost or is_first or (gap.busy and not self.whole_once):
                    raise
                del lost[0]

    def _error_of(self, gap: Gap) -> ShoalError:
        blocks = f"blocks {gap.start}-{gap.end}"
        if gap.busy:
            return NoRoom(f"nobody has room for {blocks}", retry_after_s=self._room_s)
        return HopLost(f"{blocks} on {gap.peer} are lost: {gap.cause}")

    def _give_up(self, error: ShoalError) -> list[Effect]:
        self._over = True
        return [GiveUp(error)]

    # Neighbours.

    def _wire(self) -> list[Effect]:
        """Tell every open stage, and our own feed, what changed beside it.

        A stage is told of a new one before it as soon as that is chosen, so that it takes its feed;
        and of a new one after it once that is open.
        """
        effects: list[Effect] = []
        for leg in self._legs():
            if not leg.is_open or leg.is_ending:
                continue
            previous = self._previous_peer(leg)
            following = self._next_place(leg) or leg.next or self._guess(leg)
            if (leg.previous, leg.next) != (previous, following) or self._mended(leg):
                leg.previous, leg.next, leg.feed_down = previous, following, False
                effects.append(RewireStage(leg.number, previous, following))
        first = self._parts[0]
        if isinstance(first, Leg) and first.is_open and not first.is_ending:
            effects += self._feed_first(first.place)
        return effects

    def _feed_first(self, place: Place) -> list[Effect]:
        if self._own.next == place and not self._mended(self._own):
            return []
        self._own.next, self._own.feed_down = place, False
        return [FeedStage(place)]

    def _mended(self, part: Feeding) -> bool:
        """Whether a feed that is down can be opened again: who is fed has just shown itself."""
        if not part.feed_down:
            return False
        following = self._after(part)
        if following is None:
            return self._parts[-1] is part  # the entry is always there
        return following.is_open and following.deadline >= self.now + SILENCE_S

    def _leg(self, hop: RouteHop, takes: str, since: float) -> Leg:
        self._numbers += 1
        deadline = self.now + OPEN_S
        return Leg(number=self._numbers, hop=hop, takes=takes, deadline=deadline, since=since)

    def _opening(self, leg: Leg) -> OpenStage:
        previous = self._previous_peer(leg)
        following = self._next_place(leg, is_open=False) or self._guess(leg)
        leg.previous, leg.next = previous, following
        return OpenStage(leg.number, leg.hop, leg.takes, previous, following, leg.is_fresh)

    def _legs(self) -> list[Leg]:
        return [part for part in self._parts if isinstance(part, Leg)]

    def _by_number(self, number: int) -> Leg | None:
        if self._over:
            return None
        return next((leg for leg in self._legs() if leg.number == number), None)

    def _before(self, leg: Leg) -> Feeding:
        at = self._parts.index(leg)
        part = self._parts[at - 1] if at else self._own
        return Feeding() if isinstance(part, Gap) else part  # (of a gap nobody asks)

    def _after(self, part: Feeding) -> Leg | None:
        at = self._parts.index(part) + 1 if isinstance(part, Leg) else 0
        following = self._parts[at] if at < len(self._parts) else None
        return following if isinstance(following, Leg) else None

    def _peer_at(self, at: int) -> PeerId:
        """The node of a part; beyond the ends of the chain it is the entry."""
        if not 0 <= at < len(self._parts):
            return self.entry
        part = self._parts[at]
        return part.hop.peer if isinstance(part, Leg) else part.peer

    def _previous_peer(self, leg: Leg) -> PeerId:
        return self._peer_at(self._parts.index(leg) - 1)

    def _next_place(self, leg: Leg, *, is_open: bool = True) -> Place | None:
        at = self._parts.index(leg) + 1
        if at == len(self._parts):
            return Place(self.entry, self.n_layers)
        part = self._parts[at]
        if not isinstance(part, Leg) or (is_open and not part.is_open):
            return None
        return part.place

    def _guess(self, leg: Leg) -> Place:
        """Whom a stage is told before its next is known: who had those blocks last."""
        return Place(self._peer_at(self._parts.index(leg) + 1), leg.hop.end)
