"""The truth about a simulated swarm, sorted by key: who is nearest to what, and steady tables."""

import bisect
import random
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from dht.key import KEY_BITS, Key


class _Placed(Protocol):
    @property
    def key(self) -> Key: ...


Placed = TypeVar("Placed", bound=_Placed)


class Ring(Generic[Placed]):
    """Things with keys, in the order of their keys."""

    def __init__(self, placed: Sequence[Placed] = ()) -> None:
        self._all = sorted(placed, key=lambda one: one.key)
        self._keys = [one.key for one in self._all]

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> Placed:
        return self._all[index]

    def __iter__(self) -> Iterator[Placed]:
        return iter(self._all)

    def add(self, one: Placed) -> None:
        """Put it in."""
        at = bisect.bisect_left(self._keys, one.key)
        self._keys.insert(at, one.key)
        self._all.insert(at, one)

    def remove(self, one: Placed) -> None:
        """Take it out, if it is there."""
        at = bisect.bisect_left(self._keys, one.key)
        if at < len(self._keys) and self._keys[at] == one.key:
            del self._keys[at], self._all[at]

    def nearest(self, key: Key, count: int) -> list[Placed]:
        """Return the `count` nearest to a key, nearest first."""
        low, high = 0, len(self._all)
        for bits in range(1, KEY_BITS):
            inner = self._range(key, bits, low, high)
            if inner[1] - inner[0] < count:
                break
            low, high = inner
        return sorted(self._all[low:high], key=lambda one: one.key ^ key)[:count]

    def bucket(self, key: Key, bits: int, count: int, rng: random.Random) -> list[Placed]:
        """Return `count` by chance of those who share exactly so many bits with a key, or all."""
        low, high = self._range(Key(key ^ (1 << (KEY_BITS - bits - 1))), bits + 1, 0, len(self))
        if high - low <= count:
            return self._all[low:high]
        return [self._all[at] for at in rng.sample(range(low, high), count)]

    def buckets(self, key: Key, count: int, rng: random.Random) -> Iterator[list[Placed]]:
        """Yield what a table of this key holds after a long time, the far buckets first."""
        for bits in range(KEY_BITS):
            low, high = self._range(key, bits, 0, len(self))
            if high - low <= 1:
                return
            yield self.bucket(key, bits, count, rng)

    def _range(self, key: Key, bits: int, low: int, high: int) -> tuple[int, int]:
        """Return from where to where keys share at least the first `bits` bits with a key."""
        free = KEY_BITS - bits
        first = key >> free << free
        keys = self._keys
        return (
            bisect.bisect_left(keys, first, low, high),
            bisect.bisect_left(keys, first + (1 << free), low, high),
        )
