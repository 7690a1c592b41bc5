"""One iterative lookup, sans-IO: go nearer until the k nearest who are alive have all answered.

Over one path or over d disjoint ones (S/Kademlia, Baumgart and Mies, 2007): each has candidates of
its own, and whom one path has asked no other asks; so a liar misleads the one path that met him.
With a region it goes on until everybody known within that distance has answered.

Candidates stay sorted by distance (XOR: no two peers share one), so an event costs a walk over the
nearest of them. Terminates: every peer is asked at most once, at most `REQUESTS_MAX` in all, and
not after `OPERATION_S`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import islice

from dht.diversity import PER_GROUP, UNPLACED, group_of
from dht.key import KEY_BITS, Key
from dht.messages import (
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Hop,
    Moment,
    Nodes,
    Pong,
    Providers,
    Stored,
    Trace,
    Values,
)
from dht.operation import OPERATION_S, SLOW_S, Wanted
from dht.table import K
from wire.ids import PeerId

ALPHA = 8  # requests in flight over one path: the facts' reference has 10, and 38 messages
PATHS = 4  # disjoint ones, for stores and for reads that ask for it: 20 % liars own none of them
PATH_ALPHA = 3  # in flight in each of several paths: 12 in all
PLACES_MAX = 24  # in flight when many fail: 70 % dead leave 7 of them who answer
REQUESTS_MAX = 400  # of one lookup: 70 % dead at 10,000 peers take 83 (facts: state, 2)
REGION_MAX = 200  # asked within a region: k are expected there, and ten times as many Sybils
REGION_PER_GROUP = 10  # of an address group within the region: as many as a table holds
CANDIDATES_MAX = 1000  # of a path; the farthest are forgotten. 50 answers of Sybils fill them
GROUPS_MAX = 3  # of one contact: IPv4, IPv6 and one to spare. Who claims more shares one group
_MANY = ("many",)

_FRESH, _FLYING, _ALIVE, _DEAD = range(4)

Query = FindNode | GetProviders | GetValue
Look = Callable[[Contact, Answer], bool]


class Lookup:
    """The k live contacts nearest to `target`, nearest first: its `result`.

    seeds: whom we know nearest to it. paths: disjoint ones. region: a distance; 0 for none.
    need: how many of the nearest must have answered. look: called with each answer; True ends it.
    salt: a random number, in whose order a region is asked that holds too many.
    """

    def __init__(
        self,
        target: Key,
        own: PeerId,
        request: Query,
        seeds: Iterable[Contact],
        moment: Moment,
        *,
        paths: int = 1,
        region: int = 0,
        need: int = K,
        look: Look | None = None,
        salt: int = 0,
    ) -> None:
        assert paths >= 1
        assert need >= 1
        self.target = target
        self.region = region
        self._own, self._request, self._need = own, request, need
        self._look, self._salt = look, salt
        self._began_s = moment.s
        self._known = dict[int, _Peer]()  # by distance
        self._flights = list[_Flight]()  # by tag
        self._paths = [_Path() for _ in range(paths)]
        self._alpha = ALPHA if paths == 1 else PATH_ALPHA
        self._in_region = 0  # asked there
        self._has_enough = False
        self._is_done = False
        self._wake_at = -math.inf
        nearest = sorted(seeds, key=lambda seed: seed.key ^ target)
        for number, path in enumerate(self._paths):
            self._learn(path, nearest[number::paths], 0)

    # --- events ----------------------------------------------------------------------------------

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """Return what to send now. It is here, and nowhere else, that `is_done` turns true."""
        now_s = moment.s
        if self._is_done or self._has_enough or now_s >= self._began_s + OPERATION_S:
            return self._end(now_s)
        wanted = list[Wanted]()
        is_settled, is_flying = True, False
        for path in self._paths:
            fresh, is_path_settled = self._nearest(path, now_s)
            if is_path_settled and self.region:
                fresh = self._unasked_in_region(path)
            for peer in fresh[: self._places(path, now_s)]:
                if len(self._flights) >= REQUESTS_MAX:
                    break
                wanted.append(self._ask(path, peer, now_s))
            is_settled = is_settled and is_path_settled and not fresh
            is_flying = is_flying or bool(path.flying)
        if not is_flying or (is_settled and not self._waits_for_region()):
            return self._end(now_s)
        self._wake_at = self._next_slow(now_s)
        return wanted

    def answered(self, tag: int, answer: Answer, moment: Moment) -> None:
        """A request was answered: its contacts become candidates of the path that asked."""
        if isinstance(answer, Stored):  # whatever was asked may be answered by a refusal
            self.failed(tag, f"refused: {answer.refusal}", moment)
            return
        flight = self._landed(tag, moment, "answered")
        if flight is None:
            return
        peer = flight.peer
        peer.state = _ALIVE
        if not isinstance(answer, Pong):
            flight.closer = len(answer.closer)
            flight.found = _found_in(answer)
            self._learn(flight.path, answer.closer[:K], peer.depth + 1)
        if self._look is not None and self._look(peer.contact, answer):
            self._has_enough = True

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """A request was not answered: its peer no longer counts, and one more may fly."""
        flight = self._landed(tag, moment, why)
        if flight is not None:
            flight.peer.state = _DEAD
            flight.path.failures += 1

    # --- what came of it -------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When the next request in flight has become slow, or the deadline."""
        return math.inf if self._is_done else self._wake_at

    @property
    def is_done(self) -> bool:
        """True when the nearest have answered, enough was found, or time or requests ran out."""
        return self._is_done

    @property
    def result(self) -> list[Contact]:
        """The k nearest who answered, nearest first, at most `PER_GROUP` of an address group."""
        return self._alive(K, PER_GROUP, (1 << KEY_BITS) - 1)

    def in_region(self) -> list[Contact]:
        """Those within the region who answered, nearest first."""
        return self._alive(REGION_MAX, REGION_PER_GROUP, self.region) if self.region else []

    def close_set(self) -> list[Contact]:
        """Who should hold a record that is at the target: `result` and `in_region`."""
        nearest = {contact.key: contact for contact in self.result}
        nearest.update((contact.key, contact) for contact in self.in_region())
        return sorted(nearest.values(), key=lambda contact: contact.key ^ self.target)

    def known(self) -> list[Contact]:
        """All it has heard of but those who failed, nearest first."""
        known = sorted(self._known.items())
        return [peer.contact for _, peer in known if peer.state != _DEAD]

    def failures(self) -> list[Contact]:
        """Those who were asked and did not answer."""
        return [peer.contact for peer in self._known.values() if peer.state == _DEAD]

    def is_near(self, contact: Contact) -> bool:
        """Whether it was among the nearest known at the last `next_asks`, or is in the region."""
        distance = contact.key ^ self.target
        return distance <= max(self.region, *(path.edge for path in self._paths), 0)

    @property
    def requests(self) -> int:
        """How many were sent."""
        return len(self._flights)

    @property
    def hops(self) -> int:
        """How many answers in a row led to the nearest who answered: 0 for one in our table."""
        alive = (peer for peer in self._known.values() if peer.state == _ALIVE)
        nearest = min(alive, key=lambda peer: peer.distance, default=None)
        return 0 if nearest is None else nearest.depth

    @property
    def trace(self) -> Trace:
        """Return every request so far, in order. Made when asked for: it costs as much as to look."""
        return Trace([self._hop(flight) for flight in self._flights])

    # --- inside ----------------------------------------------------------------------------------

    def _learn(self, path: "_Path", contacts: Iterable[Contact], depth: int) -> None:
        target, known, distances = self.target, self._known, path.distances
        is_only = len(self._paths) == 1
        for contact in contacts:
            distance = contact.key ^ target
            peer = known.get(distance)
            if peer is None:
                if contact.peer == self._own:
                    continue
                peer = known[distance] = _Peer(contact, distance, depth)
            else:
                if peer.state == _FRESH and contact.is_newer_than(peer.contact):
                    peer.contact, peer.groups = contact, None
                if is_only:
                    continue
            at = bisect_left(distances, distance)
            if at < len(distances) and distances[at] == distance:
                continue
            distances.insert(at, distance)
            path.peers.insert(at, peer)
        del distances[CANDIDATES_MAX:], path.peers[CANDIDATES_MAX:]

    def _nearest(self, path: "_Path", now_s: float) -> tuple[list["_Peer"], bool]:
        """Return whom to ask of the nearest in a path, and whether the nearest have all answered.

        Who is slow keeps the path from being settled, but not the next nearest from being asked.
        """
        groups = dict[str, int]()
        fresh, is_settled = list["_Peer"](), True
        quick = alive = 0
        for peer in path.peers:
            state = peer.state
            if state == _DEAD or not peer.takes_place(groups, PER_GROUP):
                continue
            alive += 1
            if state == _FLYING:
                is_settled = is_settled and alive > self._need
                if peer.began_s + SLOW_S <= now_s:
                    continue
            elif state == _FRESH:
                fresh.append(peer)
                is_settled = False
            quick += 1
            path.edge = peer.distance
            if quick == self._need:
                break
        return fresh, is_settled

    def _unasked_in_region(self, path: "_Path") -> list["_Peer"]:
        """Return whom to ask in the region.

        Within it nearness is no merit, since that is what is ground cheaply: if there are too many,
        chance says who is asked.
        """
        room = REGION_MAX - self._in_region
        fresh = list["_Peer"]()
        groups = dict[str, int]()
        for peer in path.peers:
            if peer.distance > self.region or room <= 0:
                break
            if peer.state != _DEAD and peer.takes_place(groups, REGION_PER_GROUP):
                fresh.append(peer)
        fresh = [peer for peer in fresh if peer.state == _FRESH]
        if len(fresh) > room:
            fresh.sort(key=lambda peer: peer.contact.key ^ self._salt)
        return fresh[:room] if room > 0 else []

    def _waits_for_region(self) -> bool:
        if not self.region:
            return False
        flying = (flight for path in self._paths for flight in path.flying.values())
        return any(flight.peer.distance <= self.region for flight in flying)

    def _places(self, path: "_Path", now_s: float) -> int:
        """How many more may fly in a path."""
        flying = path.flying.values()
        busy = sum(flight.peer.began_s + SLOW_S > now_s for flight in flying)
        return max(0, min(self._alpha + path.failures, PLACES_MAX) - busy)

    def _next_slow(self, now_s: float) -> float:
        flying = (flight for path in self._paths for flight in path.flying.values())
        slow = (flight.peer.began_s + SLOW_S for flight in flying)
        deadline_s = self._began_s + OPERATION_S
        return min((at_s for at_s in slow if at_s > now_s), default=deadline_s)

    def _ask(self, path: "_Path", peer: "_Peer", now_s: float) -> Wanted:
        peer.state, peer.began_s = _FLYING, now_s
        self._in_region += peer.distance <= self.region
        tag = len(self._flights)
        flight = _Flight(peer, path)
        self._flights.append(flight)
        path.flying[tag] = flight
        return Wanted(tag, peer.contact, self._request)

    def _landed(self, tag: int, moment: Moment, outcome: str) -> "_Flight | None":
        """Take a request out of the air; None if it is not there."""
        flight = self._flights[tag] if 0 <= tag < len(self._flights) else None
        if flight is None or flight.path.flying.pop(tag, None) is None:
            return None
        flight.took_s, flight.outcome = moment.s - flight.peer.began_s, outcome
        return flight

    def _end(self, now_s: float) -> list[Wanted]:
        for path in self._paths:
            self._nearest(path, now_s)  # for `is_near`
        self._is_done = True
        return []

    def _alive(self, count: int, per_group: int, within: int) -> list[Contact]:
        alive = sorted(d for d, peer in self._known.items() if peer.state == _ALIVE and d <= within)
        groups = dict[str, int]()
        peers = (self._known[distance] for distance in alive)
        taken = (peer.contact for peer in peers if peer.takes_place(groups, per_group))
        return list(islice(taken, count))

    def _hop(self, flight: "_Flight") -> Hop:
        peer = flight.peer
        return Hop(
            peer=peer.contact.peer,
            bits=KEY_BITS - peer.distance.bit_length(),
            depth=peer.depth,
            path=self._paths.index(flight.path),
            began_s=peer.began_s - self._began_s,
            took_s=flight.took_s,
            outcome=flight.outcome,
            closer=flight.closer,
            found=flight.found,
        )


