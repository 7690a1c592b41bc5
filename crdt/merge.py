"""The replica: the fold of all entries seen, one winner per key. No I/O, time is passed in.

`merge` is commutative, associative and idempotent: the winner is the largest by (stamp, author,
name), so replicas that saw the same entries in any order hold the same state.
"""

import bisect
import heapq
from dataclasses import dataclass, field

from crdt.clock import is_future
from crdt.digest import Digest, Held, Sum
from crdt.entry import SHORT_ID_BYTES, Record

AUTHOR_KEYS_MAX = 10_000  # keys that one author may hold: 30 MB of the largest values
RECORDS_MAX = 200_000  # of all authors together; about 200 MB of memory at 500 B each
RESERVE_MAX = 40_000  # on top of these, only for short leases of authors who hold little: whoever
# fills the rest cannot keep newcomers from saying that they are here. It holds against some tens
# of identities, and by itself it empties; thousands of invented ones that renew can fill it too.
RESERVE_AUTHOR_KEYS_MAX = 16  # leases are few: a member, and what it serves and trains
RESERVE_LEASE_MS = 300_000  # from now to the end of a lease that may use the reserve
REFUSED_MAX = 50_000  # names of entries refused for want of room that we remember; 10 MB
REFUSED_MS = 300_000  # for so long nobody is asked for them again
QUOTAS = ("author_full", "full")  # refusals that depend on what else we hold


def wins(new: Record, old: Record) -> bool:
    """The one rule of conflicts."""
    return new.order > old.order


@dataclass
class Replica:
    """Everything held, by namespace and key; knows what to throw away when."""

    records: dict[str, dict[str, Record]] = field(default_factory=dict[str, dict[str, Record]])
    digest: Digest = field(default_factory=Digest)
    _slots: dict[str, Record] = field(default_factory=dict[str, Record])
    _keys: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _roots: dict[str, Sum] = field(default_factory=dict[str, Sum])
    _held_by: dict[str, int] = field(default_factory=dict[str, int])
    _refused: dict[tuple[str, bytes], int] = field(default_factory=dict[tuple[str, bytes], int])
    _alarms: list[tuple[int, str, bytes]] = field(default_factory=list[tuple[int, str, bytes]])

    def refusal(self, record: Record, now_ms: int) -> str | None:
        """Say why a record may not come in now; None if it may. Own clock and quota, not order."""
        if is_future(record.entry.hlc, now_ms):
            return "future"
        if record.is_dead(now_ms):
            return "dead"
        old = self._slots.get(record.slot)
        held = self._held_by.get(record.entry.author, 0)
        is_growth = old is None or old.entry.author != record.entry.author
        if is_growth and held >= AUTHOR_KEYS_MAX:
            return "author_full"
        is_short = 0 < record.entry.expires_ms <= now_ms + RESERVE_LEASE_MS
        is_reserved = is_short and held < RESERVE_AUTHOR_KEYS_MAX
        if old is None and len(self._slots) >= RECORDS_MAX + RESERVE_MAX * is_reserved:
            return "full"
        return None

    def refused(self, record: Record, now_ms: int) -> None:
        """Remember for `REFUSED_MS` that there was no room for a record; the oldest goes first."""
        self._refused.pop((record.slot, record.id[:SHORT_ID_BYTES]), None)
        self._refused[record.slot, record.id[:SHORT_ID_BYTES]] = now_ms + REFUSED_MS
        if len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]

    def was_refused(self, slot: str, id: bytes) -> bool:
        """True if there was no room lately for the entry of this name, or short name."""
        return (slot, id[:SHORT_ID_BYTES]) in self._refused

    def is_news(self, record: Record) -> bool:
        """True if `merge` would change the state."""
        old = self._slots.get(record.slot)
        return old is None or wins(record, old)

    def merge(self, record: Record) -> bool:
        """Take a record in; returns whether it won its key."""
        if not self.is_news(record):
            return False
        old = self._slots.get(record.slot)
        if old is not None:
            self._forget(old)
        self._remember(record, is_new_key=old is None)
        return True

    def get(self, namespace: str, key: str, now_ms: int) -> Record | None:
        """Return the live record of a key."""
        record = self.records.get(namespace, {}).get(key)
        return record if record is not None and record.is_live(now_ms) else None

    def held(self, namespace: str, key: str) -> Record | None:
        """Return what a key holds: live, expired or deleted."""
        return self.records.get(namespace, {}).get(key)

    def at(self, slot: str) -> Record | None:
        """Return what a slot of the digest holds."""
        return self._slots.get(slot)

    def scan(self, namespace: str, prefix: str, now_ms: int) -> list[Record]:
        """Return the live records whose key starts with `prefix`, in key order."""
        keys, records = self._keys.get(namespace, []), self.records.get(namespace, {})
        found: list[Record] = []
        for index in range(bisect.bisect_left(keys, prefix), len(keys)):
            if not keys[index].startswith(prefix):
                break
            if (record := records[keys[index]]).is_live(now_ms):
                found.append(record)
        return found

    def root(self, namespace: str) -> bytes:
        """32 bytes over all that a namespace holds, tombstones too."""
        return self._roots.get(namespace, Sum()).root()

    def pop_due(self, now_ms: int) -> tuple[list[Record], list[Record]]:
        """Return leases that have just expired, and records that are dead: those are gone now."""
        expired: list[Record] = []
        dead: list[Record] = []
        while self._refused and next(iter(self._refused.values())) <= now_ms:
            del self._refused[next(iter(self._refused))]
        while self._alarms and self._alarms[0][0] <= now_ms:
            _, slot, id = heapq.heappop(self._alarms)
            record = self._slots.get(slot)
            if record is None or record.id != id:
                continue
            if record.is_dead(now_ms):
                self._drop(record)
                dead.append(record)
            else:
                expired.append(record)
        return expired, dead

    def _remember(self, record: Record, *, is_new_key: bool) -> None:
        entry = record.entry
        self.records.setdefault(entry.namespace, {})[entry.key] = record
        if is_new_key:
            bisect.insort(self._keys.setdefault(entry.namespace, []), entry.key)
        self._slots[record.slot] = record
        self._held_by[entry.author] = self._held_by.get(entry.author, 0) + 1
        self._roots.setdefault(entry.namespace, Sum()).change(record.id, by=1)
        self.digest.put(Held(record.slot, entry.hlc, record.id))
        if entry.expires_ms and entry.value is not None:
            heapq.heappush(self._alarms, (entry.expires_ms, record.slot, record.id))
        if record.dead_ms:
            heapq.heappush(self._alarms, (record.dead_ms, record.slot, record.id))

    def _forget(self, record: Record) -> None:
        """Take a record out of the counts; its key keeps its place for the winner."""
        author = record.entry.author
        self._held_by[author] -= 1
        if not self._held_by[author]:
            del self._held_by[author]
        self._roots[record.entry.namespace].change(record.id, by=-1)

    def _drop(self, record: Record) -> None:
        self._forget(record)
        namespace, key = record.entry.namespace, record.entry.key
        del self.records[namespace][key], self._slots[record.slot]
        keys = self._keys[namespace]
        del keys[bisect.bisect_left(keys, key)]
        self.digest.remove(record.slot)
