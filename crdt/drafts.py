"""What each operation writes, given what its key holds. Pure; the writer calls them."""

from collections.abc import Sequence

from crdt.clock import HLC_MAX
from crdt.entry import (
    ADD,
    COUNTER,
    LEASE,
    MULTI,
    REGISTER,
    REMOVE,
    SEEN_MAX,
    BlobRef,
    Counted,
    Dot,
    Record,
    counted_of,
)
from crdt.fold import stand
from crdt.own import Build, Draft
from wire import codec
from wire.errors import UsageError


def put(value: bytes | None, *, expires_ms: int = 0, blob: BlobRef | None = None) -> Build:
    """Set a register, or take a lease."""
    kind = LEASE if expires_ms else REGISTER
    draft = Draft(kind, value=value, blob=blob, expires_ms=expires_ms)
    return lambda held, chain: draft


def delete() -> Build:
    """Write a tombstone if the key holds anything else."""

    def build(held: Sequence[Record], chain: bytes) -> Draft | None:
        latest = max(held, key=lambda one: one.stamp, default=None)
        if latest is None or (latest.kind == REGISTER and latest.is_tombstone):
            return None
        return Draft(REGISTER)

    return build


def put_multi(value: bytes, author: bytes) -> Build:
    """Set a multi-value register: replaces all values seen here, and none that is not."""

    def build(held: Sequence[Record], chain: bytes) -> Draft | None:
        siblings = [record for record in held if record.kind == MULTI]
        return Draft(MULTI, seen=_to_see(siblings, MULTI, author), value=value)

    return build


def add(element: bytes, value: bytes | None) -> Build:
    """Add an element to a set, or set a sub-key of a map."""
    draft = Draft(ADD, element=element, value=value)
    return lambda held, chain: draft


def remove(element: bytes, author: bytes) -> Build:
    """Remove an element: all adds of it seen here, so that one that is not seen wins.

    Raises UsageError, when it is called, if more chains have added it than one entry can name.
    """

    def build(held: Sequence[Record], chain: bytes) -> Draft | None:
        kinds = (ADD, REMOVE)
        here = [one for one in held if one.kind in kinds and one.element == element]
        if not _uncovered(here, ADD):
            return None
        seen = _to_see(here, REMOVE, author)
        named = {dot.chain for dot in seen}
        if any(record.chain not in named for record in _uncovered(here, ADD)):
            raise UsageError(
                f"more than {SEEN_MAX} chains have added it", hint="delete the whole key"
            )
        return Draft(REMOVE, element=element, seen=seen)

    return build


def increment(by: int) -> Build:
    """Count up, or down. A key that was written or deleted since starts from zero."""

    def build(held: Sequence[Record], chain: bytes) -> Draft | None:
        mine = [one for one in held if one.kind == COUNTER and one.chain == chain]
        last = max(mine, key=lambda one: one.stamp, default=None)
        written = [one.stamp for one in held if one.kind in (REGISTER, LEASE)]
        counted = counted_of(last) if last is not None else Counted(0, 0)
        base_plus, base_minus = counted.base_plus, counted.base_minus
        if last is not None and max(written, default=b"") > last.stamp:
            base_plus, base_minus = counted.plus, counted.minus
        plus, minus = counted.plus + max(by, 0), counted.minus + max(-by, 0)
        if max(plus, minus) > HLC_MAX:
            raise UsageError(f"the counter cannot go beyond {HLC_MAX}")
        return Draft(COUNTER, value=codec.encode(Counted(plus, minus, base_plus, base_minus)))

    return build


def _uncovered(records: Sequence[Record], kind: int) -> list[Record]:
    """Return the records of a kind that no other has seen, the latest first."""
    standing = stand(records)
    if standing is None:
        return []
    lost = {loser.stamp for loser, _ in standing.lost}
    found = [one for one in records if one.kind == kind and one.stamp not in lost]
    return sorted(found, key=lambda one: one.stamp, reverse=True)


def _to_see(records: Sequence[Record], kind: int, author: bytes) -> tuple[Dot, ...]:
    """Name what an entry of ours has seen that takes the place of our last one: all that no entry
    of another author hides, and what our last one named; of too many chains the latest.
    """
    last = [one for one in records if one.kind == kind and one.author == author]
    others = [one for one in records if one.kind != kind or one.author != author]
    seen: dict[bytes, int] = {}
    for record in _uncovered(others, MULTI if kind == MULTI else ADD):
        seen[record.chain] = max(seen.get(record.chain, 0), record.seq)
    for record in last:
        for dot in record.entry.seen:
            seen[dot.chain] = max(seen.get(dot.chain, 0), dot.seq)
    return tuple(Dot(chain, seq) for chain, seq in sorted(list(seen.items())[:SEEN_MAX]))
