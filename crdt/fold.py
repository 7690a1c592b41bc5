"""What a key shows: a pure function of the records that count there. No time, no state.

The caller leaves out what does not count: not allowed, cut off by a proof, an expired lease.
Rules: docs/protocols/store.md, Merge.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from crdt.authority import revoked_by
from crdt.entry import (
    ADD,
    COUNTER,
    GRANT,
    LEASE,
    MULTI,
    REGISTER,
    REMOVE,
    REVOKE,
    Record,
    counted_of,
)

SIBLINGS_MAX = 16  # of a multi-value register that are shown; all are held
CLASSES = {  # the latest hides the others
    REGISTER: 1,
    LEASE: 1,
    ADD: 2,
    REMOVE: 2,
    COUNTER: 4,
    MULTI: 5,
    GRANT: 16,
    REVOKE: 17,
}

_stamp = attrgetter("stamp")
_element = attrgetter("element")


@dataclass(frozen=True, slots=True)
class View:
    """What a reader sees of a key.

    latest: of all that counts. values: of a register or lease, one; of a multi-value register,
    the siblings, latest first; of a counter, the entries of its chains; of a set or map, the
    latest live add of each element, in the order of elements. total: of a counter.
    """

    key: str
    kind: str
    latest: Record
    values: tuple[Record, ...]
    total: int = 0


@dataclass(slots=True)
class Standing:
    """How the records of a key stand to each other.

    shown: what readers see, in order. lost: what something later hides for ever, with that.
    hidden: a register that does not show, but hides what is older than it.
    """

    latest: Record
    shown: list[Record]
    lost: list[tuple[Record, Record]] = field(default_factory=list[tuple[Record, Record]])
    hidden: Record | None = None


def place_of(record: Record) -> bytes:
    """Name what an author has one of, within a key."""
    kind = record.kind
    if kind in (ADD, REMOVE):
        return record.author + bytes((kind,)) + record.element
    if kind == COUNTER:
        return record.author + bytes((kind,)) + record.chain
    if kind == GRANT:
        return record.author + record.id
    if kind == REVOKE:
        return record.author + revoked_by(record)
    return record.author + bytes((CLASSES[kind],))


def stand(records: Iterable[Record]) -> Standing | None:
    """Compare the records that count at a key; None if there are none. Cost: O(n log n)."""
    ranked = sorted(records, key=_stamp, reverse=True)
    if not ranked:
        return None
    latest = ranked[0]
    if latest.kind >= GRANT:
        return Standing(latest, [])  # under keys of their own, and not for readers
    standing = Standing(latest, [])
    if len(ranked) == 1 and CLASSES[latest.kind] == CLASSES[REGISTER]:  # as most keys are
        standing.shown = [] if latest.is_tombstone else [latest]
        return standing
    members: dict[int, list[Record]] = {CLASSES[kind]: [] for kind in (ADD, COUNTER, MULTI)}
    register: Record | None = None
    for record in ranked:
        if register is not None:
            standing.lost.append((record, register))
        elif CLASSES[record.kind] == CLASSES[REGISTER]:
            register = record
        else:
            members[CLASSES[record.kind]].append(record)
    if register is not latest:
        standing.hidden = register
    elif not latest.is_tombstone:
        standing.shown = [latest]
    for kind, pick in _PICKS.items():  # also what another class hides may be covered
        shown = pick(members[kind], standing)
        if kind == CLASSES[latest.kind]:
            standing.shown = shown
        else:
            lost = {loser.stamp for loser, _ in standing.lost} if members[kind] else set[bytes]()
            hidden = (one for one in members[kind] if one.stamp not in lost)
            standing.lost.extend((one, latest) for one in hidden)
    return standing


def view_of(key: str, records: Iterable[Record]) -> View | None:
    """Return what a reader sees of the records that count at a key; None if that is nothing."""
    standing = stand(records)
    if standing is None or not standing.shown:
        return None
    latest, shown = standing.latest, standing.shown
    kind = CLASSES[latest.kind]
    if kind == COUNTER:
        total = sum(counted_of(record).total for record in shown)
        return View(key, "counter", latest, tuple(shown), total)
    if kind == MULTI:
        return View(key, "multi", latest, tuple(shown[:SIBLINGS_MAX]))
    if kind == CLASSES[ADD]:
        is_map = not all(record.is_tombstone for record in shown)
        return View(key, "map" if is_map else "set", latest, tuple(sorted(shown, key=_element)))
    return View(key, "lease" if latest.kind == LEASE else "register", latest, (latest,))


class _Seen:
    """What the entries met so far have seen; they are met from the latest to the oldest, so that
    a dot covers only what is older than the entry that names it: nobody covers the future.

    chains: those of what may be covered. Dots of others are passed over: an entry has up to 64.
    """

    def __init__(self) -> None:
        self.chains: set[bytes] = set()
        self._dots: dict[bytes, list[tuple[int, Record]]] = {}  # by chain: older ones, smaller seq

    def add(self, record: Record) -> None:
        for dot in record.entry.seen:
            if dot.chain not in self.chains:
                continue
            dots = self._dots.setdefault(dot.chain, [])
            while dots and dots[-1][0] <= dot.seq:
                dots.pop()  # a later entry that covers no more than this one
            dots.append((dot.seq, record))

    def cover(self, record: Record) -> Record | None:
        """Return the first entry that has seen this one: if any but it goes, it stays the first."""
        dots = self._dots.get(record.chain, ())
        count = bisect_left(dots, -record.seq + 1, key=_falling)
        return dots[count - 1][1] if count else None


def _falling(dot: tuple[int, Record]) -> int:
    return -dot[0]


def _pick_siblings(members: list[Record], standing: Standing) -> list[Record]:
    seen, shown = _Seen(), list[Record]()
    seen.chains = {record.chain for record in members}
    for record in members:
        by = seen.cover(record)
        if by is not None:
            standing.lost.append((record, by))
        elif not record.is_tombstone:
            shown.append(record)
        seen.add(record)
    return shown


def _pick_elements(members: list[Record], standing: Standing) -> list[Record]:
    removed = {record.element: _Seen() for record in members if record.kind == REMOVE}
    live: dict[bytes, Record] = {}
    for record in members:
        if record.kind == ADD and record.element in removed:
            removed[record.element].chains.add(record.chain)
    for record in members:
        seen = removed.get(record.element)
        if seen is not None and record.kind == REMOVE:
            seen.add(record)
            continue
        by = seen.cover(record) if seen is not None else None
        if by is not None:
            standing.lost.append((record, by))
        else:
            live.setdefault(record.element, record)
    return list(live.values())


def _pick_all(members: list[Record], _standing: Standing) -> list[Record]:
    return members


_PICKS = {
    CLASSES[ADD]: _pick_elements,
    CLASSES[COUNTER]: _pick_all,
    CLASSES[MULTI]: _pick_siblings,
}
