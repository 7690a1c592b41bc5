"""One iterative lookup, sans-IO: go nearer until the k nearest who are alive have all answered.

Over one path or over d disjoint ones (S/Kademlia, Baumgart and Mies, 2007): each has candidates of
its own, and whom one path has asked no other asks; so a liar misleads the one path that met him.
With a region it goes on until everybody known within that distance has answered; and if that is
crowded, until those have been found who are hidden behind the crowd (`dht.crowd`).

Candidates stay sorted by distance (XOR: no two peers share one), so an event costs a walk over the
nearest of them. Terminates: every peer is asked at most once (twice, if somebody has a newer word
of where it is), at most `REQUESTS_MAX` in all, and not after `OPERATION_S`.
"""

import math
import random
from collections.abc import Callable, Iterable
from itertools import islice

from dht.candidates import ALIVE, DEAD, FRESH, REGION_PER_GROUP, Candidate, Flight, Path
from dht.crowd import AROUND_AT_ONCE, AROUND_MAX, FAR, evenly, is_crowded
from dht.diversity import PER_GROUP
from dht.key import KEY_BITS, SPACE, Key, name_of_peer
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
from dht.operation import OPERATION_S, Wanted
from dht.table import K
from wire.ids import PeerId

ALPHA = 8  # requests in flight over one path: the facts' reference has 10, and 38 messages
PATHS = 4  # disjoint ones, for stores and for reads that ask for it: 20 % liars own none of them
SEEDS = 3 * K  # to begin with: of k, when 70 % are dead, one lookup in 1,000 finds nobody alive
PATH_ALPHA = 3  # in flight in each of several paths: 12 in all
REQUESTS_MAX = 400  # of one lookup: 70 % dead at 10,000 peers take 83 (facts: state, 2)
REGION_MAX = 200  # asked within a region: k are expected there, and ten times as many Sybils

Query = FindNode | GetProviders | GetValue
Look = Callable[[Contact, Answer], bool]