class _Peer:
    """A candidate: all paths that know it share this."""

    __slots__ = ("began_s", "contact", "depth", "distance", "groups", "state")

    def __init__(self, contact: Contact, distance: int, depth: int) -> None:
        self.contact, self.distance, self.depth = contact, distance, depth
        self.state = _FRESH
        self.began_s = 0.0
        self.groups: tuple[str, ...] | None = None  # not known yet: few candidates come so far

    def takes_place(self, taken: dict[str, int], per_group: int) -> bool:
        """Count it in its address groups; False if one of them is full."""
        groups = self.groups
        if groups is None:
            groups = self.groups = groups_of(self.contact)
        if not groups:
            return True
        if any(taken.get(group, 0) >= per_group for group in groups):
            return False
        for group in groups:
            taken[group] = taken.get(group, 0) + 1
        return True


class _Path:
    """One of the disjoint paths: its candidates, nearest first, and what it has in flight."""

    __slots__ = ("distances", "edge", "failures", "flying", "peers")

    def __init__(self) -> None:
        self.distances = list[int]()
        self.peers = list[_Peer]()  # at the same places
        self.flying = dict[int, _Flight]()
        self.failures = 0
        self.edge = 0  # distance of the farthest of the nearest


class _Flight:
    """One request and what came of it."""

    __slots__ = ("closer", "found", "outcome", "path", "peer", "took_s")

    def __init__(self, peer: _Peer, path: _Path) -> None:
        self.peer, self.path = peer, path
        self.took_s: float | None = None
        self.outcome = "flying"
        self.closer = self.found = 0


def groups_of(contact: Contact) -> tuple[str, ...]:
    """Return the address groups in which a contact counts: all that it claims.

    It answers only where it really is, so that one is among them; a false one beside it gains
    nothing. Empty only if all its addresses are private.
    """
    groups = {group_of(address) for address in contact.addrs} if contact.addrs else {UNPLACED}
    placed = tuple(group for group in groups if group is not None and group != UNPLACED)
    if placed:
        return placed if len(placed) <= GROUPS_MAX else _MANY
    return (UNPLACED,) if UNPLACED in groups else ()


def _found_in(answer: Nodes | Providers | Values) -> int:
    """How many records are in an answer."""
    match answer:
        case Providers(provisions):
            return len(provisions)
        case Values(values):
            return len(values)
        case _:
            return 0
