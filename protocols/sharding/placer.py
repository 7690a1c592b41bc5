"""One node's part in placing one model: a state machine over `placement.plan`. No I/O.

Whoever drives it tells what it sees (`look`) and does what comes back: write or take back a claim,
begin to host a span, give one up. Between a claim and its begin lies `SETTLE_S` in which the plan
must not change; that is longer than the store needs to bring claims to everybody.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from protocols.sharding.moves import Move, better_span
from protocols.sharding.placement import (
    CLAIMED,
    HOT,
    IDLE,
    Host,
    Lease,
    View,
    Wish,
    can_leave,
    cover,
)
from protocols.sharding.plan import Plan, plan
from protocols.sharding.records import StageRecord
from protocols.sharding.sharing import Blocks, Shape
from wire.ids import PeerId

LOOK_S = 2.0  # seconds between two looks, besides those at changes
SETTLE_S = 3.0  # that a plan must stay the same; changes reach all members within 2 s
AGREED_S = 0.2  # that it must stay the same if all claim just that, and nobody came or went lately
CLAIM_MAX_S = 8.0  # after which a claim that kept changing is done as it is
MOVE_S = 60.0  # between two looks for a better span, on average: at random, so not all at once


@dataclass(frozen=True)
class Claim:
    """Say in the store that we mean to host a span; the one claimed before is taken back."""

    blocks: Blocks


@dataclass(frozen=True)
class Withdraw:
    """Take our claim back: it is not needed."""


@dataclass(frozen=True)
class Begin:
    """Host a span from now on. `instead_of`: once it is fetched, drain the one that begins there
    and give it up, if it can still go.
    """

    blocks: Blocks
    instead_of: int | None = None


@dataclass(frozen=True)
class Leave:
    """Drain our span that begins at `start`, and give it up."""

    start: int


Effect = Claim | Withdraw | Begin | Leave


@dataclass(frozen=True)
class Sight:
    """What the driver sees: `hosts` that live and may take a part, the leases of living nodes and
    our own (claims of ours left out: we know them). `steady_s`: since a member came or went.
    """

    shape: Shape
    hosts: Sequence[Host]
    leases: Iterable[tuple[PeerId, StageRecord]]
    replicas: int = 1
    nodes: int = 0
    wish: Wish | None = None
    steady_s: float = 0.0


@dataclass
class _Seen:
    """Since when a lease was seen in its state, over `HOT`, and under `IDLE`."""

    state: str
    since_s: float
    hot_since_s: float | None = None
    idle_since_s: float | None = None


@dataclass
class _Claimed:
    blocks: Blocks
    first_s: float
    since_s: float
    instead_of: int | None = None
    settle_s: float = SETTLE_S

    @property
    def settled_s(self) -> float:
        """When it becomes a decision, if it stays the same."""
        return min(self.since_s + self.settle_s, self.first_s + CLAIM_MAX_S)


@dataclass
class Placer:
    """Decides for one node and one model. `rng` spreads the looks for a better span."""

    me: PeerId
    rng: random.Random
    _seen: dict[tuple[PeerId, int], _Seen] = field(default_factory=dict[tuple[PeerId, int], _Seen])
    _claim: _Claimed | None = None
    _gap_since_s: float | None = None
    _heard: set[PeerId] = field(default_factory=set[PeerId])  # since then
    _move_at_s: float | None = None

    @property
    def claim(self) -> Blocks | None:
        """The span that we claim now."""
        return self._claim.blocks if self._claim else None

    @property
    def deadline(self) -> float:
        """When the next look is needed because of our claim; infinity without one."""
        claim = self._claim
        return math.inf if claim is None else claim.settled_s

    def look(self, sight: Sight, now: float) -> list[Effect]:
        """Return what to do now."""
        view = self._view(sight, now)
        todo = plan(view)
        effects: list[Effect] = [Leave(start) for start in todo.leave if not self._is_moving(view)]
        if sight.wish is not None and sight.wish.end and todo.claim:
            self._claim = None
            return [*effects, Begin(todo.claim)]  # a person said so: there is nothing to settle
        move = self._move(view, todo, now)
        target = todo.claim or (move.to if move else None)
        instead_of = move.start if move and not todo.claim else None
        agreed = todo.agreed and sight.steady_s >= SETTLE_S and instead_of is None
        settle_s = AGREED_S if agreed else SETTLE_S
        return [*effects, *self._settle(target, instead_of, now, settle_s)]

    def can_leave(self, sight: Sight, start: int, now: float) -> bool:
        """Whether our span from `start` on may go now: asked again just before it does."""
        return can_leave(self._view(sight, now), start)

    def _settle(
        self, target: Blocks | None, instead_of: int | None, now: float, settle_s: float
    ) -> list[Effect]:
        claim = self._claim
        if target is None:
            self._claim = None
            return [Withdraw()] if claim else []
        if claim is None or claim.blocks != target:
            first_s = claim.first_s if claim else now
            self._claim = claim = _Claimed(target, first_s, now, instead_of)
            if now - first_s < CLAIM_MAX_S:
                return [Claim(target)]
        claim.settle_s = settle_s
        if now >= claim.settled_s:
            self._claim = None
            return [Begin(target, claim.instead_of)]
        return []

    def _move(self, view: View, todo: Plan, now: float) -> Move | None:
        """Look for a better span now and then, and keep to it while it is claimed."""
        claim = self._claim
        if claim is not None and claim.instead_of is not None:
            keeps = todo.claim is None and can_leave(view, claim.instead_of)
            return Move(claim.instead_of, claim.blocks) if keeps else None
        if self._move_at_s is None or now >= self._move_at_s:
            is_first = self._move_at_s is None
            self._move_at_s = now + self.rng.uniform(0.5, 1.5) * MOVE_S
            if not is_first and todo.claim is None and not todo.leave:
                return better_span(view, self.rng)
        return None

    def _is_moving(self, view: View) -> bool:
        """Whether we are about to change a span for another: then both are held for a while."""
        states = {lease.state for lease in view.leases if lease.peer == self.me}
        return bool(states & {"fetching", "loading"})

    def _view(self, sight: Sight, now: float) -> View:
        leases = self._leases(sight.leases, now)
        view = View(
            self.me,
            sight.shape,
            sight.hosts,
            leases,
            sight.replicas,
            sight.nodes,
            sight.wish,
        )
        if all(cover(view)):
            self._gap_since_s = None
            self._heard.clear()
            return view
        if self._gap_since_s is None:
            self._gap_since_s = now
        self._heard |= {lease.peer for lease in leases if lease.state == CLAIMED}
        return replace(view, gap_s=now - self._gap_since_s, heard=frozenset(self._heard))

    def _leases(self, told: Iterable[tuple[PeerId, StageRecord]], now: float) -> list[Lease]:
        found: list[Lease] = []
        before, self._seen = self._seen, {}
        for peer, record in told:
            if peer == self.me and record.state == CLAIMED:
                continue
            key = peer, record.start
            seen = before.get(key)
            if seen is None or seen.state != record.state:
                seen = _Seen(record.state, now)
            load = record.load / 1000
            seen.hot_since_s = _since(load > HOT, seen.hot_since_s, now)
            seen.idle_since_s = _since(load < IDLE, seen.idle_since_s, now)
            self._seen[key] = seen
            found.append(
                Lease(
                    peer,
                    record.start,
                    record.end,
                    record.state,
                    age_s=now - seen.since_s,
                    hot_s=0.0 if seen.hot_since_s is None else now - seen.hot_since_s,
                    idle_s=0.0 if seen.idle_since_s is None else now - seen.idle_since_s,
                    decode_us=record.decode_us,
                    since_ms=record.claimed_ms,
                )
            )
        return found


def _since(is_so: bool, before_s: float | None, now: float) -> float | None:
    if not is_so:
        return None
    return now if before_s is None else before_s