class Lookup:
    """The k live contacts nearest to `target`, nearest first: its `result`.

    seeds: whom we know nearest to it, and with a region some from all over our table. paths:
    disjoint ones. region: a distance; 0 for none. need: how many of the nearest must have answered.
    alpha: requests in flight in a path; 0 for the default. near: who is within this distance should
    hold what is looked for (`next_asks`). look: called with each answer; True ends it. salt: a
    random number, by which a crowd is asked.
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
        alpha: int = 0,
        near: int = 0,
        look: Look | None = None,
        salt: int = 0,
    ) -> None:
        assert paths >= 1
        assert need >= 1
        self.target = target
        self.region = region
        self._near = near
        self._own, self._request = own, request
        self._look, self._salt = look, salt
        self._began_s = moment.s
        self._known = dict[int, Candidate]()  # by distance
        self._flights = list[Flight]()  # by tag
        alpha = alpha or (ALPHA if paths == 1 else PATH_ALPHA)
        self._paths = [Path(alpha, need) for _ in range(paths)]
        self._in_region = 0  # asked there
        self._is_crowded = False
        self._around = set[int]()  # distances of those who were asked past the crowd
        self._has_enough = False
        self._is_done = False
        self._wake_at = -math.inf
        nearest = sorted(seeds, key=lambda seed: seed.key ^ target)
        for number, path in enumerate(self._paths):
            self._learn(path, nearest[number::paths], 0)

    # --- events ----------------------------------------------------------------------------------

    def next_asks(self, moment: Moment, *, enough: int = 0) -> list[Wanted]:
        """Return what to send now. It is here, and nowhere else, that `is_done` turns true.

        enough: so many more answers of those who are near would do; no more of them fly at a time.
        """
        now_s = moment.s
        if self._is_done or self._has_enough or now_s >= self._began_s + OPERATION_S:
            return self._end(now_s)
        wanted = list[Wanted]()
        is_settled, is_flying = True, False
        for path in self._paths:
            fresh, is_path_settled = path.nearest(now_s)
            places = path.places(now_s)
            if is_path_settled and self.region and places:
                fresh = self._unasked_in_region(path)
            fresh_now = fresh[:places]
            for candidate in self._hopeful(path, fresh_now, enough, now_s) if enough else fresh_now:
                if len(self._flights) >= REQUESTS_MAX:
                    break
                wanted.append(self._ask(path, candidate, now_s))
            is_free = places > 0 or not self.region
            is_settled = is_settled and is_path_settled and is_free and not fresh
            is_flying = is_flying or bool(path.flying)
        is_idle = not is_flying or is_settled
        if self.region and is_idle and (self._is_crowded or not self._waits_for_region()):
            around = self._ask_around(now_s)
            wanted += around
            is_flying = is_flying or bool(around)
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
        candidate = flight.candidate
        candidate.state = ALIVE
        if not isinstance(answer, Pong):
            flight.closer = len(answer.closer)
            flight.found = _found_in(answer)
            self._learn(flight.path, answer.closer[:K], candidate.depth + 1)
        if self._look is not None and self._look(candidate.contact, answer):
            self._has_enough = True

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """A request was not answered: its peer no longer counts, and one more may fly."""
        flight = self._landed(tag, moment, why)
        if flight is not None:
            flight.path.failures += 1
            flight.candidate.fail()

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
        return self._alive(K, PER_GROUP, SPACE - 1)

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
        return [candidate.contact for _, candidate in known if candidate.state != DEAD]

    def failures(self) -> list[Contact]:
        """Those who were asked and did not answer."""
        return [candidate.contact for candidate in self._known.values() if candidate.state == DEAD]

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
        """How many requests in a row led to the nearest's own answer: 1 for one in our table."""
        alive = (one for one in self._known.values() if one.state == ALIVE)
        nearest = min(alive, key=lambda one: one.distance, default=None)
        return 0 if nearest is None else nearest.depth + 1

    @property
    def trace(self) -> Trace:
        """Return every request so far, in order; made when asked for, since few ask."""
        return Trace([self._hop(flight) for flight in self._flights])

    # --- inside ----------------------------------------------------------------------------------

    def _learn(self, path: Path, contacts: Iterable[Contact], depth: int) -> None:
        target, known = self.target, self._known
        is_only = len(self._paths) == 1
        for contact in contacts:
            distance = contact.key ^ target
            candidate = known.get(distance)
            if candidate is None:
                if contact.peer == self._own:
                    continue
                candidate = known[distance] = Candidate(contact, distance, depth)
            else:
                if candidate.depth > depth and candidate.state != ALIVE:
                    candidate.depth = depth  # the shortest way to it that was found
                if contact.is_newer_than(candidate.contact):
                    candidate.hear(contact)
                if is_only:
                    continue
            path.add(candidate)

    def _hopeful(
        self, path: Path, fresh: list[Candidate], enough: int, now_s: float
    ) -> list[Candidate]:
        """Return those of whom to ask that may be needed beside those who are asked already."""
        near = self._near
        flying = (one.candidate for one in path.flying.values())
        busy = sum(one.distance <= near and one.slow_at_s > now_s for one in flying)
        room = enough + path.failures - busy  # where some are dead, more may be
        if sum(one.distance <= near for one in fresh) >= room:
            return fresh[: max(room, 0)]  # nearest first
        return fresh

    def _unasked_in_region(self, path: Path) -> list[Candidate]:
        """Return whom to ask in the region: evenly over it, as long as there is room."""
        self._see_crowd()
        fresh = path.unasked_within(self.region)
        room = REGION_MAX - self._in_region
        if self._is_crowded or len(fresh) > room:
            fresh = self._evenly(fresh)
        return fresh[: max(room, 0)]

    def _waits_for_region(self) -> bool:
        if not self.region:
            return False
        flying = (flight for path in self._paths for flight in path.flying.values())
        return any(self._is_crowded or one.candidate.distance <= self.region for one in flying)

    def _see_crowd(self) -> None:
        """If the region is crowded, more may fly from now on: there is much to ask."""
        if self._is_crowded or self.region >= SPACE - 1:  # the size is not known yet
            return
        if is_crowded(self._alive_in_region(), self.region):
            self._is_crowded = True
            for path in self._paths:
                path.alpha = ALPHA

    def _alive_in_region(self) -> list[int]:
        within = (d for d, one in self._known.items() if d <= self.region and one.state == ALIVE)
        return sorted(within)

    def _ask_around(self, now_s: float) -> list[Wanted]:
        """Ask past a crowd: first seeds from all over our table, then the region about itself."""
        if not self._is_crowded:
            return []
        room = AROUND_AT_ONCE - sum(len(path.flying) for path in self._paths)
        room = min(room, REQUESTS_MAX - len(self._flights), AROUND_MAX - len(self._around))
        if room <= 0:
            return []
        known = self._known
        if not self._around:
            seeds = [one for one in known.values() if one.depth == 0 and one.state == FRESH]
            seeds.sort(key=lambda one: one.distance, reverse=True)
            self._around.update(one.distance for one in seeds[:FAR])
            if seeds:
                return [self._ask(self._any_path(), seed, now_s) for seed in seeds[:FAR]]
        left = [known[d] for d in self._alive_in_region() if d not in self._around]
        chosen = self._evenly(left)[:room]
        self._around.update(one.distance for one in chosen)
        return [self._ask_about_itself(one, now_s) for one in chosen]

    def _evenly(self, candidates: list[Candidate]) -> list[Candidate]:
        rng = random.Random(self._salt ^ len(self._flights))
        return evenly(candidates, self.region, rng)

    def _any_path(self) -> Path:
        """Past the crowd paths only share the work: everybody is asked by one of them."""
        return self._paths[len(self._flights) % len(self._paths)]

    def _ask_about_itself(self, candidate: Candidate, now_s: float) -> Wanted:
        request = FindNode(name_of_peer(candidate.contact.peer))
        return self._send(self._any_path(), candidate, request, now_s)

    def _next_slow(self, now_s: float) -> float:
        flying = (flight for path in self._paths for flight in path.flying.values())
        slow = (flight.slow_at_s for flight in flying)
        deadline_s = self._began_s + OPERATION_S
        return min((at_s for at_s in slow if at_s > now_s), default=deadline_s)

    def _ask(self, path: Path, candidate: Candidate, now_s: float) -> Wanted:
        candidate.ask(now_s)
        self._in_region += candidate.distance <= self.region
        return self._send(path, candidate, self._request, now_s)

    def _send(self, path: Path, candidate: Candidate, request: Query, now_s: float) -> Wanted:
        tag = len(self._flights)
        flight = Flight(candidate, path, now_s)
        self._flights.append(flight)
        path.flying[tag] = flight
        return Wanted(tag, candidate.contact, request)

    def _landed(self, tag: int, moment: Moment, outcome: str) -> Flight | None:
        """Take a request out of the air; None if it is not there."""
        flight = self._flights[tag] if 0 <= tag < len(self._flights) else None
        if flight is None or flight.path.flying.pop(tag, None) is None:
            return None
        flight.took_s, flight.outcome = moment.s - flight.began_s, outcome
        return flight

    def _end(self, now_s: float) -> list[Wanted]:
        for path in self._paths:
            path.nearest(now_s)  # for `is_near`
        self._is_done = True
        return []

    def _alive(self, count: int, per_group: int, within: int) -> list[Contact]:
        known = self._known
        alive = sorted(at for at, one in known.items() if one.state == ALIVE and at <= within)
        groups = dict[str, int]()
        candidates = (known[distance] for distance in alive)
        taken = (one.contact for one in candidates if one.takes_place(groups, per_group))
        return list(islice(taken, count))

    def _hop(self, flight: Flight) -> Hop:
        candidate = flight.candidate
        return Hop(
            peer=candidate.contact.peer,
            bits=KEY_BITS - candidate.distance.bit_length(),
            depth=candidate.depth,
            path=self._paths.index(flight.path),
            began_s=flight.began_s - self._began_s,
            took_s=flight.took_s,
            outcome=flight.outcome,
            closer=flight.closer,
            found=flight.found,
        )


def _found_in(answer: Nodes | Providers | Values) -> int:
    """How many records are in an answer."""
    match answer:
        case Providers(provisions):
            return len(provisions)
        case Values(values):
            return len(values)
        case _:
            return 0
