"""Handing over: when servers come and go, records follow to those who belong to their close sets.

Of those who hold a record only the nearest to it sends, so each record travels about once per
change of its close set:

* a server came that belongs to the close set: the nearest of those who were there before sends it.
  A record that came after that server did is not sent: who brought it here brought it there too;
* a server left: the nearest of the rest sends it to the one that takes its place among the k
  nearest, if that one is beyond the region (within it everybody holds it already). If the one that
  left was the nearest itself, it may have been dead for a while before anybody noticed, so the next
  one also sends it to those who came meanwhile;
* hourly the second nearest sends it to those who came in the last hour, in case the nearest (which
  may be hostile) did not.

What is not signed stays where it is. The receiver's own bounds count, and nothing is checked here.
Pure: what to send to whom is returned, and sent by whoever drives it.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dht.holding import Holding
from dht.key import KEY_BITS, Key
from dht.messages import Contact, Moment, Provision, Value
from dht.table import Came, Change, Gone, K, Table
from wire.ids import PeerId

Parcel = tuple[Contact, tuple[Provision | Value, ...]]

MISSED_S = 1200.0  # until a dead neighbour is noticed, at the latest: buckets refresh in 10 min
HOUR_S = 3600.0
CAME_MAX = 1000  # newcomers remembered: four whole tables in an hour; the oldest are forgotten


@dataclass(slots=True)
class Handover:
    """Who came and who left lately, and what follows for the records that we hold."""

    holding: Holding
    table: Table
    own: Key
    _came: OrderedDict[PeerId, float] = field(default_factory=OrderedDict[PeerId, float])
    _new: dict[PeerId, Contact] = field(default_factory=dict[PeerId, Contact])
    _gone: dict[PeerId, Contact] = field(default_factory=dict[PeerId, Contact])

    def saw(self, changes: Iterable[Change], moment: Moment) -> bool:
        """Note how the table changed. True: there is something for `after_changes`, soon.

        Call it when it happened (records that come later are not for those who came), and
        `after_changes` some seconds later: a newcomer has to learn first where it belongs.
        """
        for change in changes:
            match change:
                case Came(contact):
                    self._came[contact.peer] = moment.s
                    self._came.move_to_end(contact.peer)
                    self._new[contact.peer] = contact
                    self._gone.pop(contact.peer, None)
                case Gone(contact):
                    self._new.pop(contact.peer, None)
                    self._gone[contact.peer] = contact
        for noted in (self._new, self._gone):
            while len(noted) > CAME_MAX:
                del noted[next(iter(noted))]
        self._forget(moment)
        return bool(self._new or self._gone)

    def after_changes(self, region: int, moment: Moment) -> list[Parcel]:
        """Return what to send because of the changes since the last call.

        region: distance from a key within which all servers hold its records.
        Cost: 30 µs for each record to which we are the nearest, 1 in 20 of those we hold.
        """
        parcels = _Parcels(self.holding, moment)
        self._follow_changes(region, moment, parcels)
        return parcels.all()

    def on_leaving(self, region: int, moment: Moment) -> list[Parcel]:
        """Return what to send before we go: to those who take our place, and to newcomers.

        Cost: 30 µs for each name that we hold.
        """
        parcels = _Parcels(self.holding, moment)
        self._follow_changes(region, moment, parcels)
        for key, name in self.holding.names():
            others = self.table.closest(key, K)
            is_ours = len(others) == K and self.own ^ key < others[-1].key ^ key
            if is_ours and others[-1].key ^ key > region:
                parcels.add(others[-1], name)
        for key, name in self._near_to({}):
            self._serve(self.table.closest(key, 1), key, name, math.inf, parcels)
        return parcels.all()

    def hourly(self, region: int, moment: Moment) -> list[Parcel]:
        """Return what the nearest should have sent in the last hour, where we are the second.

        Cost: 30 µs for each record to which we are among the nearest, if anybody came.
        """
        parcels = _Parcels(self.holding, moment)
        recent, known = self._recent(moment.s - HOUR_S), self._known()
        for key, name in self._near_to(recent, rank=1) if recent else []:
            if self._elders_nearer(known, key, name, most=1) == 1:
                others = self.table.closest(key, K - 1)
                limit = max(region, _reach(key, others))
                self._serve(recent.values(), key, name, limit, parcels)
        return parcels.all()

    def _follow_changes(self, region: int, moment: Moment, parcels: "_Parcels") -> None:
        new, self._new = self._new, {}
        gone, self._gone = self._gone, {}
        if not (new or gone) or not len(self.holding):
            return
        for key, name in self._near_to(new):
            others = self.table.closest(key, K - 1)  # with us k
            reach = _reach(key, others)
            places = sum(it.key ^ key < reach for it in gone.values())
            for contact in others[-places:] if places and reach < math.inf else []:
                if contact.key ^ key > region and contact.peer not in new:
                    parcels.add(contact, name)
            self._serve(new.values(), key, name, max(region, reach), parcels)
        if gone:
            self._make_up_for(gone.values(), region, moment, parcels)

    def _make_up_for(
        self, gone: Iterable[Contact], region: int, moment: Moment, parcels: "_Parcels"
    ) -> None:
        """Serve those who came while the nearest was dead and nobody knew it."""
        recent, known = self._recent(moment.s - MISSED_S), self._known()
        for key, name in self._near_to(recent):
            if not any(it.key ^ key < self.own ^ key for it in gone):
                continue
            if not self._elders_nearer(known, key, name, most=0):
                others = self.table.closest(key, K - 1)
                limit = max(region, _reach(key, others))
                self._serve(recent.values(), key, name, limit, parcels)

    def _serve(
        self,
        newcomers: Iterable[Contact],
        key: Key,
        name: bytes,
        limit: float,
        parcels: "_Parcels",
    ) -> None:
        """Send what was here before them to those newcomers that are near enough."""
        for contact in newcomers:
            if contact.key ^ key <= limit:
                parcels.add(contact, name, before_s=self._came_s(contact))

    def _known(self) -> list[tuple[Key, float]]:
        """Return where everybody in the table is, and when they came."""
        contacts = [entry.contact for entry in self.table.entries()]
        return [(it.key, self._came.get(it.peer, -math.inf)) for it in contacts]

    def _elders_nearer(
        self, known: list[tuple[Key, float]], key: Key, name: bytes, *, most: int
    ) -> int:
        """Count who is nearer to a record than we are and was there when it came to us.

        Not further than one beyond `most`, and so it costs little for most names.
        """
        since_s, ours, count = self.holding.since_s(name), self.own ^ key, 0
        for other, came_s in known:
            if other ^ key < ours and came_s <= since_s:
                count += 1
                if count > most:
                    break
        return count

    def _came_s(self, contact: Contact) -> float:
        return self._came.get(contact.peer, math.inf)

    def _recent(self, since_s: float) -> dict[PeerId, Contact]:
        """Return those in the table who came since then."""
        recent = [peer for peer, came_s in self._came.items() if came_s >= since_s]
        return {peer: it for peer in recent if (it := self.table.get(peer)) is not None}

    def _near_to(self, but: dict[PeerId, Contact], *, rank: int = 0) -> list[tuple[Key, bytes]]:
        """Return the names to whose keys we are nearer than all in the table, not counting `but`.

        rank: how many may be nearer in a bucket. A peer that shares i bits with us is nearer to a
        key than we are if, and only if, that key differs from ours in the bit after them.
        """
        counts = [0] * KEY_BITS
        for entry in self.table.entries():
            if entry.contact.peer not in but:
                counts[(self.own ^ entry.contact.key).bit_length() - 1] += 1
        taken = sum(1 << bit for bit, count in enumerate(counts) if count > rank)
        leading = KEY_BITS - (taken ^ (1 << KEY_BITS) - 1).bit_length()
        found = self.holding.names(self.own, leading)
        return [it for it in found if not (it[0] ^ self.own) & taken]

    def _forget(self, moment: Moment) -> None:
        while self._came:
            peer, came_s = next(iter(self._came.items()))
            if came_s > moment.s - HOUR_S and len(self._came) <= CAME_MAX:
                return
            del self._came[peer]


def _reach(key: Key, others: list[Contact]) -> float:
    """Return how far the k-th nearest is, ourselves among them; infinitely if there are fewer."""
    return others[-1].key ^ key if len(others) == K - 1 else math.inf


@dataclass(slots=True)
class _Parcels:
    """What each gets, once."""

    holding: Holding
    moment: Moment
    _by_peer: dict[PeerId, tuple[Contact, dict[Provision | Value, None]]] = field(
        default_factory=dict[PeerId, tuple[Contact, dict[Provision | Value, None]]]
    )

    def add(self, contact: Contact, name: bytes, *, before_s: float = math.inf) -> None:
        records = self.holding.signed(name, self.moment.wall_ms, before_s=before_s)
        if records:
            _, mine = self._by_peer.setdefault(contact.peer, (contact, {}))
            mine.update(dict.fromkeys(records))

    def all(self) -> list[Parcel]:
        return [(contact, tuple(records)) for contact, records in self._by_peer.values()]
