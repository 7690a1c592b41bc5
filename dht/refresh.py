"""When to look where, so that the table stays good without talking for nothing. Pure.

Requests of one node an hour: at most 12 looks, one each `EVERY_S` and only while a bucket heard of
nobody for `IDLE_S`; a look ends when the bucket has `FILL` live entries, some 10 requests, and
every fourth is a whole lookup (30), from which the size of the network is told: 180 at most, and
none where people's lookups keep the buckets fresh. A join costs one lookup (30 to 40) and 8 to 10
requests for each far bucket that lacks entries: about 5 of them in a network of 10,000.
"""

import math
from collections.abc import Iterable

from dht.key import common_bits, key_of
from dht.lookup import Look, Lookup
from dht.messages import Answer, Contact, FindNode, Moment
from dht.state import Chore, State, name_of_peer
from dht.table import K

IDLE_S = 600.0  # a bucket that heard of nobody for so long is worth a look
EVERY_S = 300.0  # between two looks: all ten buckets of 10,000 nodes within the hour
WHOLE_EVERY = 4  # of so many looks one is a whole lookup of a random target: it tells the size
FILL = 8  # a bucket with so many live entries is good: all dead a day later in 1 of 250 at 50 %
FILLS_MAX = 16  # buckets filled at a join: 65,000 nodes; more fill by themselves
TRIES = 64  # names tried for a target inside a bucket, 60 µs: enough for the 5 farthest
NAME_BYTES = 32  # of a random target's name


class Refresh:
    """Which bucket to look into next."""

    def __init__(self, state: State) -> None:
        """Nothing is due before `begin`."""
        self._state = state
        self._looks = 0
        self.ready: list[Chore] = []  # what follows from joining
        self.wake_at = math.inf

    def begin(self, moment: Moment) -> None:
        """Start counting; nodes that start together must not look together."""
        self.wake_at = moment.s + self._state.rng.uniform(0.5, 1.0) * IDLE_S

    def due(self, moment: Moment) -> list[Chore]:
        """Return the look that is due now, if a bucket is idle."""
        if moment.s < self.wake_at:
            return []
        state = self._state
        self.wake_at = moment.s + state.rng.uniform(0.8, 1.2) * EVERY_S
        idle = state.table.idle_buckets(moment.s - IDLE_S)
        if not idle:
            return []
        self._looks += 1
        if self._looks % WHOLE_EVERY == 0:
            return [self._random(moment)]
        index = state.rng.choice(idle)
        return [self.ourselves(moment) if index >= self._near() else self._fill(index, moment)]

    def ourselves(self, moment: Moment) -> Chore:
        """Look for our own key: who is near us, and how dense it is there."""
        return self._whole(name_of_peer(self._state.author.peer), moment)

    def joining(self, seeds: Iterable[Contact], moment: Moment) -> Chore:
        """Look for our own key, from these and the table; then into buckets that lack entries."""
        look = self._whole(name_of_peer(self._state.author.peer), moment, seeds)

        def joined(nearest: list[Contact], at: Moment) -> None:
            look.then(nearest, at)
            self.ready += self._fills(at)

        return Chore(look.operation, joined)

    def _fills(self, moment: Moment) -> list[Chore]:
        """Return looks into all buckets that lack entries: after a join.

        Those of our k nearest lack none: looking for ourselves has met everybody there is.
        """
        counts = [0] * min(self._near(), FILLS_MAX)
        for entry in self._state.table.entries():
            index = common_bits(self._state.key, entry.contact.key)
            if index < len(counts):
                counts[index] += 1
        return [self._fill(i, moment) for i, count in enumerate(counts) if count < FILL]

    def _near(self) -> int:
        """The bucket of our k-th nearest; 0 if we know fewer: every lookup meets all of them."""
        closest = self._state.table.closest(self._state.key, K)
        return common_bits(self._state.key, closest[-1].key) if len(closest) == K else 0

    def _random(self, moment: Moment) -> Chore:
        return self._whole(self._state.rng.randbytes(NAME_BYTES), moment)

    def _whole(self, name: bytes, moment: Moment, seeds: Iterable[Contact] = ()) -> Chore:
        """A whole lookup; what it finds tells how dense the network is there."""
        target = key_of(name)

        def seen(nearest: list[Contact], at: Moment) -> None:
            self._state.size.saw(target, nearest)
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

        return Chore(self._lookup(self._name_in(index), moment, look=look), seen)

    def _lookup(
        self,
        name: bytes,
        moment: Moment,
        *,
        seeds: Iterable[Contact] = (),
        look: Look | None = None,
    ) -> Lookup:
        """Look for a name from whom we know and others; the table knows better where they are."""
        state, target = self._state, key_of(name)
        known = {one.peer: one for one in (*seeds, *state.table.closest(target, K))}
        return Lookup(target, state.author.peer, FindNode(name), known.values(), moment, look=look)

    def _name_in(self, index: int) -> bytes:
        """Return a name whose key is in a bucket: a random one, else the ID of a peer in it.

        Only hashes lead from names to keys, so one for bucket i is found at the 2^(i+1)-th try.
        The last resort, if nobody is in it, is a bucket nearby.
        """
        state = self._state
        for _ in range(TRIES):
            name = state.rng.randbytes(NAME_BYTES)
            if common_bits(state.key, key_of(name)) == index:
                return name
        inside = [
            entry.contact.peer
            for entry in state.table.entries()
            if common_bits(state.key, entry.contact.key) == index
        ]
        return name_of_peer(state.rng.choice(inside)) if inside else name
