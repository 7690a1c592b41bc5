"""The routing table: k-buckets by shared prefix, least recently seen first, diverse by address.

Only who answered us at an address comes in, and nobody goes while it answers. At most 2 of an
address group are in a bucket and 10 in the table, by the address that answered. A full bucket keeps
newcomers as spares and has its least recently seen checked. Pure: whom to check is returned, who
came and who left is told by `changes`. Sources: Maymounkov and Mazières, "Kademlia", 2002; Heilman
et al., "Eclipse Attacks on Bitcoin's Peer-to-Peer Network", 2015 (limits by network, tests before
eviction).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from dht.diversity import PER_GROUP, group_of
from dht.key import KEY_BITS, Key, common_bits
from dht.messages import Contact
from wire.ids import PeerId

K = 20  # contacts in a bucket, its spares, and contacts in an answer (Kademlia's own)
SPARES_WANTED = 5  # a check is made for so many spares of a bucket; more come by lookups
GROUP_MAX = 10  # entries of an address group in the table: 4 % of one of 250
FAILURES_MAX = 2  # unanswered requests until an entry goes: one may be a lost packet
FRESH_S = 300.0  # who answered since then is not checked: of sessions of 30 min 1 in 10 has ended
CHECK_S = 60.0  # until a bucket asks for its next check, if nothing is heard of the last one
USEFUL_S = 600.0  # who brought a lookup forward since then is replaced last: 4 of 5 still live
REFRESH_BITS = 16  # deepest bucket that is refreshed: names for targets are found by trying
CHANGES_MAX = 1000  # that nobody fetched; older ones are forgotten, the hourly look repairs it


@dataclass(frozen=True, slots=True)
class Came:
    """This contact is in the table now."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Gone:
    """This contact is in the table no longer."""

    contact: Contact


Change = Came | Gone


@dataclass(slots=True, eq=False)
class Entry:
    """A peer in the table (read it only). `address`: where it answered; times are Moment.s."""

    contact: Contact
    address: str
    group: str | None  # of that address
    seen_s: float
    useful_s: float = -math.inf
    failures: int = 0


@dataclass(slots=True, eq=False)
class _Bucket:
    entries: list[Entry] = field(default_factory=list[Entry])  # least recently seen first
    spares: list[Entry] = field(default_factory=list[Entry])  # newest last
    heard_s: float = -math.inf  # when one of them answered last
    check_s: float = -math.inf  # when a check was asked for last


