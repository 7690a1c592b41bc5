"""The records that we hold for others, with a bound on each count. Pure.

Whatever is refused is refused with a reason, and never stored. Where there are more records than
places, two rules decide, and neither asks who came first or who comes most often:

* of one name, and of one owner, those stay whose rank is lowest: a hash of name and owner under a
  secret of this process, so nobody can choose a peer ID or a name that ranks well here. Each of the
  20 nodes that hold a record has another secret.
* of all, whoever takes most space loses its worst-ranked record. So somebody with a few identities
  fills no more than those few shares, however many records it sends.

The owner of a record is who signed it; of one that nobody signed, who brought it.
"""

import bisect
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from dht.key import KEY_BITS, Key, key_of
from dht.messages import Moment, Provision, Value
from dht.records import LIFE_MAX_MS, NAME_MAX, why_not
from dht.values import is_newer
from wire.ids import PeerId

PROVIDERS_MAX = 64  # of one name: more would not fit an answer, and nobody needs them
PROVISIONS_OF_PEER_MAX = 20_000  # by one provider: all it has, in a swarm where all hold everything
PROVISION_BYTES_MAX = 32 * 1024 * 1024  # of all provider records: about 40,000
AUTHORS_MAX = 64  # of one `/shoal/multi` name
VALUES_OF_NAME_BYTES = 64 * 1024  # of one `/shoal/multi` name: what fits an answer
VALUES_OF_AUTHOR_MAX = 1_000
VALUE_BYTES_MAX = 16 * 1024 * 1024  # of all values
RECORD_BYTES = 600  # what a record takes besides its bytes: objects, places in the indexes
EXPIRED_MAX = 500  # that are thrown away at a time, 20 ms: the daemon does other things meanwhile

# Why a record is not kept, beside those of `why_not`; few and fixed, so that they can be counted.
UNSIGNED = "unsigned"
OVERSIZED = "oversized"
STALE = "stale"
NO_ROOM = "no room"

_ANYWHERE = Key(0)

R = TypeVar("R", Provision, Value)


class Holding:
    """name -> who -> its record. `secret`: 16 to 64 random bytes that others do not learn."""

    __slots__ = ("_provisions", "_values")

    def __init__(self, secret: bytes) -> None:
        self._provisions = _Shelf[Provision](
            _Bounds(
                PROVIDERS_MAX, PROVISION_BYTES_MAX, PROVISIONS_OF_PEER_MAX, PROVISION_BYTES_MAX
            ),
            secret,
            lambda it: len(it.name) + len(it.sealed) + sum(map(len, it.addrs)),
        )
        self._values = _Shelf[Value](
            _Bounds(AUTHORS_MAX, VALUES_OF_NAME_BYTES, VALUES_OF_AUTHOR_MAX, VALUE_BYTES_MAX),
            secret,
            lambda it: len(it.name) + len(it.sealed),
        )

    def add_provision(
        self, provision: Provision, sender: PeerId, moment: Moment, *, is_public: bool
    ) -> str:
        """Keep a provider record. Returns "" if it is kept (or was already), else the reason.

        Unsigned ones only in a public DHT, from the provider itself; they live a day from now.
        """
        if not provision.sealed:
            if not is_public or sender != provision.peer:
                return UNSIGNED
            provision = replace(provision, expires_ms=moment.wall_ms + LIFE_MAX_MS)
        if not 0 < len(provision.name) <= NAME_MAX:
            return OVERSIZED
        reason = why_not(provision, moment.wall_ms)
        if reason:
            return reason
        self._provisions.expire(moment.wall_ms)
        known = self._provisions.get(provision.name, provision.peer)
        if known is not None and not _is_news(provision, known):
            is_stale = provision.sealed and known.expires_ms > provision.expires_ms
            return STALE if is_stale else ""
        is_kept = self._provisions.put(provision, provision.peer, provision.peer, moment.s)
        return "" if is_kept else NO_ROOM

    def add_value(self, value: Value, sender: PeerId, moment: Moment) -> str:
        """Keep a value. Returns "" if it is kept (or was already), else the reason."""
        if not value.sealed:
            return UNSIGNED
        reason = why_not(value, moment.wall_ms)
        if reason:
            return reason
        self._values.expire(moment.wall_ms)
        if value.author is None:
            value = replace(value, expires_ms=moment.wall_ms + LIFE_MAX_MS)
            return "" if self._values.put(value, "", sender, moment.s) else NO_ROOM
        known = self._values.get(value.name, value.author)
        if known is not None and not is_newer(value, known):
            return "" if known.sealed == value.sealed else STALE
        return "" if self._values.put(value, value.author, value.author, moment.s) else NO_ROOM

    def provisions(self, name: bytes, now_ms: int) -> tuple[Provision, ...]:
        """Return the live provider records of a name, in an order that nobody can choose."""
        return self._provisions.live(name, now_ms)

    def values(self, name: bytes, now_ms: int) -> tuple[Value, ...]:
        """Return the live values of a name: one, or one of each author of a `/shoal/multi`."""
        return self._values.live(name, now_ms)

    def signed(
        self, name: bytes, now_ms: int, *, before_s: float = math.inf
    ) -> tuple[Provision | Value, ...]:
        """Return what may be handed over of a name: live, signed, and held since before `before_s`.

        Not values under `/pk`: handed around they would never expire.
        """
        provisions = self._provisions.live(name, now_ms, before_s)
        values = self._values.live(name, now_ms, before_s)
        return tuple(it for it in provisions if it.sealed) + tuple(it for it in values if it.author)

    def since_s(self, name: bytes) -> float:
        """Return when the first of the records that we hold under a name came (Moment.s)."""
        return min(self._provisions.since_s(name), self._values.since_s(name))

    def names(self, near: Key = _ANYWHERE, bits: int = 0) -> list[tuple[Key, bytes]]:
        """Return the names that we hold records of, sorted by key.

        near, bits: only those whose key begins with the same bits as `near`. Cost: what is found.
        """
        found = self._provisions.names(near, bits)
        others = self._values.names(near, bits)
        return sorted({*found, *others}) if others else found

    def expire(self, now_ms: int) -> None:
        """Throw away what has expired, a bounded number at a time; none of it is ever returned."""
        self._provisions.expire(now_ms)
        self._values.expire(now_ms)

    def __len__(self) -> int:
        return len(self._provisions) + len(self._values)


