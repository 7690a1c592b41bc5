"""The stamps that a replica holds, in time order: counted, cut into ranges, fingerprinted.

A fingerprint is a hash over the stamps of a range, joined, with the nonce of the session before
them. Sums of hashes would be cheaper to keep up to date, but whoever picks the entries can make two
sets with one sum (generalised birthdays); joining costs 20 ns a stamp, and a message asks for one
pass over the set at most.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Protocol

STAMP_BYTES = 40  # hlc (8) and id (32), see crdt/entry.py
PRINT_BYTES = 8  # of a fingerprint or short id: salted per session, nobody prepares for 64 bits
START = b""  # a bound below all stamps
END = b"\xff"  # a bound above all stamps: an hlc has 63 bits
REBUILD_SHARE = 8  # what is added is sorted in with all that is there, if that is up to so many
# times as much: 0.3 µs for each of them
CHUNK = 512  # stamps of a list that was just cut in two: inserting moves 8 kB of pointers at most


class Timeline:
    """A sorted set of stamps, in chunks. What is added is put in order when somebody asks: one by
    one (1 µs each), or, where it is much, all at once. Removing costs about 1 µs at any size; a
    position costs one pass over the chunks (n / 512) after a change, then a binary search.
    """

    def __init__(self, stamps: Iterable[bytes] = ()) -> None:
        self._fresh = list(stamps)  # added, and not in order yet; some may be there already
        self._chunks: list[list[bytes]] = []
        self._firsts: list[bytes] = []
        self._starts: list[int] | None = None  # positions of the firsts; None after a change
        self._count = 0

    def __len__(self) -> int:
        self._settle()
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        self._settle()
        for chunk in self._chunks:
            yield from chunk

    def __reversed__(self) -> Iterator[bytes]:
        self._settle()
        for chunk in reversed(self._chunks):
            yield from reversed(chunk)

    def __contains__(self, stamp: object) -> bool:
        self._settle()
        if not isinstance(stamp, bytes) or not self._chunks:
            return False
        chunk = self._chunks[self._chunk_of(stamp)]
        at = bisect_left(chunk, stamp)
        return at < len(chunk) and chunk[at] == stamp

    def add(self, stamp: bytes) -> None:
        """Put a stamp in; nothing happens if it is there."""
        self._fresh.append(stamp)

    def _settle(self) -> None:
        """Put what is fresh in order."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        if len(fresh) * REBUILD_SHARE < self._count or len(fresh) < 2:
            for stamp in fresh:
                self._put(stamp)
            return
        ordered = list(dict.fromkeys(sorted([*chain.from_iterable(self._chunks), *fresh])))
        self._chunks = [ordered[at : at + CHUNK] for at in range(0, len(ordered), CHUNK)]
        self._firsts = [chunk[0] for chunk in self._chunks]
        self._starts, self._count = None, len(ordered)

    def _put(self, stamp: bytes) -> None:
        if not self._chunks:
            self._chunks, self._firsts = [[]], [stamp]
        index = self._chunk_of(stamp)
        chunk = self._chunks[index]
        at = bisect_left(chunk, stamp)
        if at < len(chunk) and chunk[at] == stamp:
            return
        chunk.insert(at, stamp)
        self._firsts[index] = chunk[0]
        self._count += 1
        self._starts = None
        if len(chunk) > 2 * CHUNK:
            self._chunks[index : index + 1] = [chunk[:CHUNK], chunk[CHUNK:]]
            self._firsts.insert(index + 1, chunk[CHUNK])

    def remove(self, stamp: bytes) -> None:
        """Take a stamp out. Raises KeyError if it is not there."""
        if stamp not in self:
            raise KeyError(stamp)
        index = self._chunk_of(stamp)
        chunk = self._chunks[index]
        del chunk[bisect_left(chunk, stamp)]
        self._count -= 1
        self._starts = None
        if chunk:
            self._firsts[index] = chunk[0]
        else:
            del self._chunks[index], self._firsts[index]

    def position(self, bound: bytes) -> int:
        """How many stamps are below a bound."""
        self._settle()
        if not self._chunks:
            return 0
        if self._starts is None:
            self._starts = [0, *accumulate(map(len, self._chunks))]
        index = self._chunk_of(bound)
        return self._starts[index] + bisect_left(self._chunks[index], bound)

    def count(self, low: bytes, high: bytes) -> int:
        """How many stamps are in [low, high)."""
        return max(0, self.position(high) - self.position(low))

    def between(self, low: bytes, high: bytes, limit: int | None = None) -> list[bytes]:
        """Return the stamps in [low, high), in order; the first `limit` if one is given."""
        self._settle()
        found: list[bytes] = []
        if not self._chunks or low >= high:
            return found
        for index in range(self._chunk_of(low), len(self._chunks)):
            if self._firsts[index] >= high or (limit is not None and len(found) >= limit):
                break
            chunk = self._chunks[index]
            found += chunk[bisect_left(chunk, low) : bisect_left(chunk, high)]
        return found if limit is None else found[:limit]

    def _chunk_of(self, bound: bytes) -> int:
        return max(0, bisect_right(self._firsts, bound) - 1)


class Ordered(Protocol):
    """Stamps in order, of which ranges can be asked."""

    def between(self, low: bytes, high: bytes, limit: int | None = None) -> list[bytes]:
        """Return the stamps in [low, high)."""
        ...


def print_of(nonce: bytes, stamps: Sequence[bytes]) -> bytes:
    """Fingerprint a range: 8 bytes; equal on two replicas if they hold the same there."""
    return hashlib.sha256(nonce + b"".join(stamps)).digest()[:PRINT_BYTES]


def prints_of(nonce: bytes, stamps: Ordered, bounds: Sequence[bytes]) -> bytes:
    """Fingerprint the ranges between neighbouring bounds; joined."""
    return b"".join(print_of(nonce, stamps.between(low, high)) for low, high in pairwise(bounds))


def short(nonce: bytes, stamp: bytes) -> bytes:
    """Name an entry within a session: 8 bytes."""
    return hashlib.sha256(nonce + stamp[8:]).digest()[:PRINT_BYTES]


def separator(below: bytes, above: bytes) -> bytes:
    """Return the shortest bound with `below` under it and `above` not."""
    for length in range(1, len(above)):
        if above[:length] > below:
            return above[:length]
    return above


def cut_evenly(stamps: Sequence[bytes], parts: int) -> list[bytes]:
    """Return up to `parts - 1` bounds that cut the stamps into parts of one size, within one."""
    ats = sorted({len(stamps) * part // parts for part in range(1, parts)} - {0})
    return [separator(stamps[at - 1], stamps[at]) for at in ats]


def cut_by_age(stamps: Sequence[bytes], parts: int, newest: int) -> list[bytes]:
    """Return bounds that cut finer the newer it gets: `newest` stamps, as many again, then twice as
    many, and so on; and `parts` parts of one size of what is older. What differs is mostly new.
    """
    ats: list[int] = []  # from the newest back
    rest, size = len(stamps), newest
    while size < (rest - size) // parts:
        rest -= size
        ats.append(rest)
        size *= 2 if len(ats) > 1 else 1
    newer = [separator(stamps[at - 1], stamps[at]) for at in reversed(ats)]
    return cut_evenly(stamps[:rest], parts) + newer