class Table:
    """Contacts around our own key. `own` never comes in."""

    def __init__(self, own: Key, *, k: int = K) -> None:
        self.own = own
        self._k = k
        self._buckets: list[_Bucket] = []  # by bits in common with our key; grows when needed
        self._entries: dict[PeerId, Entry] = {}
        self._spares: dict[PeerId, Entry] = {}
        self._groups: dict[str, int] = {}  # entries of each address group
        self._changes: list[Change] = []

    # --- what happens -----------------------------------------------------------------------------

    def answered(self, contact: Contact, address: str | None, now_s: float) -> list[Contact]:
        """A peer answered a request of ours at `address`, one that it claims.

        None: nobody knows where, so that an entry is renewed but no stranger comes in. Returns whom
        to check for liveness: the least recently seen of a full bucket, or nobody.
        """
        entry = self._entries.get(contact.peer)
        if entry is not None:
            self._renew(entry, contact, address, now_s)
            return []
        if address is None or contact.key == self.own:
            return []
        bucket = self._bucket(common_bits(self.own, contact.key))
        self._drop_spare(bucket, contact.peer)
        stranger = Entry(contact, address, group_of(address), now_s)
        if not self._fits(bucket, stranger.group):
            return []
        bucket.heard_s = now_s
        if len(bucket.entries) < self._k:
            self._admit(bucket, stranger)
            return []
        self._keep_spare(bucket, stranger)
        return self._whom_to_check(bucket, now_s)

    def failed(self, peer: PeerId, now_s: float, *, is_final: bool = False) -> None:
        """A peer did not answer a request of ours. It goes if a spare waits, or at the second time.

        Who was useful lately has its second time in any case. is_final: it goes now.
        """
        spare = self._spares.get(peer)
        if spare is not None:
            self._drop_spare(self._bucket_of(spare), peer)
        entry = self._entries.get(peer)
        if entry is None:
            return
        entry.failures += 1
        bucket = self._bucket_of(entry)
        is_replaced = bool(bucket.spares) and now_s - entry.useful_s > USEFUL_S
        if is_final or is_replaced or entry.failures >= FAILURES_MAX:
            bucket.check_s = -math.inf  # there may be more of the dead: the next newcomer asks
            self._remove(bucket, entry)

    def useful(self, peer: PeerId, now_s: float) -> None:
        """Its answer brought a lookup forward. Of a stranger this is no news."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.useful_s = now_s

    def refreshed(self, index: int, now_s: float) -> None:
        """A lookup in this bucket's range was made, whatever it found."""
        assert 0 <= index < KEY_BITS
        self._bucket(index).heard_s = now_s

    # --- what is asked ----------------------------------------------------------------------------

    def wants(self, contact: Contact) -> bool:
        """Whether a check of this peer might bring it in, or among the spares.

        False for those we have, for a bucket and its spares that are full, and if no address that
        it claims is within the limits of its group.
        """
        if contact.peer in self._entries or contact.peer in self._spares:
            return False
        if contact.key == self.own:
            return False
        bucket = self._bucket(common_bits(self.own, contact.key))
        if len(bucket.entries) >= self._k and len(bucket.spares) >= min(self._k, SPARES_WANTED):
            return False
        return any(self._fits(bucket, group_of(address)) for address in contact.addrs)

    def closest(self, key: Key, count: int) -> list[Contact]:
        """Return the contacts nearest to a key, nearest first.

        All of one bucket are nearer than all of the next in `_walk`, so only those of the buckets
        that are needed are sorted. Cost: 5 to 9 µs for 20 of 250.
        """
        found, buckets = list[Contact](), self._buckets
        for index in _walk(key ^ self.own, len(buckets)):
            found += [entry.contact for entry in buckets[index].entries]
            if len(found) >= count:
                break
        found.sort(key=lambda one: one.key ^ key)
        return found[:count]

    def get(self, peer: PeerId) -> Contact | None:
        """Return a contact of the table."""
        entry = self._entries.get(peer)
        return None if entry is None else entry.contact

    def entry(self, peer: PeerId) -> Entry | None:
        """Return what is known of a contact of the table."""
        return self._entries.get(peer)

    def entries(self) -> list[Entry]:
        """Return all entries, farthest bucket first, in each the least recently seen first."""
        return [entry for bucket in self._buckets for entry in bucket.entries]

    def spares(self) -> list[Entry]:
        """Return those who wait for a place."""
        return list(self._spares.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._entries

    def changes(self) -> list[Change]:
        """Return who came and who left since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def idle_buckets(self, before_s: float) -> list[int]:
        """Return the buckets (bits in common with us) that heard of nobody since `before_s`.

        Down to the bucket of our k-th nearest: a lookup of our own key meets those behind it, and
        with fewer than k entries every lookup meets all.
        """
        deepest, nearer = -1, 0
        for deepest in range(len(self._buckets) - 1, -1, -1):
            nearer += len(self._buckets[deepest].entries)
            if nearer >= self._k:
                break
        last = min(deepest, REFRESH_BITS - 1) if nearer else -1
        return [i for i in range(last + 1) if self._buckets[i].heard_s <= before_s]

    # --- entries, spares and groups ---------------------------------------------------------------

    def _renew(self, entry: Entry, contact: Contact, address: str | None, now_s: float) -> None:
        """It answered: to the end of its bucket, or out if it moved to a group that is full."""
        bucket = self._bucket_of(entry)
        bucket.heard_s = entry.seen_s = now_s
        entry.failures = 0
        if contact.seq >= entry.contact.seq:
            entry.contact = contact
        bucket.entries.remove(entry)
        bucket.entries.append(entry)
        if address is None or address == entry.address:
            return
        entry.address, old, entry.group = address, entry.group, group_of(address)
        self._count(old, -1)
        fits = self._fits(bucket, entry.group, but=entry)
        self._count(entry.group, 1)
        if not fits:
            self._remove(bucket, entry)

    def _admit(self, bucket: _Bucket, entry: Entry) -> None:
        """Put it at its place in the order; a spare was seen earlier than some that are there."""
        bucket.entries.append(entry)
        bucket.entries.sort(key=attrgetter("seen_s"))
        self._entries[entry.contact.peer] = entry
        self._count(entry.group, 1)
        self._tell(Came(entry.contact))

    def _remove(self, bucket: _Bucket, entry: Entry) -> None:
        """Take it out; the newest spare that its group allows comes in."""
        bucket.entries.remove(entry)
        del self._entries[entry.contact.peer]
        self._count(entry.group, -1)
        self._tell(Gone(entry.contact))
        for spare in reversed(bucket.spares):
            if self._fits(bucket, spare.group):
                self._drop_spare(bucket, spare.contact.peer)
                self._admit(bucket, spare)
                return

    def _keep_spare(self, bucket: _Bucket, spare: Entry) -> None:
        """Keep a newcomer, in place of the oldest of its group or of all if there are too many."""
        alike = [one for one in bucket.spares if spare.group and one.group == spare.group]
        if len(alike) >= PER_GROUP:  # else one network would drive out all others
            self._drop_spare(bucket, alike[0].contact.peer)
        elif len(bucket.spares) >= self._k:
            self._drop_spare(bucket, bucket.spares[0].contact.peer)
        bucket.spares.append(spare)
        self._spares[spare.contact.peer] = spare

    def _drop_spare(self, bucket: _Bucket, peer: PeerId) -> None:
        spare = self._spares.pop(peer, None)
        if spare is not None:
            bucket.spares.remove(spare)

    def _whom_to_check(self, bucket: _Bucket, now_s: float) -> list[Contact]:
        """The least recently seen; who was useful lately only if all were."""
        if now_s - bucket.check_s < CHECK_S:
            return []
        order = bucket.entries
        chosen = next((one for one in order if now_s - one.useful_s > USEFUL_S), order[0])
        if now_s - chosen.seen_s < FRESH_S:
            return []
        bucket.check_s = now_s
        return [chosen.contact]

    def _fits(self, bucket: _Bucket, group: str | None, *, but: Entry | None = None) -> bool:
        """Whether one more of this group would be within its limits; `but` is not counted."""
        there = 0 if group is None else self._groups.get(group, 0)
        if there < PER_GROUP:
            return True
        alike = sum(one.group == group for one in bucket.entries if one is not but)
        return there < GROUP_MAX and alike < PER_GROUP

    def _count(self, group: str | None, change: int) -> None:
        if group is not None:
            there = self._groups.pop(group, 0) + change
            if there:
                self._groups[group] = there

    def _tell(self, change: Change) -> None:
        if len(self._changes) >= CHANGES_MAX:
            del self._changes[: CHANGES_MAX // 2]
        self._changes.append(change)

    def _bucket_of(self, entry: Entry) -> _Bucket:
        return self._buckets[common_bits(self.own, entry.contact.key)]

    def _bucket(self, index: int) -> _Bucket:
        while len(self._buckets) <= index:
            self._buckets.append(_Bucket())
        return self._buckets[index]


def _walk(away: int, buckets: int) -> Iterator[int]:
    """Indices of buckets in the order of their distance from a target that is `away` from us.

    Where the target differs from us in a bit, the bucket that differs from us there too is nearer
    than all deeper ones; where it does not, farther than those.
    """
    bits = away >> (KEY_BITS - buckets)
    for index in range(buckets):
        if bits >> (buckets - 1 - index) & 1:
            yield index
    for index in range(buckets - 1, -1, -1):
        if not bits >> (buckets - 1 - index) & 1:
            yield index
