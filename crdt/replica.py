"""One namespace, as this node holds it: what is retained, and what it shows. No I/O; time is
passed in.

What is retained is a function of the set of records and proofs that were merged, in any order and
any number of times; what a key shows, of what is retained and of the time. Rules:
docs/protocols/store.md, Merge and Faults.
"""

import hashlib
from collections.abc import Iterable, Iterator
from operator import attrgetter

from crdt.aging import NEVER, Agenda, ends, is_expired, loser_end, own_end
from crdt.authority import Authority, revoked_by
from crdt.chains import Chains, Quota
from crdt.change import Change, Room, always
from crdt.entry import GRANT, Record, is_signed
from crdt.fault import HIGHEST, WHOLE, Proofs, Proven, judge
from crdt.fold import View, view_of
from crdt.keys import Keys
from crdt.namespace import Genesis
from crdt.timeline import Timeline
from crdt.tree import StateTree, faults_digest, state_root

EXACT_MAX = 64  # records at a key up to which an old arrival is held to all of them at once
LOOK_SHARE = 8  # records per millisecond of pause: a key of 8,000 is looked at once a second, 2 %
# of a core, however its author spread the times at which they end
LOOK_MAX = 1_000  # records looked at in one call, 15 ms if all go; the rest waits for the next
BELOW_MAX = 1000  # records of a namespace up to which what hangs on a grant is noted at once, 1 ms
_stamp = attrgetter("stamp")


