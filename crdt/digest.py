"""What a replica holds, as sums over a tree of hashes that two replicas can compare.

A node of the tree is a prefix of a slot (hex digits). Its sum adds up the names of all entries
below it, modulo 2**256, so that adding and removing costs a few additions. Levels above
`CACHED_DIGITS` keep their sum; below, the few entries of a bucket are added on demand.
"""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

CACHED_DIGITS = 3  # 4,096 buckets: about 25 entries each at 100,000
FINGERPRINT_BYTES = 16
_MODULUS = 2**256
HEX = "0123456789abcdef"


class Held(NamedTuple):
    """One entry as the digest knows it."""

    slot: str
    hlc: int
    id: bytes


@dataclass
class Sum:
    """A multiset of names, order does not matter."""

    total: int = 0
    count: int = 0

    def change(self, id: bytes, *, by: int) -> None:
        """Add (`by=1`) or remove (`by=-1`) a name."""
        self.total = (self.total + by * int.from_bytes(id)) % _MODULUS
        self.count += by

    def root(self) -> bytes:
        """32 bytes: equal sums, equal roots."""
        return hashlib.sha256(self.total.to_bytes(32) + self.count.to_bytes(8)).digest()


@dataclass
class Digest:
    """The tree of sums over everything a replica holds."""

    _sums: dict[str, Sum] = field(default_factory=dict[str, Sum])
    _buckets: dict[str, dict[str, Held]] = field(default_factory=dict[str, dict[str, Held]])

    def put(self, held: Held) -> None:
        """Set what a slot holds."""
        self.remove(held.slot)
        self._buckets.setdefault(held.slot[:CACHED_DIGITS], {})[held.slot] = held
        self._change(held, by=1)

    def remove(self, slot: str) -> None:
        """Empty a slot; nothing happens if it is empty."""
        bucket = self._buckets.get(slot[:CACHED_DIGITS], {})
        held = bucket.pop(slot, None)
        if held is None:
            return
        if not bucket:
            del self._buckets[slot[:CACHED_DIGITS]]
        self._change(held, by=-1)

    def fingerprint(self, prefix: str) -> bytes:
        """16 bytes; equal on two replicas if they hold the same entries below `prefix`."""
        return self._sum(prefix).root()[:FINGERPRINT_BYTES]

    def children(self, prefix: str) -> list[bytes]:
        """Return the fingerprints of the 16 prefixes one digit longer."""
        return [self.fingerprint(prefix + digit) for digit in HEX]

    def count(self, prefix: str = "") -> int:
        """How many entries are below a prefix."""
        return self._sum(prefix).count

    def items(self, prefix: str) -> list[Held]:
        """Return what is below a prefix, in slot order. Cost: its entries, or one bucket."""
        if len(prefix) >= CACHED_DIGITS:
            bucket = self._buckets.get(prefix[:CACHED_DIGITS], {})
            return sorted(held for slot, held in bucket.items() if slot.startswith(prefix))
        below = (prefix + digit for digit in HEX if prefix + digit in self._sums)
        return [held for longer in below for held in self.items(longer)]

    def _sum(self, prefix: str) -> Sum:
        if len(prefix) <= CACHED_DIGITS:
            return self._sums.get(prefix, Sum())
        found = Sum()
        for held in self.items(prefix):
            found.change(held.id, by=1)
        return found

    def _change(self, held: Held, *, by: int) -> None:
        for digits in range(CACHED_DIGITS + 1):
            prefix = held.slot[:digits]
            found = self._sums.setdefault(prefix, Sum())
            found.change(held.id, by=by)
            if not found.count:
                del self._sums[prefix]
