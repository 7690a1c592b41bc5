"""Who may write what in a namespace: its write policy, grants, and revocations.

`gate` says whether an entry may come in at all, by what never changes: the entry, and the grant it
names. `counts` says whether it counts now, by the revocations that are held too. Rules:
docs/protocols/store.md, Namespace.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from crdt.entry import GRANT, REVOKE, VALUE_MAX, Dot, Entry, Record
from crdt.namespace import (
    GRANT_CHAINS_MAX,
    GRANT_DEPTH_MAX,
    Genesis,
    Grant,
    Revoke,
    grant_decoder,
    revoke_decoder,
)
from wire import codec
from wire.errors import BadMessage

RULE_KEYS = {GRANT: "grant", REVOKE: "revoke"}  # where grants and revocations stand, and only they
T = TypeVar("T")
DATA_KINDS = (1 << GRANT) - 1  # bits of the kinds that a grant may allow; `depth` allows granting


@dataclass
class _Granted:
    """A grant that is held, decoded; `above` is the id of the one it hands on."""

    record: Record
    grant: Grant
    above: bytes | None


@dataclass
class Authority:
    """Keeps the grants and revocations of one namespace, and which entries name which grant.

    is_cut: whether a record does not count because of a proof of a fault.
    """

    genesis: Genesis
    is_cut: Callable[[Record], bool]
    _grants: dict[bytes, _Granted] = field(default_factory=dict[bytes, _Granted])
    _revoked: dict[bytes, dict[bytes, tuple[Record, dict[bytes, int]]]] = field(
        default_factory=dict[bytes, dict[bytes, tuple[Record, dict[bytes, int]]]]
    )  # by grant, by stamp: what each revocation lets stand, by chain
    _under: dict[bytes, dict[bytes, Record]] = field(
        default_factory=dict[bytes, dict[bytes, Record]]
    )

    def gate(self, record: Record) -> str:
        """Return "" if a record may come in, "policy" if never, "no_grant" if not yet."""
        write = self.genesis.write
        if write == "list":
            return self._gate_listed(record)
        if record.kind >= GRANT or (write == "owner" and not _is_own_key(record)):
            return "policy"
        return ""

    def counts(self, record: Record) -> bool:
        """True if a record that came in counts: allowed, not revoked, not cut off."""
        if self.is_cut(record):
            return False
        if self.genesis.write != "list" or record.author == self.genesis.owner:
            return True
        return self._stands(record)

    def add(self, record: Record) -> None:
        """Note a record that is retained now."""
        if self.genesis.write != "list":
            return
        entry = record.entry
        if entry.grant is not None:
            self._under.setdefault(entry.grant, {})[record.stamp] = record
        if record.kind == GRANT:
            grant = _grant_of(entry)
            self._grants[record.id] = _Granted(record, grant, entry.grant)
        elif record.kind == REVOKE:
            revoke = _revoke_of(entry)
            kept = {dot.chain: dot.seq for dot in revoke.kept}
            self._revoked.setdefault(revoke.grant, {})[record.stamp] = record, kept

    def remove(self, record: Record) -> list[Record]:
        """Forget a record that is not retained any more; returns, of a grant, those that could not
        come in any more.
        """
        if self.genesis.write != "list":
            return []
        orphans = list[Record]()
        entry = record.entry
        if record.kind == GRANT:
            revocations = (one for one, _ in self._revoked.get(record.id, {}).values())
            orphans = [one for one in revocations if one.author != self.genesis.owner]
            orphans += self.under(record.id)
        if entry.grant is not None:
            _take(self._under, entry.grant, record.stamp)
        if record.kind == GRANT:
            self._grants.pop(record.id, None)
        elif record.kind == REVOKE:
            _take(self._revoked, revoked_by(record), record.stamp)
        return orphans

    def under(self, grant_id: bytes) -> Iterator[Record]:
        """Yield the records whose counting hangs on that of a grant.

        No recursion without end: a grant's id is a hash over that of the one above it.
        """
        for record in self._under.get(grant_id, {}).values():
            yield record
            if record.kind == GRANT:
                yield from self.under(record.id)

    def grants(self) -> list[tuple[Record, Grant]]:
        """Return all grants that are held, the oldest first."""
        held = sorted(self._grants.values(), key=lambda one: one.record.stamp)
        return [(one.record, one.grant) for one in held]

    def dots_under(self, grant_id: bytes) -> tuple[Dot, ...]:
        """Name what counts of what a grant's subject wrote under it: of many chains the latest."""
        last: dict[bytes, Record] = {}
        for record in filter(self.counts, self._under.get(grant_id, {}).values()):
            if record.chain not in last or last[record.chain].seq < record.seq:
                last[record.chain] = record
        latest = sorted(last.values(), key=lambda one: one.stamp)[-GRANT_CHAINS_MAX:]
        return tuple(Dot(one.chain, one.seq) for one in sorted(latest, key=lambda one: one.chain))

    def grant_for(
        self,
        author: bytes,
        kind: int,
        key: str,
        now_ms: int,
        *,
        grant: Grant | None = None,
        revoked: bytes | None = None,
    ) -> bytes | None:
        """Return the grant under which an author may write now, hand on `grant`, or revoke; None
        if there is none, or if it needs none.
        """
        rule = grant if grant is not None else Revoke(revoked) if revoked is not None else None
        for grant_id, granted in self._grants.items():
            is_allowed = self._permits(granted, author, kind, key, now_ms, rule)
            if is_allowed and self.counts(granted.record) and not self.is_revoked(grant_id):
                return grant_id
        return None

    def narrowed(self, author: bytes, wanted: Grant, now_ms: int) -> Grant:
        """Return what an author wants to hand on, with what it leaves open (prefix, kinds, times)
        as in the grant above it that allows this; as it is if none does.
        """
        for granted in self._grants.values():
            if granted.grant.subject != author:
                continue
            fits = _narrowed(wanted, granted.grant)
            if self.grant_for(author, GRANT, RULE_KEYS[GRANT], now_ms, grant=fits) is not None:
                return fits
        return wanted

    def is_revoked(self, grant_id: bytes) -> bool:
        """True if a revocation of a grant, or of one above it, counts."""
        seen: bytes | None = grant_id
        while seen is not None:
            if any(self.counts(one) for one, _ in self._revoked.get(seen, {}).values()):
                return True
            granted = self._grants.get(seen)
            seen = granted.above if granted is not None else None
        return False

    def _gate_listed(self, record: Record) -> str:
        if RULE_KEYS.get(record.kind) != (record.key if record.key in _RULE_KEYS else None):
            return "policy"
        entry = record.entry
        try:
            rule = _rule_of(entry)
        except BadMessage:
            return "policy"
        if record.author == self.genesis.owner:
            return "" if entry.grant is None else "policy"
        if entry.grant is None:
            return "policy"
        granted = self._grants.get(entry.grant)
        if granted is None or (isinstance(rule, Revoke) and rule.grant not in self._grants):
            return "no_grant"
        return "" if self._allows(granted, record, rule) else "policy"

    def _allows(self, granted: _Granted, record: Record, rule: Grant | Revoke | None) -> bool:
        """Hold a record to the grant that it names: to what never changes."""
        wall_ms = record.wall_ms
        return self._permits(granted, record.author, record.kind, record.key, wall_ms, rule)

    def _permits(
        self,
        granted: _Granted,
        author: bytes,
        kind: int,
        key: str,
        wall_ms: int,
        rule: Grant | Revoke | None,
    ) -> bool:
        grant = granted.grant
        ends_ms = grant.not_after_ms or wall_ms
        if author != grant.subject or not grant.not_before_ms <= wall_ms <= ends_ms:
            return False
        if isinstance(rule, Grant):
            return _is_within(rule, grant)
        if isinstance(rule, Revoke):
            return self._is_above(granted.record.id, rule.grant)
        return key.startswith(grant.prefix) and bool(_kinds(grant) >> kind & 1)

    def _is_above(self, upper: bytes, lower: bytes) -> bool:
        """True if one grant was given under the other, at any distance."""
        granted = self._grants.get(lower)
        while granted is not None and granted.above is not None:
            if granted.above == upper:
                return True
            granted = self._grants.get(granted.above)
        return False

    def _stands(self, record: Record) -> bool:
        """True if the grant of a record counts, and every revocation of it that counts lets the
        record stand. A revocation hangs on grants above the revoked one only, so this ends.
        """
        itself = self._grants.get(record.id) if record.kind == GRANT else None
        grant_id = itself.above if itself is not None else record.entry.grant
        granted = self._grants.get(grant_id or b"")
        if granted is None or not self.counts(granted.record):
            return False
        return all(
            (kept.get(record.chain, 0) >= record.seq and record.stamp < revocation.stamp)
            or not self.counts(revocation)
            for revocation, kept in self._revoked.get(granted.record.id, {}).values()
        )