def _is_news(provision: Provision, known: Provision) -> bool:
    """Whether it takes the other's place: a signed one, which can be handed over, before others."""
    if bool(provision.sealed) != bool(known.sealed):
        return bool(provision.sealed)
    return provision.expires_ms > known.expires_ms


@dataclass(frozen=True, slots=True)
class _Bounds:
    of_name: int
    of_name_bytes: int
    of_owner: int
    in_all_bytes: int  # each record with RECORD_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class _Held(Generic[R]):
    record: R
    author: str  # tells it from others of the same name
    owner: PeerId  # whose space it takes
    rank: int  # among those of a name, and of an owner
    size: int  # bytes
    since_s: float  # Moment.s at which this version of it came


class _Shelf(Generic[R]):
    """Records by name and author, and the indexes that keep each bound cheap to hold."""

    __slots__ = (
        "_bounds",
        "_by_expiry",
        "_by_key",
        "_by_load",
        "_by_name",
        "_by_owner",
        "_loads",
        "_secret",
        "_size",
        "_size_of",
    )

    def __init__(self, bounds: _Bounds, secret: bytes, size_of: Callable[[R], int]) -> None:
        self._bounds = bounds
        self._secret = secret
        self._size_of: Callable[[R], int] = size_of
        self._size = 0
        self._by_name: dict[bytes, dict[str, _Held[R]]] = {}
        self._by_owner: dict[PeerId, list[tuple[int, bytes, str]]] = {}  # sorted by rank
        self._loads: dict[PeerId, int] = {}  # bytes
        # Sorted lists: at 40,000 entries a place in one costs 10 µs to take, and the ends nothing.
        self._by_load: list[tuple[int, int, PeerId]] = []  # load, secret rank, owner
        self._by_key: list[tuple[Key, bytes]] = []
        self._by_expiry: list[tuple[int, bytes, str]] = []

    def get(self, name: bytes, author: str) -> R | None:
        held = self._by_name.get(name, {}).get(author)
        return None if held is None else held.record

    def live(self, name: bytes, now_ms: int, before_s: float = math.inf) -> tuple[R, ...]:
        found = sorted(self._by_name.get(name, {}).values(), key=_rank_of)
        return tuple(
            it.record for it in found if it.record.expires_ms > now_ms and it.since_s < before_s
        )

    def since_s(self, name: bytes) -> float:
        return min((it.since_s for it in self._by_name.get(name, {}).values()), default=math.inf)

    def names(self, near: Key, bits: int) -> list[tuple[Key, bytes]]:
        free = KEY_BITS - bits
        first = near >> free << free
        low = bisect.bisect_left(self._by_key, (Key(first), b""))
        return self._by_key[low : bisect.bisect_left(self._by_key, (Key(first + (1 << free)), b""))]

    def put(self, record: R, author: str, owner: PeerId, now_s: float) -> bool:
        """Take a record in, instead of the one with this name and author; False: no room.

        Others that rank worse make room for it. Without room of its own it takes nobody's.
        """
        rank = self._rank(record.name + b"\0" + author.encode())
        size = self._size_of(record) + RECORD_BYTES
        new = _Held(record, author, owner, rank, size, now_s)
        doomed = self._crowd_of_name(new)
        if doomed is None:
            return False
        old = self._by_name.get(record.name, {}).get(author)
        is_one_more = old is None or old.owner != owner
        if is_one_more and len(self._by_owner.get(owner, ())) >= self._bounds.of_owner:
            worst = self._worst_of(owner)
            if worst.rank < rank:
                return False
            doomed.append(worst)
        if old is not None:
            doomed.append(old)
        for held in set(doomed):  # the worst of its name may be the worst of its owner too
            self._remove(held)
        self._insert(new)
        while self._size > self._bounds.in_all_bytes:
            self._remove(self._worst_of(self._by_load[-1][2]))
        return self._by_name.get(record.name, {}).get(author) is new

    def expire(self, now_ms: int) -> None:
        if not self._by_expiry or self._by_expiry[0][0] > now_ms:
            return
        count = min(EXPIRED_MAX, bisect.bisect_left(self._by_expiry, (now_ms + 1, b"", "")))
        for _, name, author in self._by_expiry[:count]:
            self._release(self._by_name[name][author])
        del self._by_expiry[:count]  # at once: one by one each would move all that follow

    def __len__(self) -> int:
        return len(self._by_expiry)

    def _worst_of(self, owner: PeerId) -> _Held[R]:
        _, name, author = self._by_owner[owner][-1]
        return self._by_name[name][author]

    def _crowd_of_name(self, new: _Held[R]) -> list[_Held[R]] | None:
        """Return who has to go from its name for a newcomer; None: the newcomer itself."""
        found = self._by_name.get(new.record.name, {})
        others = sorted((it for it in found.values() if it.author != new.author), key=_rank_of)
        size = new.size + sum(it.size for it in others) - RECORD_BYTES * (len(others) + 1)
        doomed: list[_Held[R]] = []
        while len(others) >= self._bounds.of_name or size > self._bounds.of_name_bytes:
            if not others or others[-1].rank < new.rank:
                return None
            doomed.append(others.pop())
            size -= doomed[-1].size - RECORD_BYTES
        return doomed

    def _insert(self, held: _Held[R]) -> None:
        record = held.record
        of_name = self._by_name.setdefault(record.name, {})
        if not of_name:
            bisect.insort(self._by_key, (key_of(record.name), record.name))
        of_name[held.author] = held
        bisect.insort(
            self._by_owner.setdefault(held.owner, []), (held.rank, record.name, held.author)
        )
        bisect.insort(self._by_expiry, (record.expires_ms, record.name, held.author))
        self._charge(held.owner, held.size)

    def _remove(self, held: _Held[R]) -> None:
        _drop(self._by_expiry, (held.record.expires_ms, held.record.name, held.author))
        self._release(held)

    def _release(self, held: _Held[R]) -> None:
        """Remove a record from everywhere but `_by_expiry`."""
        record = held.record
        of_name, of_owner = self._by_name[record.name], self._by_owner[held.owner]
        del of_name[held.author]
        _drop(of_owner, (held.rank, record.name, held.author))
        if not of_name:
            del self._by_name[record.name]
            _drop(self._by_key, (key_of(record.name), record.name))
        if not of_owner:
            del self._by_owner[held.owner]
        self._charge(held.owner, -held.size)

    def _charge(self, owner: PeerId, size: int) -> None:
        load = self._loads.pop(owner, 0)
        rank = self._rank(owner.encode())
        if load:
            _drop(self._by_load, (load, rank, owner))
        load += size
        if load:
            self._loads[owner] = load
            bisect.insort(self._by_load, (load, rank, owner))
        self._size += size

    def _rank(self, of: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(of, key=self._secret, digest_size=8).digest())


def _rank_of(held: _Held[R]) -> int:
    return held.rank


T = TypeVar("T", tuple[int, int, PeerId], tuple[Key, bytes], tuple[int, bytes, str])


def _drop(entries: list[T], entry: T) -> None:
    """Remove an entry from a sorted list that has it."""
    index = bisect.bisect_left(entries, entry)
    assert entries[index] == entry
    del entries[index]
