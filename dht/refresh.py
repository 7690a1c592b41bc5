"""When to look where, so that the table stays good without talking for nothing. Pure.

Requests of one node an hour: at most 12 looks into buckets, one each `EVERY_S`, and only while a
bucket heard of nobody for `IDLE_S` and few of its entries were there lately (so twice an hour and
bucket at most); such a look takes some 10 requests. One whole lookup of a random target (35), from
which the size of the network is told, and one of ourselves (35) for who holds records. So 190 at
most, 150 in an idle network of 10,000, and 70 where people's lookups keep the buckets fresh. A join
costs one lookup (40) and as much as a look for each far bucket that lacks entries: about 5 of them
in a network of 10,000, so 90; and in the minutes after it, two whole lookups (70). Reckoned, not
measured; checks, holders' pings and handing over come on top. Measured before those two, at 2,500
nodes with sessions of 30 min: 338 in all, of which 140 checks.
"""

import math
from collections import Counter
from collections.abc import Iterable

from dht.key import common_bits, key_of, name_of_peer
from dht.lookup import Look, Lookup
from dht.messages import Answer, Contact, FindNode, Moment
from dht.state import Chore, State
from dht.table import K

IDLE_S = 600.0  # a bucket that heard of nobody for so long is worth a look
LATELY_S = 1800.0  # entries that answered since then are probably there, most of them
ENOUGH = 5  # of these in a bucket: lookups get on with one that lives
EVERY_S = 300.0  # between two looks: all ten buckets of 10,000 nodes within the hour
WHOLE_S = 3600.0  # between two whole lookups of random targets: they tell the size
EARLY_S = 120.0  # between those of a newcomer, until it has
LOOKS = 3  # from one, 21 % of newcomers think the size 30 % or more wrong; from three, 6 %
FILL = 6  # live entries that a look into a bucket is to find
FILL_ALPHA = 3  # its requests in flight: nobody waits for it, so none shall be in vain
FILLS_MAX = 16  # buckets filled at a join: 65,000 nodes; more fill by themselves
TRIES = 64  # names tried for a target inside a bucket, 60 µs: enough for the 5 farthest
NAME_BYTES = 32  # of a random target's name


