"""Who may have how much of a span's cache. No I/O.

A session reserves its bytes when it opens and has them to its end. What is left holds the caches of
sessions that are over and were parked by their entry; they are the first to go.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.sharding.history import History
from protocols.sharding.wire import PREFIX_TOKENS, Open
from wire.errors import Busy
from wire.ids import PeerId

SESSIONS_MAX = 192  # on one span; each is a few tasks, and a cache of its own in the worker
PARKED_MAX = 64  # parked sessions on one span
PARKED_S = 600.0  # seconds that a parked session is kept: a person has answered by then, or left
PEER_SHARE = 0.75  # of bytes and of sessions for one other peer, so that a second finds room
PARKED_SHARE = 0.5  # of the bytes, and of the number, for what one peer has parked
RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0  # what is told to who found no room
_SMOOTHING = 0.2  # weight of the latest session in the mean length


@dataclass(frozen=True)
class Parked:
    """A session that is over, whose cache the worker still has under `ticket`."""

    ticket: int
    peer: PeerId
    part: tuple[int, int, str, str]  # blocks and codecs: what must be the same to go on with it
    keys: list[bytes]
    position: int
    size_bytes: int
    until: float
    history: History | None


def part_of(opening: Open) -> tuple[int, int, str, str]:
    """Return what two sessions must have in common for one to go on with the other's cache."""
    return opening.start, opening.end, opening.takes, opening.gives


class Room:
    """The cache of one span: reservations and parked sessions, within `capacity_bytes`.

    What is dropped from among the parked is returned: the worker must be told to forget it.
    """

    def __init__(self, capacity_bytes: int, *, own: PeerId) -> None:
        """`own`: this node itself, which may have all."""
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.sessions = 0
        self._own = own
        self._bytes_of = Counter[PeerId]()
        self._sessions_of = Counter[PeerId]()
        self._parked = OrderedDict[int, Parked]()  # by ticket; the one used longest ago first
        self._session_s = 5.0  # mean length of a session, lately

    @property
    def parked_bytes(self) -> int:
        """What the parked sessions take."""
        return sum(parked.size_bytes for parked in self._parked.values())

    @property
    def free_bytes(self) -> int:
        """What a session could reserve, if parked ones go."""
        return self.capacity_bytes - self.reserved_bytes

    def reserve(self, peer: PeerId, size_bytes: int) -> list[Parked]:
        """Take room for a session; returns the parked ones that went for it. Raises Busy."""
        share = 1.0 if peer == self._own else PEER_SHARE
        of_peer = self._bytes_of[peer] + size_bytes
        if self.sessions >= SESSIONS_MAX:
            raise self._busy(f"all {SESSIONS_MAX} sessions here are in use")
        if size_bytes > self.free_bytes:
            raise self._busy(f"{self.free_bytes} B of cache are free, {size_bytes} B are needed")
        if self._sessions_of[peer] >= share * SESSIONS_MAX or of_peer > share * self.capacity_bytes:
            raise self._busy("what is left is for others")
        self.sessions += 1
        self.reserved_bytes += size_bytes
        self._sessions_of[peer] += 1
        self._bytes_of[peer] += size_bytes
        return self._make_room(list(self._parked.values()), self.capacity_bytes)

    def release(self, peer: PeerId, size_bytes: int, *, after_s: float) -> None:
        """Give a session's room back, `after_s` seconds after it was reserved."""
        self.sessions -= 1
        self.reserved_bytes -= size_bytes
        for counter, amount in ((self._sessions_of, 1), (self._bytes_of, size_bytes)):
            counter[peer] -= amount
            if not counter[peer]:
                del counter[peer]
        self._session_s += _SMOOTHING * (after_s - self._session_s)

    def park(self, parked: Parked) -> list[Parked]:
        """Keep a session that is over; returns which others, or itself, had to go for it.

        What it began with is dropped: it can do all that a shorter one with the same keys can.
        """
        mine = [other for other in self._parked.values() if other.peer == parked.peer]
        gone = [
            other
            for other in mine
            if other.part == parked.part and other.keys == parked.keys[: len(other.keys)]
        ]
        for other in gone:
            del self._parked[other.ticket]
        self._parked[parked.ticket] = parked
        mine = [other for other in [*mine, parked] if other.ticket in self._parked]
        gone += self._make_room(
            mine,
            int(PARKED_SHARE * self.capacity_bytes),
            int(PARKED_SHARE * PARKED_MAX),
            reserved_bytes=0,
        )
        gone += self._make_room(list(self._parked.values()), self.capacity_bytes)
        return gone

    def match(self, peer: PeerId, opening: Open) -> tuple[Parked, int] | None:
        """Return the parked session of this entry with the longest prefix, and its tokens."""
        best: tuple[Parked, int] | None = None
        for parked in self._parked.values():
            if parked.peer != peer or parked.part != part_of(opening):
                continue
            tokens = PREFIX_TOKENS * _common(parked.keys, opening.reuse)
            tokens = min(tokens, parked.position, opening.max_tokens - 1)
            if tokens > 0 and (best is None or tokens > best[1]):
                best = parked, tokens
        if best is not None:
            self._parked.move_to_end(best[0].ticket)
        return best

    def expire(self, now: float) -> list[Parked]:
        """Drop what was parked too long ago."""
        gone = [parked for parked in self._parked.values() if parked.until <= now]
        for parked in gone:
            del self._parked[parked.ticket]
        return gone

    def clear(self) -> list[Parked]:
        """Drop all that is parked."""
        gone = list(self._parked.values())
        self._parked.clear()
        return gone

    def _make_room(
        self,
        among: list[Parked],
        limit_bytes: int,
        limit: int = PARKED_MAX,
        *,
        reserved_bytes: int | None = None,
    ) -> list[Parked]:
        """Drop the oldest of some until they, and what is reserved, fit the limits."""
        taken = sum(parked.size_bytes for parked in among)
        taken += self.reserved_bytes if reserved_bytes is None else reserved_bytes
        gone = list[Parked]()
        for parked in among:
            if taken <= limit_bytes and len(among) - len(gone) <= limit:
                break
            del self._parked[parked.ticket]
            taken -= parked.size_bytes
            gone.append(parked)
        return gone

    def _busy(self, why: str) -> Busy:
        """Say no; the next session to end will do so in a mean length over their number."""
        wait_s = self._session_s / max(1, self.sessions)
        return Busy(why, retry_after_s=min(max(wait_s, RETRY_MIN_S), RETRY_MAX_S))


def _common(ours: list[bytes], theirs: Iterable[bytes]) -> int:
    """Return how many keys two lists have in common at their beginning."""
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        count += 1
    return count