class Replica:
    """All that is held of a namespace.

    room: this node's own limit, asked before a place more is taken, or more for one; not a rule.
    """

    def __init__(self, genesis: Genesis, *, room: Room = always) -> None:
        self.genesis, self.id, self.rules = genesis, genesis.id, genesis.rules
        self.records: dict[bytes, Record] = {}
        self.timeline = Timeline()
        self.tree = StateTree(self._ids_at)
        self._proofs = Proofs()
        self.faults = self._proofs.by_chain
        self.authority = Authority(genesis, self._proofs.is_cut)
        self.version = 0
        self.is_paused = False
        self.size = 0  # bytes of entries
        self._room = room
        self._keys = Keys()
        self._chains = Chains()
        self._quota = Quota(self.rules.author_entries, is_for_rules=False)
        self._rule_quota = Quota(self.rules.author_entries, is_for_rules=True)
        self._agenda = Agenda()
        self._rule_agenda = Agenda()  # grants, in hex, under which others may count now
        self._looked_ms = 0  # when `pop_due` was last called
        self._fingerprint: tuple[int, bytes] = (-1, b"")

    def refusal(self, record: Record, now_ms: int) -> str:
        """Say why a record may not come in now; "" if it may, also if it is not news.

        "future", "no_grant": perhaps later. "namespace", "policy", "fault": never. "dead": what
        is held hides it, or its time is over. "author_full", "full": no room, as things are.
        """
        if record.namespace != self.id:
            return "namespace"
        if record.wall_ms > now_ms + self.rules.max_skew_ms:
            return "future"
        if self._proofs.is_out(record):
            return "fault"
        if reason := self.authority.gate(record):
            return reason
        old = self._keys.at_place(record)
        if self._is_dead(record, old, now_ms):
            return "dead"
        if old is not None and old.size >= record.size:
            return ""
        if old is None and self._is_overflow(record):
            return "author_full"
        return "" if self._room(record, old, now_ms) else "full"

    def is_news(self, record: Record) -> bool:
        """True if `merge` would retain a record, its quota aside."""
        old = self._keys.at_place(record)
        return record.stamp not in self.records and (old is None or old.stamp < record.stamp)

    def crowds_out(self, record: Record, more: int) -> bool:
        """True if a record, with `more` others, would push out older ones of its author."""
        quota, is_new = self._quota_of(record), self._keys.at_place(record) is None
        return is_new and quota.held.get(record.author, 0) + more >= quota.limit

    def merge(self, record: Record, now_ms: int) -> Change:
        """Take in a record that was not refused (6 µs); a contradiction to its chain becomes a
        proof (100 µs more per signature, at most four).
        """
        change = Change()
        self._take(record, change, is_judged=False)
        return change

    def restore(self, records: Iterable[Record], *, is_judged: bool) -> Change:
        """Take back records that were retained before; what is not any more is `dropped` (3 µs).
        is_judged: the proofs of their contradictions are here already, so none is looked for.
        """
        change = Change()
        for record in records:
            if not self._take(record, change, is_judged=is_judged):
                change.dropped.append(record)
        return change

    def merge_fault(self, proven: Proven) -> Change:
        """Take in a proof that was checked, of this namespace."""
        change = Change()
        if proven.namespace == self.id:
            self._put_fault(proven, change)
        return change

    def drop(self, record: Record) -> Change:
        """Let go of a retained record whose own signature is wrong, so that nobody else takes it;
        with a record at hand that names it, that is a proof against its author.
        """
        change = Change()
        if self.records.get(record.stamp) is not record:
            return change
        after = self._chains.follower(record)
        proven = judge(record, after) if after is not None else None
        if proven is not None:
            self._put_fault(proven, change)
        self._drop_all([record], change)
        return change

    def forget(self, records: list[Record]) -> Change:
        """Let go of records that were deleted elsewhere while this node was away."""
        change = Change()
        self._drop_all(records, change)
        return change

    def pause(self, *, is_paused: bool) -> None:
        """Remember deletions, and what they hide, for as long as this node is away from others."""
        if self.is_paused and not is_paused:
            for record in self.records.values():
                self._agenda.put(record.key, self._looked_ms)
        self.is_paused = is_paused

    def pop_due(self, now_ms: int) -> Change:
        """Let go of what is dead; `keys` has those where a lease has just run out, too."""
        change = Change()
        looked = 0
        self._looked_ms = now_ms
        for grant_id, _ in self._rule_agenda.pop_due(now_ms):
            self._touch(self.authority.under(bytes.fromhex(grant_id)), change)
        for key, due_ms in self._agenda.pop_due(now_ms):
            looked += self._look(key, due_ms, now_ms, change)
            if looked > LOOK_MAX:
                break
        self._chains.forget(now_ms)
        return change

    def is_due(self, now_ms: int) -> bool:
        """True if `pop_due` has something left to do."""
        return self._agenda.is_due(now_ms)

    def counts(self, record: Record, now_ms: int) -> bool:
        """True if a record has a say in what its key shows."""
        return not is_expired(record, now_ms) and self.authority.counts(record)

    def view(self, key: str, now_ms: int) -> View | None:
        """Return what a reader sees; None if that is nothing. Cost: 2 µs a record there."""
        return view_of(key, (one for one in self._keys.at(key) if self.counts(one, now_ms)))

    def scan(self, prefix: str, now_ms: int, *, after: str = "") -> Iterator[View]:
        """Return what keys with a prefix show, in order; those beyond `after`, if given."""
        views = (self.view(key, now_ms) for key in self._keys.under(prefix, after))
        return (view for view in views if view is not None)

    def keys(self, prefix: str, after: str = "") -> list[str]:
        """Return the keys with a prefix and beyond `after`, in order. Cost: 60 ns a key."""
        return self._keys.under(prefix, after)

    def at(self, key: str) -> tuple[Record, ...]:
        """Return all that is retained at a key, the oldest first."""
        return tuple(sorted(self._keys.at(key), key=_stamp))

    def heads(self, after: bytes = b"", limit: int = LOOK_MAX) -> list[tuple[bytes, int]]:
        """Return the next chains by name, and how far each was seen: also if nothing is left."""
        return self._chains.heads(after, limit)

    def seen(self, chain: bytes) -> int:
        """Return how far a chain was seen: its highest seq, 0 of none."""
        return self._chains.seen(chain)

    def chain_after(self, chain: bytes, seq: int, limit: int) -> list[Record]:
        """Return retained records of a chain beyond `seq`, in its order, `limit` at most."""
        return self._chains.after(chain, seq, limit)

    def held_by(self, author: bytes) -> int:
        """Count the retained records of an author."""
        return self._quota.held.get(author, 0) + self._rule_quota.held.get(author, 0)

    @property
    def author_count(self) -> int:
        """How many authors have something retained."""
        return self._chains.authors()

    def fingerprint(self) -> bytes:
        """Return 16 bytes over all stamps and proofs. Cost: 60 ns a stamp, once per version."""
        if self._fingerprint[0] != self.version:
            whole = hashlib.sha256(self._faults_digest())
            whole.update(b"".join(self.timeline))
            self._fingerprint = self.version, whole.digest()[:16]
        return self._fingerprint[1]

    def root(self) -> bytes:
        """Return the state root, 32 bytes: all that is retained, and all proofs."""
        return state_root(self.id, self.tree.root(), self._faults_digest())

    # --- inside --------------------------------------------------------------------------------

    def _take(self, record: Record, change: Change, *, is_judged: bool) -> bool:
        """Retain a record if it is the latest at its place and its author has room for it."""
        if record.stamp in self.records or self._proofs.is_out(record):
            return False
        if not is_judged:
            self._accuse(record, change)
            if self._proofs.is_out(record):
                return False
        old = self._keys.at_place(record)
        if old is not None:
            if old.stamp > record.stamp:
                return False
            self._forget(old, change)
        elif self._is_overflow(record):
            return False
        self._insert(record, change, old)
        quota = self._quota_of(record)
        if quota.is_over(record.author):
            oldest = quota.oldest(record.author, self.records, self._chains)
            self._drop_all([self.records[oldest]], change)
        return True

    def _ids_at(self, key: str) -> list[bytes]:
        return [record.id for record in self._keys.at(key)]

    def _quota_of(self, record: Record) -> Quota:
        return self._rule_quota if record.kind >= GRANT else self._quota

    def _is_overflow(self, record: Record) -> bool:
        """True if its author has enough that is newer."""
        quota = self._quota if record.kind < GRANT else self._rule_quota
        is_full = quota.held.get(record.author, 0) >= quota.limit
        return is_full and record.stamp < quota.oldest(record.author, self.records, self._chains)

    def _is_dead(self, record: Record, old: Record | None, now_ms: int) -> bool:
        """True if a record would go at once. At a key of many records only its own time is asked:
        it goes when the key is next looked at.
        """
        rules = self.rules
        if self.is_paused and not record.expires_ms:
            return False
        if own_end(record, rules) <= now_ms:
            return True
        if loser_end(record, rules) > now_ms:
            return False
        held = [one for one in self._keys.at(record.key) if one is not old]
        if len(held) > EXACT_MAX:
            return False
        return ends([*held, record], self.authority.counts, rules, now_ms)[record.stamp] <= now_ms

    def _faults_digest(self) -> bytes:
        return faults_digest((one.chain, one.cut, one.digest) for one in self.faults.values())

    def _accuse(self, record: Record, change: Change) -> None:
        """Look for a contradiction between a new record and what is retained of its chain."""
        for rival in self._chains.rivals(record, self._proofs.cut_of(record.chain)):
            for first, second in ((record, rival), self._followed(rival), self._followed(record)):
                proven = judge(first, second) if second is not None else None
                if proven is not None:
                    self._put_fault(proven, change)
                    return
            self._chains.doubt(record.chain)

    def _followed(self, record: Record) -> tuple[Record, Record | None]:
        """Return a record whose signature is wrong, and whoever vouches for it."""
        return record, None if is_signed(record) else self._chains.follower(record)

    def _put_fault(self, proven: Proven, change: Change) -> None:
        if not (before := self._proofs.put(proven)):
            return
        change.fault = proven
        self.version += 1
        if self._proofs.is_author_out(proven.author):
            self._drop_all(list(self._chains.of_author(proven.author)), change)
        elif proven.cut == WHOLE:
            self._drop_all(self._chains.between(proven.chain, WHOLE, HIGHEST), change)
        else:
            self._touch_cut(proven, before, change)
        if (gone := self._proofs.trim()) is not None:
            self._touch_cut(gone, HIGHEST, change)

    def _touch_cut(self, proven: Proven, before: int, change: Change) -> None:
        cut_off = self._chains.between(proven.chain, proven.cut, before)
        self._touch(cut_off, change)
        for record in cut_off:
            self._touch_below(record, change)

    def _insert(self, record: Record, change: Change, old: Record | None) -> None:
        key = record.key
        count = self._keys.put(record, old)
        self.records[record.stamp] = record
        self.timeline.add(record.stamp)
        self._chains.add(record)
        self._quota_of(record).add(record)
        self.size += record.size
        self.version += 1
        self.tree.touch(key)
        change.is_added = True
        change.keys.add(key)
        self.authority.add(record)
        self._touch_below(record, change)
        may_not_count = self.genesis.write == "list" or record.chain in self.faults
        if count > 1 or may_not_count or record.expires_ms or record.is_tombstone:
            self._schedule(record, count, may_lose=count > 1 or may_not_count)
        if old is not None and may_not_count:
            self._look_soon(key)

    def _forget(self, record: Record, change: Change) -> None:
        """Take a record out of everything but its key."""
        change.dropped.append(record)
        del self.records[record.stamp]
        self.timeline.remove(record.stamp)
        self._chains.remove(record, record.wall_ms + self.rules.gc_ms)
        self._quota_of(record).remove(record)
        self.size -= record.size
        self.version += 1
        self.tree.touch(record.key)
        self._drop_all(self.authority.remove(record), change)
        self._touch_below(record, change)

    def _drop(self, record: Record, change: Change) -> None:
        self._forget(record, change)
        if self._keys.remove(record):
            self._look_soon(record.key)
        else:
            self._agenda.cancel(record.key)

    def _drop_all(self, records: list[Record], change: Change) -> None:
        for record in records:
            if record.stamp in self.records:
                self._drop(record, change)
                change.keys.add(record.key)

    def _touch(self, records: Iterable[Record], change: Change) -> None:
        """Note records that may have begun or ceased to count."""
        for record in records:
            change.keys.add(record.key)
            self._look_soon(record.key)

    def _touch_below(self, record: Record, change: Change) -> None:
        """Note what hangs on a grant or revocation; of much seldom, however often it is revoked."""
        if record.kind < GRANT:
            return
        grant_id = record.id if record.kind == GRANT else revoked_by(record)
        if len(self.records) > BELOW_MAX:
            due_ms = self._looked_ms + len(self.records) // LOOK_SHARE
            self._rule_agenda.put(grant_id.hex(), due_ms)
        else:
            self._touch(self.authority.under(grant_id), change)

    def _look_soon(self, key: str) -> None:
        """Have a key looked at where a record went or does not count: others may be due earlier."""
        self._agenda.put(key, self._looked_ms + len(self._keys.at(key)) // LOOK_SHARE)

    def _schedule(self, record: Record, count: int, *, may_lose: bool) -> None:
        """Have a key looked at when a record of it may run out or go; `count` are there."""
        due_ms = record.expires_ms or own_end(record, self.rules)
        if may_lose:
            due_ms = min(due_ms, loser_end(record, self.rules))
        if due_ms < NEVER:
            self._agenda.put(record.key, due_ms + count // LOOK_SHARE)

    def _look(self, key: str, due_ms: int, now_ms: int, change: Change) -> int:
        """Drop what is dead at a key, and see when to look again; returns how many were there."""
        records = self.at(key)
        times = ends(records, self.authority.counts, self.rules, now_ms)
        if self.is_paused:
            times |= {record.stamp: NEVER for record in records if not record.expires_ms}
        dead = [record for record in records if times[record.stamp] <= now_ms]
        dying = {record.stamp for record in dead}
        for record in records:
            is_told = record.stamp in dying and record.expires_ms < due_ms
            if is_expired(record, now_ms) and not is_told:
                change.keys.add(key)
        for record in dead:
            if record.stamp in self.records:  # not gone with its grant
                self._drop(record, change)  # what is left there is looked at again
        later = [*times.values(), *(record.expires_ms for record in records)]
        next_ms = min((time for time in later if time > now_ms), default=NEVER)
        if not dead and next_ms < NEVER:
            self._agenda.put(key, next_ms + len(records) // LOOK_SHARE)
        return len(records)
