"""Who lives where in a part of the key space, put together from looks at some of its keys. Pure.

A look at a key tells its k nearest. So it tells everybody in the largest aligned block around that
key which reaches no farther than the k-th: there the atlas is complete. The k nearest of a key are
exact if the smallest block that holds them all is.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from dht.candidates import REGION_PER_GROUP, groups_of, take_place
from dht.diversity import PER_GROUP
from dht.key import KEY_BITS, SPACE, Key
from dht.messages import Contact
from dht.table import K

LEARN_MAX = 2 * K  # contacts taken from a look: the farther ones are told by looks beside them
SERVERS = 25  # expected in a region: k and the slack of `dht.size`
THIN = 2.5  # so many times fewer: 5 where 12.5 should be, once in 200; of 20 % liars alone, mostly
REGION_MAX = 200  # holders of a key within the region, as in a lookup


class Atlas:
    """Contacts by key, and the blocks in which they are complete."""

    def __init__(self, region: int) -> None:
        """region: who lives within this distance of a key belongs to its close set anyway."""
        self._region = region
        self._bits = max(0, region.bit_length() - 1)  # of the largest block that one look shows
        self._keys = list[int]()  # sorted
        self._contacts = dict[int, Contact]()
        self._groups = dict[int, tuple[str, ...]]()
        self._dead = set[int]()
        self._guess = KEY_BITS  # bits of the block that was looked through last
        self._lows = list[int]()  # complete intervals, disjoint and sorted: the first key of each
        self._highs = list[int]()  # and the first key after it

    def learn(self, target: Key, nearest: Sequence[Contact]) -> None:
        """A look at `target` found these, nearest first, and no nearer ones."""
        known = nearest[:LEARN_MAX]
        for contact in known:
            key = contact.key
            if key not in self._contacts and key not in self._dead:
                self._keys.insert(bisect_left(self._keys, key), key)
                self._contacts[key], self._groups[key] = contact, groups_of(contact)
        bits = self._seen_bits(target, known)
        self._complete(target >> bits << bits, 1 << bits)

    def is_thin(self, target: Key, nearest: Sequence[Contact]) -> bool:
        """Whether far fewer than chance would put there are in the block that a look shows."""
        bits = self._seen_bits(target, nearest)
        count = sum((contact.key ^ target) >> bits == 0 for contact in nearest)
        expected = min(SERVERS, SERVERS * (1 << bits) / (self._region + 1))
        return count * THIN < expected and self._region < SPACE - 1

    def lose(self, contact: Contact) -> None:
        """It did not answer: somebody else belongs in its place."""
        self._dead.add(contact.key)
        if self._contacts.pop(contact.key, None) is not None:
            del self._keys[bisect_left(self._keys, contact.key)]

    def complete_until(self, key: int) -> int:
        """Return the first key at or after this one at which it is not known to be complete."""
        at = bisect_right(self._lows, key) - 1
        return max(key, self._highs[at]) if at >= 0 else key

    def is_exact(self, key: Key) -> bool:
        """Whether the k nearest of a key are known, and nobody nearer can be missing."""
        nearest = self._nearest(key)
        farthest = nearest[K - 1] if len(nearest) >= K else SPACE - 1
        bits = farthest.bit_length()
        low = key >> bits << bits
        return self.complete_until(low) >= low + (1 << bits)

    def close_set(self, key: Key) -> list[Contact]:
        """Return who should hold a record of this key: its k nearest and its region."""
        chosen = list[Contact]()
        near, wide = dict[str, int](), dict[str, int]()
        count = 0
        for distance in self._nearest(key, self._region):
            its = self._groups[distance ^ key]
            is_in = count < K and take_place(its, near, PER_GROUP)
            count += is_in
            if distance <= self._region and len(chosen) < REGION_MAX:
                is_in = take_place(its, wide, REGION_PER_GROUP) or is_in
            if is_in:
                chosen.append(self._contacts[distance ^ key])
        return chosen

    def _nearest(self, key: Key, within: int = 0) -> list[int]:
        """Return distances, sorted: all within one, and twice k if there are as many."""
        least = within.bit_length()
        bits = max(least, self._guess)
        first, last = self._block(key, bits)
        while last - first < LEARN_MAX and bits < KEY_BITS:
            bits += 1
            first, last = self._block(key, bits)
        while bits > least:
            inner = self._block(key, bits - 1)
            if inner[1] - inner[0] < LEARN_MAX:
                break
            bits, (first, last) = bits - 1, inner
        self._guess = bits
        return sorted(one ^ key for one in self._keys[first:last])

    def _block(self, key: Key, bits: int) -> tuple[int, int]:
        """Return where in `_keys` those are that differ from a key in the last `bits` bits only."""
        low = key >> bits << bits
        return bisect_left(self._keys, low), bisect_left(self._keys, low + (1 << bits))

    def _seen_bits(self, target: Key, nearest: Sequence[Contact]) -> int:
        if len(nearest) < K:
            return KEY_BITS
        farthest = nearest[K - 1].key ^ target
        return max(0, min(farthest.bit_length() - 1, self._bits))

    def _complete(self, low: int, size: int) -> None:
        """Add an interval; those that touch become one."""
        high = low + size
        first = bisect_left(self._highs, low)
        last = bisect_right(self._lows, high)
        if first < last:
            low, high = min(low, self._lows[first]), max(high, self._highs[last - 1])
        self._lows[first:last] = [low]
        self._highs[first:last] = [high]