class Refresh:
    """Which bucket to look into next."""

    def __init__(self, state: State) -> None:
        """Nothing is due before `begin`."""
        self._state = state
        self.ready: list[Chore] = []  # what follows from joining
        self._look_at = self._whole_at = math.inf

    @property
    def wake_at(self) -> float:
        """When a look is due next (Moment.s)."""
        return min(self._look_at, self._whole_at)

    def begin(self, moment: Moment) -> None:
        """Start counting; nodes that start together must not look together."""
        uniform = self._state.rng.uniform
        self._look_at = moment.s + uniform(0.5, 1.0) * IDLE_S
        self._whole_at = moment.s + uniform(0.2, 1.0) * WHOLE_S

    def due(self, moment: Moment) -> list[Chore]:
        """Return the looks that are due now, where they are needed."""
        chores = list[Chore]()
        if moment.s >= self._whole_at:
            self._whole_at = moment.s + self._state.rng.uniform(0.8, 1.2) * self._whole_s(1)
            chores.append(self._whole(self._state.rng.randbytes(NAME_BYTES), moment))
        if moment.s >= self._look_at:
            self._look_at = moment.s + self._state.rng.uniform(0.8, 1.2) * EVERY_S
            chores += self._look(moment)
        return chores

    def _look(self, moment: Moment) -> list[Chore]:
        """Look into one bucket that needs it."""
        state = self._state
        self._see_who_is_near(moment)
        idle = state.table.idle_buckets(moment.s - IDLE_S)
        if not idle:
            return []
        counts = self._counts(moment.s - LATELY_S)
        poor = [index for index in idle if counts[index] < ENOUGH]
        if not poor:
            return []
        index = state.rng.choice(poor)
        return [self.ourselves(moment) if index >= self._near() else self._fill(index, moment)]

    def _see_who_is_near(self, moment: Moment) -> None:
        """Estimate the size from our own neighbours, whom we know without asking anybody."""
        table, since_s = self._state.table, moment.s - LATELY_S
        nearest = table.closest(self._state.key, 2 * K)
        entries = [entry for one in nearest if (entry := table.entry(one.peer))]
        live = [one.contact for one in entries if not one.failures and one.seen_s >= since_s]
        if len(live) >= K:
            self._state.size.saw(self._state.key, live[:K])

    def ourselves(self, moment: Moment) -> Chore:
        """Look for our own key: who is near us, and how dense it is there."""
        return self._whole(name_of_peer(self._state.author.peer), moment)

    def joining(self, seeds: Iterable[Contact], moment: Moment) -> Chore:
        """Look for our own key, from these and the table; then into buckets that lack entries."""
        look = self._whole(name_of_peer(self._state.author.peer), moment, seeds)

        def joined(nearest: list[Contact], at: Moment) -> None:
            look.then(nearest, at)
            self.ready += self._fills(at)
            soon_s = at.s + self._state.rng.uniform(0.5, 1.0) * self._whole_s(0)
            self._whole_at = min(self._whole_at, soon_s)

        return Chore(look.operation, joined)

    def _whole_s(self, begun: int) -> float:
        """Until the next whole look: soon, if we know little of how large the network is."""
        is_small = len(self._state.table) < K  # then we know exactly
        return WHOLE_S if is_small or self._state.size.looks + begun >= LOOKS else EARLY_S

    def _fills(self, moment: Moment) -> list[Chore]:
        """Return looks into all buckets that lack entries: after a join.

        Those of our k nearest lack none: looking for ourselves has met everybody there is.
        """
        counts = self._counts(-math.inf)
        far = range(min(self._near(), FILLS_MAX))
        return [self._fill(index, moment) for index in far if counts[index] < ENOUGH]

    def _counts(self, since_s: float) -> Counter[int]:
        """Return how many entries of each bucket answered since then."""
        own = self._state.key
        entries = self._state.table.entries()
        seen = (entry.contact.key for entry in entries if entry.seen_s >= since_s)
        return Counter(common_bits(own, key) for key in seen)

    def _near(self) -> int:
        """The bucket of our k-th nearest; 0 if we know fewer: every lookup meets all of them."""
        closest = self._state.table.closest(self._state.key, K)
        return common_bits(self._state.key, closest[-1].key) if len(closest) == K else 0

    def _whole(self, name: bytes, moment: Moment, seeds: Iterable[Contact] = ()) -> Chore:
        """A whole lookup; what it finds tells how dense the network is there."""
        target = key_of(name)

        def seen(nearest: list[Contact], at: Moment) -> None:
            if len(nearest) >= min(K, len(self._state.table)):
                self._state.size.saw(target, nearest)
            else:  # it ended too early: what we know tells more
                self._see_who_is_near(at)
            if target != self._state.key:
                self._state.table.refreshed(common_bits(self._state.key, target), at.s)

        return Chore(self._lookup(name, moment, seeds=seeds), seen)

    def _fill(self, index: int, moment: Moment) -> Chore:
        """A look into one bucket, until enough of it have answered."""
        state, live = self._state, 0

        def look(contact: Contact, _: Answer) -> bool:
            nonlocal live
            live += common_bits(state.key, contact.key) == index
            return live >= FILL

        def seen(_: list[Contact], at: Moment) -> None:
            state.table.refreshed(index, at.s)

        name = self.name_in(index)
        return Chore(self._lookup(name, moment, need=FILL, look=look, alpha=FILL_ALPHA), seen)

    def _lookup(
        self,
        name: bytes,
        moment: Moment,
        *,
        seeds: Iterable[Contact] = (),
        need: int = K,
        look: Look | None = None,
        alpha: int = 0,
    ) -> Lookup:
        """Look for a name from whom we know and others; the table knows better where they are."""
        state, target = self._state, key_of(name)
        known = {one.peer: one for one in (*seeds, *state.table.closest(target, K))}
        return Lookup(
            target,
            state.author.peer,
            FindNode(name),
            known.values(),
            moment,
            need=need,
            look=look,
            alpha=alpha,
        )

    def name_in(self, index: int) -> bytes:
        """Return a name whose key is in a bucket: a random one, else the ID of a peer in it.

        Only hashes lead from names to keys, so one for bucket i is found at the 2^(i+1)-th try.
        The last resort, if nobody is in it, is a bucket nearby.
        """
        state = self._state
        name = state.rng.randbytes(NAME_BYTES)
        for _ in range(TRIES):
            if common_bits(state.key, key_of(name)) == index:
                return name
            name = state.rng.randbytes(NAME_BYTES)
        inside = [
            entry.contact.peer
            for entry in state.table.entries()
            if common_bits(state.key, entry.contact.key) == index
        ]
        return name_of_peer(state.rng.choice(inside)) if inside else name
