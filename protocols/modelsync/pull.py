"""Which chunk to ask of which donor: work stealing, without I/O and without a clock.

Every donor has a small window of chunks on order; whoever delivers gets more. What a lost donor
had on order goes back to the heap. When the heap is empty, a donor without work is given the
chunks that others sit on, so the slowest does not keep all waiting.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from wire.ids import PeerId

WINDOW_MIN = 2  # chunks on order: one that is sent while the other is asked for
WINDOW_MAX = 16  # 16 MiB: 160 MB/s over 100 ms of round trip
WINDOW_S = 0.5  # a donor is asked for what it gives in this time
ASKERS_MAX = 2  # donors that have the same chunk on order at a time
SLOW = 2.0  # times what we need for a chunk: sits on it for longer, it can be had from us
SLOW_MIN_S = 0.2  # and at least this long, or jitter on a fast link would fetch things twice
_SMOOTH = 0.25  # weight of the newest measurement of a donor's speed


@dataclass
class _Donor:
    """What one donor has on order, when that was asked, and how fast it delivers."""

    asked: dict[int, float] = field(default_factory=dict[int, float])
    lacks: set[int] = field(default_factory=set[int])
    chunk_s: float = 0.0  # 0: not measured yet
    last: float = 0.0  # time of the last order or delivery
    given: int = 0

    @property
    def window(self) -> int:
        """How many chunks it may have on order."""
        if not self.chunk_s:
            return WINDOW_MIN
        return max(WINDOW_MIN, min(WINDOW_MAX, round(WINDOW_S / self.chunk_s)))

    @property
    def patience_s(self) -> float:
        """How long another may sit on a chunk before it is asked of us, too."""
        return max(SLOW_MIN_S, SLOW * self.chunk_s)


class Pull:
    """The chunks that are still missing, and who has been asked for them."""

    def __init__(self, missing: Iterable[int]) -> None:
        self._heap = deque(missing)
        self._open = set(self._heap)
        self._donors: dict[PeerId, _Donor] = {}
        self._given: dict[PeerId, int] = {}

    @property
    def missing(self) -> int:
        """How many chunks have not arrived."""
        return len(self._open)

    @property
    def givers(self) -> tuple[PeerId, ...]:
        """Donors that have given at least one chunk."""
        return tuple(self._given)

    def add(self, peer: PeerId, now: float) -> None:
        """A donor is ready to be asked."""
        self._donors[peer] = _Donor(last=now)

    def order(self, peer: PeerId, now: float) -> list[int]:
        """Return the chunks to ask of a donor now; they count as asked."""
        donor, found = self._donors[peer], list[int]()
        room = donor.window - len(donor.asked)
        passed: list[int] = []
        while len(found) < room and self._heap:
            index = self._heap.popleft()
            if index in self._open:
                (passed if index in donor.lacks else found).append(index)
        self._heap.extendleft(reversed(passed))
        if not found and not donor.asked:
            found = self._steal(donor, now)[:room]
        if found and not donor.asked:
            donor.last = now  # it was idle: its time for a chunk starts here
        donor.asked.update(dict.fromkeys(found, now))
        return found

    def expects(self, peer: PeerId, index: int) -> bool:
        """True if a donor was asked for a chunk and has not answered."""
        return index in self._donors[peer].asked

    def is_open(self, index: int) -> bool:
        """True if a chunk has not arrived from anybody."""
        return index in self._open

    def has_orders(self, peer: PeerId) -> bool:
        """True if a donor has something to deliver."""
        return bool(self._donors[peer].asked)

    def arrived(self, peer: PeerId, index: int, now: float) -> None:
        """A donor has delivered a chunk that is right."""
        donor = self._donors[peer]
        del donor.asked[index]
        took, donor.last = now - donor.last, now
        donor.chunk_s += (took - donor.chunk_s) * (_SMOOTH if donor.chunk_s else 1.0)
        if index in self._open:
            self._open.discard(index)
            self._given[peer] = self._given.get(peer, 0) + 1

    def refused(self, peer: PeerId, index: int) -> None:
        """A donor does not have a chunk: others may."""
        donor = self._donors[peer]
        donor.lacks.add(index)
        del donor.asked[index]
        self._back(index)

    def lost(self, peer: PeerId) -> None:
        """A donor is gone: what it had on order is asked of others."""
        donor = self._donors.pop(peer, None)
        for index in reversed(donor.asked if donor is not None else {}):
            self._back(index)

    def _back(self, index: int) -> None:
        if index in self._open and not any(index in d.asked for d in self._donors.values()):
            self._heap.appendleft(index)

    def _steal(self, thief: _Donor, now: float) -> list[int]:
        """Return chunks that others have had on order for too long, the oldest order first."""
        since: dict[int, float] = {}
        askers: dict[int, int] = {}
        for donor in self._donors.values():
            for index, asked in donor.asked.items():
                since[index] = min(asked, since.get(index, asked))
                askers[index] = askers.get(index, 0) + 1
        late = [
            (asked, index)
            for index, asked in since.items()
            if index in self._open
            and index not in thief.lacks
            and askers[index] < ASKERS_MAX
            and now - asked >= thief.patience_s
        ]
        return [index for _, index in sorted(late)]
