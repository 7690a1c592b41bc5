"""Which chunk to ask of whom, without I/O: rarest first, as much as each provider can bring, and
at the end the last ones of two at a time (Cohen 2003, "Incentives build robustness in BitTorrent").

Sets of chunks are integers, one bit a chunk: a set operation on 128 GiB costs a microsecond. The
driver tells who has what and what came, and asks `next_for` whenever something has changed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from protocols.blobs.wire import GET_MAX
from wire.ids import PeerId

WINDOW_FIRST = 4  # chunks in flight to a provider that we know nothing of
WINDOW_MIN = 2  # one on its way while the next is being read
WINDOW_MAX = 32  # 32 MiB cover 50 ms at 640 MB/s
AHEAD_S = 0.3  # of work kept in flight beyond the round trip: it hides our pauses and theirs
RATE_OVER_S = 0.5  # the window in which a provider's rate is measured
STALL_S = 15.0  # a provider that owes us chunks and brings none for so long is no help
ASKERS_MAX = 2  # providers that are asked for the same chunk, at the end
SPARE_MAX = 2  # chunks of others that one provider is asked for, at the end


@dataclass
class _Provider:
    have: int
    rtt_s: float
    asked: dict[int, float] = field(default_factory=dict[int, float])  # when, oldest first
    window: int = WINDOW_FIRST
    heard_s: float = 0.0  # when its debt changed, or began
    count_from_s: float = 0.0  # the rate: chunks since then
    counted: int = 0


class Fetch:
    """The state of one fetch: chunks are wanted (asked of nobody), asked of some, or here."""

    def __init__(self, wanted: int, *, choose: Callable[[], int] = lambda: 0) -> None:
        """`choose` says where to begin among equally rare ones: at once, and anew for each request
        as long as there are others who fetch. If all went in one order, nobody could help anybody.
        """
        self._wanted, self._choose, self._start = wanted, choose, choose()
        self._askers: dict[int, list[PeerId]] = {}  # of the chunks that are asked
        self._providers: dict[PeerId, _Provider] = {}
        self._levels: list[int] = [wanted]  # by how many providers have a chunk

    @property
    def is_done(self) -> bool:
        """Tell whether every chunk has arrived."""
        return not self._wanted and not self._askers

    @property
    def is_ending(self) -> bool:
        """Tell whether every missing chunk has been asked of somebody."""
        return not self._wanted

    @property
    def missing(self) -> int:
        """Return the set of chunks that have not arrived."""
        return self._wanted | sum(1 << index for index in self._askers)

    def join(self, peer: PeerId, have: int, *, rtt_s: float) -> None:
        """A provider is there, and has these."""
        assert peer not in self._providers
        self._providers[peer] = _Provider(0, rtt_s)
        self.gained(peer, have)

    def gained(self, peer: PeerId, more: int) -> bool:
        """A provider has these too; tells whether that is any news."""
        provider = self._providers[peer]
        new = more & ~provider.have
        provider.have |= new
        self._levels.append(0)
        for level in range(len(self._levels) - 2, -1, -1):
            moved = self._levels[level] & new
            self._levels[level] ^= moved
            self._levels[level + 1] |= moved
        self._trim()
        return bool(new)

    def leave(self, peer: PeerId) -> None:
        """A provider is gone: what it owes is asked of others."""
        provider = self._providers.pop(peer, None)
        if provider is None:
            return
        for index in list(provider.asked):
            self._unask(peer, provider, index)
        self._lose(provider.have)

    def lacks(self, peer: PeerId, index: int) -> None:
        """A provider has not got a chunk that it said it had."""
        provider = self._providers[peer]
        if provider.have >> index & 1:
            provider.have ^= 1 << index
            self._lose(1 << index)
        if index in provider.asked:
            self._unask(peer, provider, index)

    def next_for(self, peer: PeerId, now: float) -> range | None:
        """Choose the next chunks to ask a provider for; None if there are none for it now."""
        provider = self._providers[peer]
        room = provider.window - len(provider.asked)
        if room <= 0:
            return None
        found = self._rarest(provider.have, min(room, GET_MAX)) or self._spare(peer, provider)
        if found is None:
            return None
        if not provider.asked:
            provider.heard_s = provider.count_from_s = now
            provider.counted = 0
        for index in found:
            self._wanted &= ~(1 << index)
            self._askers.setdefault(index, []).append(peer)
            provider.asked[index] = now
        return found

    def owes(self, peer: PeerId, index: int) -> bool:
        """Tell whether a provider was asked for a chunk, and not told to leave it."""
        provider = self._providers.get(peer)
        return provider is not None and index in provider.asked

    def arrived(self, peer: PeerId, index: int, now: float) -> list[PeerId]:
        """A chunk came and is what it should be; returns who else need not send it any more."""
        provider = self._providers[peer]
        self._measure(provider, now)
        others = [other for other in self._askers.pop(index) if other != peer]
        for each in (peer, *others):
            del self._providers[each].asked[index]
            self._providers[each].heard_s = now  # a slow one that was helped is not silent
        for level in range(len(self._levels)):
            self._levels[level] &= ~(1 << index)
        return others

    def stalled(self, now: float) -> list[PeerId]:
        """Return who owes chunks and has brought none for too long."""
        return [
            peer
            for peer, provider in self._providers.items()
            if provider.asked and now - provider.heard_s >= STALL_S
        ]

    def is_useful(self, peer: PeerId) -> bool:
        """Tell whether a provider has anything that is still missing."""
        return bool(self._providers[peer].have & self.missing)

    def in_flight(self, peer: PeerId) -> int:
        """Return how many chunks a provider owes."""
        return len(self._providers[peer].asked)

    # --- inside --------------------------------------------------------------------------------

    def _rarest(self, have: int, most: int) -> range | None:
        """Return a run of wanted chunks that are as rare as any."""
        for level in self._levels:
            found = self._wanted & have & level
            if found:
                is_shared = any(self._wanted & ~p.have for p in self._providers.values())
                return _run_in(found, self._choose() if is_shared else self._start, most)
        return None

    def _spare(self, peer: PeerId, provider: _Provider) -> range | None:
        """At the end, return a chunk that others owe: the one that would come last."""
        spare = sum(1 for index in provider.asked if len(self._askers[index]) > 1)
        if self._wanted or spare >= SPARE_MAX:
            return None
        late = [
            (self._wait_s(other, index), index)
            for index, (other, *more) in self._askers.items()
            if len(more) < ASKERS_MAX - 1 and other != peer and provider.have >> index & 1
        ]
        mine_s = self._wait_s(peer, None)
        late_s, index = max(late, default=(0.0, 0))
        return range(index, index + 1) if late and late_s > mine_s else None

    def _wait_s(self, peer: PeerId, index: int | None) -> float:
        """Guess when a provider brings a chunk it was asked for, or one asked now (None)."""
        provider = self._providers[peer]
        asked = list(provider.asked)
        before = len(asked) if index is None else asked.index(index)
        per_chunk_s = (provider.rtt_s + AHEAD_S) / provider.window
        return provider.rtt_s + (before + 1) * per_chunk_s

    def _measure(self, provider: _Provider, now: float) -> None:
        """Count a chunk, and from time to time set the window to what the rate needs."""
        provider.counted += 1
        elapsed_s = now - provider.count_from_s
        if elapsed_s < RATE_OVER_S and provider.counted < 2 * provider.window:
            return
        rate = provider.counted / max(elapsed_s, 0.001)
        wanted = math.ceil(rate * (provider.rtt_s + AHEAD_S)) + 1
        # It grows at most twofold: one burst out of a buffer is no rate.
        provider.window = max(WINDOW_MIN, min(WINDOW_MAX, wanted, 2 * provider.window))
        provider.count_from_s, provider.counted = now, 0

    def _unask(self, peer: PeerId, provider: _Provider, index: int) -> None:
        del provider.asked[index]
        askers = self._askers[index]
        askers.remove(peer)
        if not askers:
            del self._askers[index]
            self._wanted |= 1 << index

    def _lose(self, gone: int) -> None:
        """One provider fewer has these."""
        for level in range(1, len(self._levels)):
            moved = self._levels[level] & gone
            self._levels[level] ^= moved
            self._levels[level - 1] |= moved
        self._trim()

    def _trim(self) -> None:
        while len(self._levels) > 1 and not self._levels[-1]:
            self._levels.pop()


def _run_in(chunks: int, start: int, most: int) -> range:
    """Return the first run in a set that is not empty, at or after `start`, then from 0."""
    later = chunks >> start
    offset = start if later else 0
    rest = later or chunks
    first = (rest & -rest).bit_length() - 1
    rest >>= first
    length = 1
    while length < most and rest >> length & 1:
        length += 1
    return range(offset + first, offset + first + length)


def members(chunks: int) -> Iterator[int]:
    """Yield the chunks of a set, in order."""
    data = chunks.to_bytes(-(-chunks.bit_length() // 8), "little")
    for place, byte in enumerate(data):
        for bit in range(8) if byte else ():
            if byte >> bit & 1:
                yield place * 8 + bit


def full(count: int) -> int:
    """Return the set of all chunks below `count`."""
    return (1 << count) - 1


def to_bits(chunks: int) -> bytes:
    """Return a set as it travels: little-endian, one bit a chunk."""
    return chunks.to_bytes(-(-chunks.bit_length() // 8), "little")


def from_bits(bits: bytes, count: int) -> int:
    """Read a set; what is beyond `count` is left out."""
    return int.from_bytes(bits, "little") & full(count)
