"""The ranges of a timeline in which two replicas differ, and how a leader settles them, sans-IO.

A range that still has to be looked at is cut by one side or the other each time, until the other
has nothing there, or what the leader has there is little enough to be named: so it ends whatever
the answers are. The newest come first. Source: Meyer, "Range-Based Set Reconciliation", 2023.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from crdt.entry import Record, Signed
from crdt.fault import Fault
from crdt.holding import LEAF_MAX, Holding, in_chain_order, parts_of, shorts
from crdt.timeline import cut_evenly, short
from crdt.wire import (
    ASKS_MAX,
    Answer,
    Ask,
    Compare,
    Differences,
    Range,
    Request,
    check_parts,
    fitting,
    shorts_of,
    stamp_of,
)
from wire.errors import BadMessage

T = TypeVar("T")

DEPTH_MAX = 48  # how often a range is cut, by either side: 2 ** 24 entries in halves
SPANS_MAX = 16_384  # ranges that wait to be looked at; an honest session of any size has fewer
COMPARE_BUDGET = 40_000  # bytes of one Compare
GIFTS_SORTED = 8_192  # entries sorted by chain at a time: as many as are given soon


@dataclass(frozen=True)
class Take:
    """Check, write and merge these; the next request may go out meanwhile."""

    namespace: bytes
    entries: list[Signed]


@dataclass(frozen=True)
class TakeProofs:
    """Check and merge these."""

    namespace: bytes
    proofs: list[Fault]


@dataclass(frozen=True)
class Settle:
    """Wait until all that was taken is merged: what comes next looks at it."""


@dataclass(frozen=True)
class Turn:
    """Wait, not for ever, while another session of ours pulls whole chains: it may bring the same.
    Ours is the turn until the end of the session.
    """


@dataclass(frozen=True)
class Give:
    """Push these, but for those whose signature turns out to be wrong."""

    namespace: bytes
    records: list[Record]
    proofs: list[Fault]


Effect = Request | Take | TakeProofs | Settle | Turn | Give
Steps = Generator[Effect, Answer | None, T]


def expect(answer: Answer | None, kind: type[T]) -> T:
    """Return an answer of the kind that was asked for. Raises BadMessage."""
    if not isinstance(answer, kind):
        raise BadMessage(f"{type(answer).__name__} does not answer our request")
    return answer


@dataclass(frozen=True)
class Span:
    """A range that differs. `is_bare`: the other has nothing there. `depth`: of how many cuts."""

    low: bytes
    high: bytes
    is_bare: bool = False
    depth: int = 0


@dataclass(frozen=True)
class _Asked:
    """A span, what was asked about it, and the stamps that a leaf named."""

    span: Span
    ask: Ask
    named: list[bytes]


@dataclass
class Gifts:
    """What is to be pushed, each entry once in a session; nothing is added while it is shut."""

    holding: Holding
    is_shut: bool = False
    _given: set[bytes] = field(default_factory=set[bytes])
    _waiting: list[bytes] = field(default_factory=list[bytes])

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, stamps: list[bytes]) -> None:
        """Note what the other lacks."""
        fresh = [stamp for stamp in stamps if not self.is_shut and stamp not in self._given]
        self._given.update(fresh)
        self._waiting += fresh

    def add_lacked(self, lacks: bytes, offered: Mapping[bytes, bytes]) -> None:
        """Note what the other says it lacks, by short id. Raises BadMessage."""
        names = shorts_of(lacks)
        if any(name not in offered for name in names):
            raise BadMessage("asked for an entry that was not offered")
        self.add([offered[name] for name in names])

    def give(self) -> Steps[None]:
        """Push what waits, chain by chain."""
        while self._waiting:
            some, self._waiting = self._waiting[:GIFTS_SORTED], self._waiting[GIFTS_SORTED:]
            held = self.holding.replica.records
            records = in_chain_order(held[stamp] for stamp in some if stamp in held)
            while records:
                fit = fitting(records)
                yield Give(self.holding.replica.id, records[:fit], [])
                records = records[fit:]


@dataclass
class Descent:
    """Looks at the ranges that differ."""

    holding: Holding
    nonce: bytes
    gifts: Gifts

    def settle(self, spans: list[Span]) -> Steps[None]:
        """Settle spans, given the oldest first, and what is found in them."""
        queue = deque(spans)
        while queue:
            asked = self._next(queue)
            if asked:
                request = Compare(self.holding.replica.id, self.nonce, [one.ask for one in asked])
                answer = expect((yield request), Differences)
                queue += self._left(asked, answer)
                if len(queue) > SPANS_MAX:
                    raise BadMessage(f"more than {SPANS_MAX} ranges that differ")
                if answer.entries:
                    yield Take(self.holding.replica.id, answer.entries)
            if len(self.gifts) >= GIFTS_SORTED or not queue:
                yield from self.gifts.give()

    def differing(self, span: Span, said: Range) -> list[Span]:
        """Return what of a span may differ, by what the other says of it; the oldest first."""
        depth = span.depth + 1
        if depth > DEPTH_MAX:
            raise BadMessage(f"a range that is still cut after {DEPTH_MAX} times")
        if not said.prints:
            if said.bounds:
                raise BadMessage("bounds without fingerprints")
            return [Span(span.low, span.high, said.count == 0, depth)]
        bounds = [span.low, *said.bounds, span.high]
        check_parts(bounds, said.prints)
        ours = shorts_of(self.holding.prints(self.nonce, bounds))
        return [
            Span(bounds[at], bounds[at + 1], False, depth)
            for at, (mine, other) in enumerate(zip(ours, shorts_of(said.prints), strict=True))
            if mine != other
        ]

    def _next(self, queue: deque[Span]) -> list[_Asked]:
        """Take from the newest end as many spans as one message holds."""
        asked: list[_Asked] = []
        room = COMPARE_BUDGET
        while queue and len(asked) < ASKS_MAX and room > 0:
            span = queue.pop()
            if span.is_bare:
                self.gifts.add(self.holding.replica.timeline.between(span.low, span.high))
                continue
            asked.append(self._asked(span))
            ask = asked[-1].ask
            room -= 8 + len(ask.prints) + len(ask.ids) + sum(len(one) + 2 for one in ask.bounds)
        return asked

    def _asked(self, span: Span) -> _Asked:
        seen = self.holding.seen(span.low, span.high)
        if len(seen) <= LEAF_MAX:
            return _Asked(span, Ask([span.low, span.high], ids=shorts(self.nonce, seen)), seen)
        bounds = [span.low, *cut_evenly(seen, parts_of(len(seen))), span.high]
        return _Asked(span, Ask(bounds, self.holding.prints(self.nonce, bounds)), [])

    def _left(self, asked: list[_Asked], answer: Differences) -> list[Span]:
        """Return what is left to look at, the oldest first. Raises BadMessage."""
        handled = answer.handled
        if handled > len(asked) or (not handled and not answer.cut):
            raise BadMessage(f"{handled} of {len(asked)} asks handled")
        left = [one.span for one in asked[handled:]]
        leaves = [one.ask.bounds for one in asked[:handled] if not one.ask.prints]
        if answer.cut:
            if not left or asked[handled].ask.prints or not left[0].low < answer.cut < left[0].high:
                raise BadMessage("a cut where nothing was to be cut")
            leaves.append([left[0].low, answer.cut])
            left[0] = Span(answer.cut, left[0].high, False, left[0].depth)
        _check_within(leaves, answer.entries)
        if answer.lacks:
            offered = {short(self.nonce, stamp): stamp for one in asked for stamp in one.named}
            self.gifts.add_lacked(answer.lacks, offered)
        return [*reversed(left), *self._narrowed(asked[:handled], answer.ranges)]

    def _narrowed(self, asked: list[_Asked], ranges: list[Range]) -> list[Span]:
        """Return what is left of what was handled, the oldest first."""
        parts = [
            Span(low, high, False, one.span.depth)
            for one in asked
            for low, high in pairwise(one.ask.bounds)
        ]
        found: list[Span] = []
        before = -1
        for said in ranges:
            if not before < said.index < len(parts):
                raise BadMessage("a part that was not asked for, or out of order")
            before = said.index
            found += self.differing(parts[said.index], said)
        return sorted(found, key=lambda span: span.low)


def _check_within(leaves: list[list[bytes]], entries: list[Signed]) -> None:
    """Raise BadMessage if an entry is in none of the ranges [low, high), given the newest first."""
    lows = [low for low, _ in reversed(leaves)]
    for signed in entries:
        stamp = stamp_of(signed)
        at = bisect_right(lows, stamp) - 1
        if at < 0 or stamp >= leaves[-1 - at][1]:
            raise BadMessage("an entry that was not asked for")
