"""One iterative lookup, sans-IO: go nearer until the k nearest who are alive have all answered.

The driver sends to `next_queries`, and reports `answered` or `failed` (its deadline passed, or the
peer refused). Terminates: every peer is asked at most once, and at most `QUERIES_MAX` in all.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dht.key import Key, distance, key_of_peer
from dht.records import Contact
from dht.table import K
from wire.ids import PeerId

ALPHA = 8  # requests in flight
QUERIES_MAX = 200  # requests of one lookup: 30 % dead at 10,000 peers take 40 (facts: state, 2)
CANDIDATES_MAX = 20 * K  # known and not yet asked; the farthest are forgotten


@dataclass
class Lookup:
    """The k live contacts nearest to `target`."""

    target: Key
    own: PeerId
    k: int = K
    alpha: int = ALPHA
    queries: int = 0
    _fresh: dict[PeerId, Contact] = field(default_factory=dict[PeerId, Contact])
    _asked: dict[PeerId, Contact] = field(default_factory=dict[PeerId, Contact])
    _alive: dict[PeerId, Contact] = field(default_factory=dict[PeerId, Contact])
    _done: set[PeerId] = field(default_factory=set[PeerId])

    def learn(self, contacts: Iterable[Contact]) -> None:
        """Add candidates: the seeds, and what answers brought."""
        for contact in contacts:
            is_known = contact.peer in self._asked or contact.peer in self._done
            if not is_known and contact.peer != self.own:
                self._fresh[contact.peer] = contact
        if len(self._fresh) > CANDIDATES_MAX:
            nearest = sorted(self._fresh.values(), key=self._distance)[:CANDIDATES_MAX]
            self._fresh = {contact.peer: contact for contact in nearest}

    def next_queries(self) -> list[Contact]:
        """Return whom to ask now; they are in flight until reported."""
        if self.is_done:
            return []
        room = min(self.alpha - len(self._asked), QUERIES_MAX - self.queries)
        wanted = sorted(self._fresh.values(), key=self._distance)[: max(room, 0)]
        bound = self._bound()
        wanted = [contact for contact in wanted if self._distance(contact) < bound]
        for contact in wanted:
            del self._fresh[contact.peer]
            self._asked[contact.peer] = contact
        self.queries += len(wanted)
        return wanted

    def answered(self, peer: PeerId, contacts: Iterable[Contact]) -> None:
        """A peer answered with those it knows nearest to the target."""
        contact = self._asked.pop(peer, None)
        if contact is None:
            return
        self._done.add(peer)
        self._alive[peer] = contact
        self.learn(sorted(contacts, key=self._distance)[: self.k])

    def failed(self, peer: PeerId) -> None:
        """A peer did not answer in time."""
        if self._asked.pop(peer, None) is not None:
            self._done.add(peer)

    @property
    def is_done(self) -> bool:
        """True when nobody nearer than the k-th live one is left to ask or still in flight."""
        if self.queries >= QUERIES_MAX:
            return not self._asked
        bound = self._bound()
        left = (*self._asked.values(), *self._fresh.values())
        return all(self._distance(contact) >= bound for contact in left)

    def closest(self) -> list[Contact]:
        """Return those who answered, nearest first, up to k."""
        return sorted(self._alive.values(), key=self._distance)[: self.k]

    def _bound(self) -> int:
        """Distance of the k-th live one: what is not nearer does not matter."""
        nearest = self.closest()
        return self._distance(nearest[-1]) if len(nearest) == self.k else 2**256

    def _distance(self, contact: Contact) -> int:
        return distance(self.target, key_of_peer(contact.peer))
