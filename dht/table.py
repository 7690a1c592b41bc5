"""The routing table: k-buckets by shared prefix, oldest first, no peer evicted while it answers.

Only peers that answered us come in. A full bucket keeps newcomers in a replacement cache and asks
for a check of its oldest contact: alive, it moves to the end; dead, the newest spare takes its
place. Pure: checks are returned as effects.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from dht.key import Key, common_bits, distance, key_of_peer
from dht.records import Contact
from wire.ids import PeerId

K = 20  # contacts in a bucket, and in an answer (Kademlia's own)
SPARES_MAX = K  # newcomers kept beside a full bucket
FAILURES_MAX = 2  # unanswered requests until a contact without a spare is dropped


@dataclass(frozen=True)
class Check:
    """Effect: ask whether this contact is alive, then call `answered` or `failed`."""

    contact: Contact


@dataclass
class _Bucket:
    contacts: OrderedDict[PeerId, Contact] = field(default_factory=OrderedDict[PeerId, Contact])
    spares: OrderedDict[PeerId, Contact] = field(default_factory=OrderedDict[PeerId, Contact])
    failures: dict[PeerId, int] = field(default_factory=dict[PeerId, int])
    checking: PeerId | None = None
    used_at: float = -math.inf


class Table:
    """Contacts around our own key."""

    def __init__(self, own: PeerId, *, k: int = K) -> None:
        self.own = own
        self.own_key = key_of_peer(own)
        self._k = k
        self._buckets: dict[int, _Bucket] = {}

    def answered(self, contact: Contact, now: float) -> list[Check]:
        """A contact answered a request of ours: it comes in, or waits for a place."""
        if contact.peer == self.own:
            return []
        bucket = self._bucket(contact.peer)
        bucket.used_at = now
        bucket.failures.pop(contact.peer, None)
        if bucket.checking == contact.peer:
            bucket.checking = None
        if contact.peer in bucket.contacts or len(bucket.contacts) < self._k:
            bucket.contacts[contact.peer] = _newer(contact, bucket.contacts.get(contact.peer))
            bucket.contacts.move_to_end(contact.peer)
            bucket.spares.pop(contact.peer, None)
            return []
        bucket.spares[contact.peer] = contact
        bucket.spares.move_to_end(contact.peer)
        if len(bucket.spares) > SPARES_MAX:
            bucket.spares.popitem(last=False)
        if bucket.checking is not None:
            return []
        oldest = next(iter(bucket.contacts.values()))
        bucket.checking = oldest.peer
        return [Check(oldest)]

    def unchecked(self, peer: PeerId) -> None:
        """A check could not be made: the next newcomer asks for it again."""
        bucket = self._bucket(peer)
        if bucket.checking == peer:
            bucket.checking = None

    def failed(self, peer: PeerId) -> None:
        """A contact did not answer: a spare replaces it; without one it has another chance."""
        bucket = self._bucket(peer)
        if bucket.checking == peer:
            bucket.checking = None
        bucket.spares.pop(peer, None)
        if peer not in bucket.contacts:
            return
        bucket.failures[peer] = bucket.failures.get(peer, 0) + 1
        if bucket.spares or bucket.failures[peer] >= FAILURES_MAX:
            del bucket.contacts[peer], bucket.failures[peer]
            if bucket.spares:
                spare, contact = bucket.spares.popitem()
                bucket.contacts[spare] = contact

    def has_room_for(self, peer: PeerId) -> bool:
        """True if an unknown peer would come in at once."""
        bucket = self._buckets.get(self._index(peer), _Bucket())
        is_stranger = peer != self.own and peer not in bucket.contacts
        return is_stranger and len(bucket.contacts) < self._k

    def get(self, peer: PeerId) -> Contact | None:
        """Return a contact."""
        return self._buckets.get(self._index(peer), _Bucket()).contacts.get(peer)

    def closest(self, target: Key, count: int) -> list[Contact]:
        """Return the contacts nearest to a key, nearest first."""
        everyone = [one for bucket in self._buckets.values() for one in bucket.contacts.values()]
        return sorted(everyone, key=lambda one: distance(target, key_of_peer(one.peer)))[:count]

    def __len__(self) -> int:
        return sum(len(bucket.contacts) for bucket in self._buckets.values())

    def idle_buckets(self, before: float) -> list[int]:
        """Return the shared prefix lengths whose bucket heard of nobody since `before`.

        Farther than our nearest neighbour only: nearer buckets are empty because nobody is there.
        """
        deepest = max((i for i, bucket in self._buckets.items() if bucket.contacts), default=-1)
        return [
            index
            for index in range(deepest + 1)
            if self._buckets.get(index, _Bucket()).used_at <= before
        ]

    def refreshed(self, index: int, now: float) -> None:
        """A lookup in this bucket's range was made, whatever it found."""
        self._buckets.setdefault(index, _Bucket()).used_at = now

    def _index(self, peer: PeerId) -> int:
        return common_bits(self.own_key, key_of_peer(peer))

    def _bucket(self, peer: PeerId) -> _Bucket:
        return self._buckets.setdefault(self._index(peer), _Bucket())


def _newer(new: Contact, old: Contact | None) -> Contact:
    return new if old is None or new.seq >= old.seq else old