_RULE_KEYS = frozenset(RULE_KEYS.values())


def _is_own_key(record: Record) -> bool:
    """True for a key with a segment `@AUTHOR`."""
    return "@" in record.key and f"@{record.peer}" in record.key.split("/")


def _kinds(grant: Grant) -> int:
    return grant.kinds & DATA_KINDS if grant.kinds else DATA_KINDS


def _is_within(lower: Grant, upper: Grant) -> bool:
    """True if a handed-on grant allows no more than the one above it."""
    ends_ms = upper.not_after_ms
    return (
        lower.depth < upper.depth <= GRANT_DEPTH_MAX
        and lower.prefix.startswith(upper.prefix)
        and not _kinds(lower) & ~_kinds(upper)
        and lower.not_before_ms >= upper.not_before_ms
        and (not ends_ms or 0 < lower.not_after_ms <= ends_ms)
    )


def _narrowed(lower: Grant, upper: Grant) -> Grant:
    return msgspec.structs.replace(
        lower,
        prefix=lower.prefix or upper.prefix,
        kinds=lower.kinds or upper.kinds,
        not_before_ms=max(lower.not_before_ms, upper.not_before_ms),
        not_after_ms=lower.not_after_ms or upper.not_after_ms,
    )


def _rule_of(entry: Entry) -> Grant | Revoke | None:
    """Return what a grant or revocation says; None for data. Raises BadMessage."""
    if entry.kind == GRANT:
        return _grant_of(entry)
    return _revoke_of(entry) if entry.kind == REVOKE else None


def _grant_of(entry: Entry) -> Grant:
    return codec.decode(entry.value or b"", grant_decoder, VALUE_MAX)


def _revoke_of(entry: Entry) -> Revoke:
    return codec.decode(entry.value or b"", revoke_decoder, VALUE_MAX)


def revoked_by(record: Record) -> bytes:
    """Return the grant that a revocation revokes."""
    return _revoke_of(record.entry).grant


def _take(index: dict[bytes, dict[bytes, T]], name: bytes, stamp: bytes) -> None:
    rows = index.get(name)
    if rows is not None:
        rows.pop(stamp, None)
        if not rows:
            del index[name]
