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


def put_multi(value: bytes) -> Build:
    """Set a multi-value register: replaces all values seen here, and none that is not."""

    def build(held: Sequence[Record], chain: bytes) -> Draft | None:
        siblings = [record for record in held if record.kind == MULTI]
        return Draft(MULTI, seen=_dots(siblings), value=value)

    return build


def add(element: bytes, value: bytes | None) -> Build:
    """Add an element to a set, or set a sub-key of a map."""
    draft = Draft(ADD, element=element, value=value)
    return lambda held, chain: draft


def remove(element: bytes, author: bytes) -> Build:
    """Remove an element: all adds of it seen here, so that one that is not seen wins.

    Our next remove says what our earlier ones said too, as it takes their place.
    """

    def build(held: Sequence[Record], chain: bytes) -> Draft | None:
        here = [record for record in held if record.element == element]
        adds = [record for record in here if record.kind == ADD]
        before = [one for one in here if one.kind == REMOVE and one.author == author]
        covered = _seen_by(here)
        if all(covered.get(record.chain, 0) >= record.seq for record in adds):
            return None
        return Draft(REMOVE, element=element, seen=_dots(adds, _seen_by(before)))

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


def _seen_by(records: Sequence[Record]) -> dict[bytes, int]:
    seen: dict[bytes, int] = {}
    for record in records:
        if record.kind == REMOVE:
            for dot in record.entry.seen:
                seen[dot.chain] = max(seen.get(dot.chain, 0), dot.seq)
    return seen


def _dots(records: Sequence[Record], before: dict[bytes, int] | None = None) -> tuple[Dot, ...]:
    """Name what was seen; of too many chains those that we see now, the latest first."""
    seen: dict[bytes, int] = {}
    for record in sorted(records, key=lambda one: one.stamp, reverse=True):
        seen.setdefault(record.chain, record.seq)
        seen[record.chain] = max(seen[record.chain], record.seq)
    for chain, seq in (before or {}).items():
        seen[chain] = max(seen.get(chain, 0), seq)
    return tuple(Dot(chain, seq) for chain, seq in sorted(list(seen.items())[:SEEN_MAX]))
