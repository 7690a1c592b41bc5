"""Whom a lookup may ask: the candidates of one path, nearest first; who of them is next. Pure."""

from bisect import bisect_left, bisect_right

from dht.diversity import PER_GROUP, UNPLACED, group_of
from dht.messages import Contact
from dht.operation import SLOW_S

PLACES_MAX = 24  # in flight when many fail: 70 % dead leave 7 of them who answer
CANDIDATES_MAX = 1000  # of a path; the farthest are forgotten. 50 answers of Sybils fill them
REGION_PER_GROUP = 10  # of an address group within the region: as many as a table holds
GROUPS_MAX = 3  # of one contact: IPv4, IPv6 and one to spare. Who claims more shares one group
_MANY = ("many",)

FRESH, FLYING, ALIVE, DEAD = range(4)


class Candidate:
    """A contact in a lookup, shared by all paths that know it."""

    __slots__ = (
        "contact", "depth", "distance", "groups", "is_again", "newer", "slow_at_s", "state",
    )  # fmt: skip

    def __init__(self, contact: Contact, distance: int, depth: int) -> None:
        self.contact, self.distance = contact, distance
        self.depth = depth  # answers that led to it
        self.state = FRESH
        self.slow_at_s = 0.0  # when it was asked long ago
        self.groups: tuple[str, ...] | None = None  # not known yet: few candidates come so far
        self.newer: Contact | None = None  # where it is to be asked if it does not answer
        self.is_again = False

    def ask(self, now_s: float) -> None:
        """It is asked now."""
        self.state, self.slow_at_s = FLYING, now_s + SLOW_S

    def hear(self, contact: Contact) -> None:
        """Somebody has a newer word of where it is: who was told an old one must not lose it."""
        if self.state == FRESH:
            self.contact, self.groups = contact, None
        elif self.state != ALIVE and not self.is_again and contact.addrs != self.contact.addrs:
            self.newer = contact
            if self.state == DEAD:
                self._revive(contact)

    def fail(self) -> None:
        """It did not answer; once it is asked again where a newer word says that it is."""
        if self.state == FLYING:  # else it has answered another request of ours
            self.state = DEAD
            if self.newer is not None:
                self._revive(self.newer)

    def _revive(self, contact: Contact) -> None:
        self.contact, self.groups, self.newer = contact, None, None
        self.state, self.is_again = FRESH, True

    def takes_place(self, taken: dict[str, int], per_group: int) -> bool:
        """Count it in its address groups; False if one of them is full."""
        groups = self.groups
        if groups is None:
            groups = self.groups = groups_of(self.contact)
        return take_place(groups, taken, per_group)


class Flight:
    """One request and what came of it."""

    __slots__ = (
        "began_s", "candidate", "closer", "found", "outcome", "path", "slow_at_s", "took_s",
    )  # fmt: skip

    def __init__(self, candidate: Candidate, path: "Path", now_s: float) -> None:
        self.candidate, self.path = candidate, path
        self.began_s, self.slow_at_s = now_s, now_s + SLOW_S
        self.took_s: float | None = None
        self.outcome = "flying"
        self.closer = self.found = 0


class Path:
    """One of the disjoint paths: its candidates, and what it has in flight.

    alpha: requests in flight while none fails. need: so many of the nearest must have answered.
    """

    __slots__ = ("_candidates", "_distances", "_need", "alpha", "edge", "failures", "flying")

    def __init__(self, alpha: int, need: int) -> None:
        self.alpha, self._need = alpha, need
        self._distances = list[int]()
        self._candidates = list[Candidate]()  # at the same places
        self.flying = dict[int, Flight]()
        self.failures = 0
        self.edge = 0  # distance of the farthest of the nearest, as of the last look

    def add(self, candidate: Candidate) -> None:
        """Take a candidate in, if it is not there."""
        distances, distance = self._distances, candidate.distance
        at = bisect_left(distances, distance)
        if at < len(distances) and distances[at] == distance:
            return
        distances.insert(at, distance)
        self._candidates.insert(at, candidate)
        if len(distances) > CANDIDATES_MAX:
            del distances[-1], self._candidates[-1]

    def nearest(self, now_s: float) -> tuple[list[Candidate], bool]:
        """Return whom to ask of the nearest, and whether the nearest have all answered.

        At most `PER_GROUP` of an address group count, and nobody who failed. Who is slow keeps the
        path from being settled, but not the next nearest from being asked.
        """
        need = self._need
        groups = dict[str, int]()
        fresh, is_settled = list[Candidate](), True
        quick = 0
        for candidate in self._candidates:
            state = candidate.state
            if state == DEAD:
                continue
            if candidate.groups != () and not candidate.takes_place(groups, PER_GROUP):
                continue
            if state == FLYING:
                is_settled = False
                if candidate.slow_at_s <= now_s:
                    continue
            elif state == FRESH:
                fresh.append(candidate)
                is_settled = False
            quick += 1
            if quick == need:
                self.edge = candidate.distance
                return fresh, is_settled
        self.edge = self._distances[-1] if self._distances else 0
        return fresh, is_settled

    def unasked_within(self, region: int) -> list[Candidate]:
        """Return those within a distance who were not asked, nearest first.

        At most `REGION_PER_GROUP` of an address group are asked there.
        """
        within = self._candidates[: bisect_right(self._distances, region)]
        if all(candidate.state != FRESH for candidate in within):
            return []  # soon told, most of the time
        groups = dict[str, int]()
        alive = (candidate for candidate in within if candidate.state != DEAD)
        inside = [one for one in alive if one.takes_place(groups, REGION_PER_GROUP)]
        return [candidate for candidate in inside if candidate.state == FRESH]

    def places(self, now_s: float) -> int:
        """Return how many more may fly: a failure makes one place more, who is slow takes none."""
        busy = sum(flight.slow_at_s > now_s for flight in self.flying.values())
        return max(0, min(self.alpha + self.failures, PLACES_MAX) - busy)


def take_place(groups: tuple[str, ...], taken: dict[str, int], per_group: int) -> bool:
    """Count one in its address groups; False if one of them is full."""
    for group in groups:
        if taken.get(group, 0) >= per_group:
            return False
    for group in groups:
        taken[group] = taken.get(group, 0) + 1
    return True


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
