"""Which piece goes next on which lane, what has arrived, what must go again: without I/O.

A transfer is a row of pieces of equal size, the last one shorter. Lanes are numbers here. Callers
see that one thread at a time is in here (`desk.py`), and pass the time.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.bulk.wire import PIECE_MAX, PIECE_MIN, PIECES_MAX, RANGES_MAX
from wire.errors import BadMessage

BURST_S = 0.05  # of its rate that a capped transfer may be ahead: sleepers wake late
PIECES_PER_S = 10  # that a capped transfer is cut into, so that it flows and never seems to stall

_MISSING, _ARRIVING, _HERE = 0, 1, 2


def piece_bytes_for(size_bytes: int, rate_bytes_s: float | None) -> int:
    """Return how large the pieces of a transfer should be."""
    if rate_bytes_s is None:
        return PIECE_MAX
    least = max(PIECE_MIN, -(-size_bytes // PIECES_MAX))
    return max(least, min(PIECE_MAX, int(rate_bytes_s / PIECES_PER_S)))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a transfer."""

    index: int
    offset: int
    length: int


class Pieces:
    """How a transfer is cut: its head, if it has one, and then the rest."""

    def __init__(
        self, size_bytes: int, piece_bytes: int = PIECE_MAX, *, head_bytes: int = 0
    ) -> None:
        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes
        self._head_bytes = head_bytes
        self._in_head = -(-head_bytes // piece_bytes)
        self.count = self._in_head - (-(size_bytes - head_bytes) // piece_bytes)

    def piece(self, index: int) -> Piece:
        """Return a piece by its number."""
        if index < self._in_head:
            offset, end = index * self.piece_bytes, self._head_bytes
        else:
            offset = self._head_bytes + (index - self._in_head) * self.piece_bytes
            end = self.size_bytes
        return Piece(index, offset, min(self.piece_bytes, end - offset))

    def front_bytes(self, count: int) -> int:
        """Return how many bytes the first `count` pieces have."""
        return self.piece(count).offset if count < self.count else self.size_bytes

    def at(self, offset: int, length: int) -> Piece:
        """Return the piece that a peer says it sent. Raises BadMessage if there is none such."""
        if offset < self._head_bytes:
            piece = self.piece(offset // self.piece_bytes)
        else:
            piece = self.piece(self._in_head + (offset - self._head_bytes) // self.piece_bytes)
        if offset >= self.size_bytes or (piece.offset, piece.length) != (offset, length):
            raise BadMessage(f"no piece of {length} B at {offset} in {self.size_bytes} B")
        return piece


class Bucket:
    """Token bucket, kept as the time at which the next byte may go (the form called GCRA)."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s = bytes_s
        self.free_at = -math.inf

    def take(self, count: int, now: float) -> None:
        """Book bytes that go now."""
        self.free_at = max(self.free_at, now - BURST_S) + count / self._bytes_s


class Outbound:
    """One transfer as its sender books it. Every piece is with at most one lane at a time."""

    def __init__(
        self,
        size_bytes: int,
        piece_bytes: int = PIECE_MAX,
        *,
        rate_bytes_s: float | None = None,
        ready_bytes: int | None = None,
        head_bytes: int = 0,
    ) -> None:
        """ready_bytes: what may go, from the front on, until it `grow`s; None: all.

        head_bytes: no piece crosses their end: what follows may depend on what they bring about.
        """
        self._pieces = Pieces(size_bytes, piece_bytes, head_bytes=head_bytes)
        self._ready_bytes = size_bytes if ready_bytes is None else ready_bytes
        self._fresh = 0  # the first piece that never went
        self._again = deque[int]()  # pieces of lanes that were lost
        self._lane_of = dict[int, int]()  # of each piece that is on its way
        self._is_here = bytearray(self._pieces.count)
        self._bucket = Bucket(rate_bytes_s) if rate_bytes_s else None
        self.arrived_bytes = 0

    @property
    def is_done(self) -> bool:
        """True when everything has arrived."""
        return self.arrived_bytes == self._pieces.size_bytes

    def grow(self, ready_bytes: int) -> None:
        """So many bytes from the front may go now."""
        self._ready_bytes = max(self._ready_bytes, ready_bytes)

    def _has_fresh(self) -> bool:
        if self._fresh == self._pieces.count:
            return False
        return self._pieces.front_bytes(self._fresh + 1) <= self._ready_bytes

    def ready_at(self) -> float:
        """When a piece may go: infinity if there is none to send."""
        while self._again and self._is_here[self._again[0]]:
            self._again.popleft()  # it had arrived before its lane was lost
        if not self._again and not self._has_fresh():
            return math.inf
        return self._bucket.free_at if self._bucket else -math.inf

    def next(self, lane: int, now: float) -> Piece | None:
        """Take the next piece for a lane; None if there is none, or not yet."""
        if self.ready_at() > now:
            return None
        if self._again:
            index = self._again.popleft()
        else:
            index = self._fresh
            self._fresh += 1
        piece = self._pieces.piece(index)
        self._lane_of[index] = lane
        if self._bucket:
            self._bucket.take(piece.length, now)
        return piece

    def arrived(self, ranges: Iterable[tuple[int, int]]) -> int:
        """The receiver has pieces; returns the bytes that are news.

        Raises BadMessage for pieces that never went: the peer cannot have them; and for one that is
        reported twice: 256 ranges over a large transfer, again and again, would hold the loop.
        """
        before = self.arrived_bytes
        for first, end in ranges:
            if not first < end <= self._fresh:
                raise BadMessage(f"pieces {first} to {end} cannot have arrived")
            for index in range(first, end):
                if self._is_here[index]:
                    raise BadMessage(f"piece {index} has arrived before")
                self._is_here[index] = True
                self._lane_of.pop(index, None)
                self.arrived_bytes += self._pieces.piece(index).length
        return self.arrived_bytes - before

    def lane_lost(self, lane: int) -> None:
        """What was on its way there goes again."""
        lost = [index for index, carrier in self._lane_of.items() if carrier == lane]
        for index in lost:
            del self._lane_of[index]
        self._again.extend(lost)


class Turns:
    """The transfers to one peer: they take turns, a piece each. Ids are those of transfers."""

    def __init__(self) -> None:
        self._waiting = deque[tuple[int, Outbound]]()

    def add(self, transfer: int, outbound: Outbound) -> None:
        """A transfer begins; its turn comes first."""
        self._waiting.appendleft((transfer, outbound))

    def remove(self, transfer: int) -> None:
        """A transfer is over. Safe to repeat."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != transfer)

    def next(self, lane: int, now: float) -> tuple[int, Piece] | float:
        """Take the next piece for a lane, or return when to ask again (infinity: if told)."""
        wait_until = math.inf
        for _ in range(len(self._waiting)):
            transfer, outbound = self._waiting[0]
            self._waiting.rotate(-1)
            if (piece := outbound.next(lane, now)) is not None:
                return transfer, piece
            wait_until = min(wait_until, outbound.ready_at())
        return wait_until

    def lane_lost(self, lane: int) -> None:
        """What was on its way there goes again."""
        for _, outbound in self._waiting:
            outbound.lane_lost(lane)


class Inbound:
    """One transfer as its receiver books it."""

    def __init__(
        self, size_bytes: int, piece_bytes: int = PIECE_MAX, *, head_bytes: int = 0
    ) -> None:
        self._pieces = Pieces(size_bytes, piece_bytes, head_bytes=head_bytes)
        self._state = bytearray(self._pieces.count)
        self._news = list[int]()
        self._first_missing = 0
        self.arrived_bytes = 0

    @property
    def prefix_bytes(self) -> int:
        """How many bytes from the front are here."""
        return self._pieces.front_bytes(self._first_missing)

    @property
    def is_complete(self) -> bool:
        """True when every byte is here."""
        return self.arrived_bytes == self._pieces.size_bytes

    def is_arriving(self, offset: int, length: int) -> bool:
        """Tell whether a piece is being written. Raises BadMessage if there is none such."""
        return self._state[self._pieces.at(offset, length).index] == _ARRIVING

    def claim(self, offset: int, length: int) -> Piece | None:
        """Ask to write a piece that is not being written; None if it is here already, and must not
        be written again. Raises BadMessage if it is no piece of this transfer.
        """
        piece = self._pieces.at(offset, length)
        assert self._state[piece.index] != _ARRIVING
        if self._state[piece.index] == _HERE:
            return None
        self._state[piece.index] = _ARRIVING
        return piece

    def kept(self, piece: Piece) -> None:
        """A claimed piece is in its place."""
        self._state[piece.index] = _HERE
        self.arrived_bytes += piece.length
        self._news.append(piece.index)
        while (
            self._first_missing < self._pieces.count and self._state[self._first_missing] == _HERE
        ):
            self._first_missing += 1

    def spoilt(self, piece: Piece) -> None:
        """A claimed piece was none."""
        self._state[piece.index] = _MISSING

    def news(self) -> list[tuple[int, int]]:
        """Return what arrived and was not reported, as up to `RANGES_MAX` ranges."""
        ranges = list[tuple[int, int]]()
        self._news.sort()
        for taken, index in enumerate(self._news):
            if ranges and ranges[-1][1] == index:
                ranges[-1] = (ranges[-1][0], index + 1)
            elif len(ranges) == RANGES_MAX:
                del self._news[:taken]
                return ranges
            else:
                ranges.append((index, index + 1))
        self._news.clear()
        return ranges
