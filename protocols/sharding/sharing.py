"""Sharing out blocks: the min-max partition of gaps over nodes of different speed and room. Pure.

The order of the nodes is given, a node gets one contiguous part. Blocks count as equally much work.
"""

import heapq
import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from wire.ids import PeerId

AS_GOOD = 1.5  # times as long is as good, if it keeps everybody's part as it was

Blocks = tuple[int, int]  # [start, end)


@dataclass(frozen=True)
class Shape:
    """What a model takes in memory: each block, and what the first and the last span need besides
    (`shared_bytes`: either of them, once).
    """

    model: str
    block_bytes: tuple[int, ...]
    embed_bytes: int = 0
    head_bytes: int = 0
    shared_bytes: int = 0
    _sums: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sums", (0, *itertools.accumulate(self.block_bytes)))

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self.block_bytes)

    def bytes_of(self, start: int, end: int) -> int:
        """Return what blocks [start, end) take."""
        start, end = min(start, self.blocks), min(end, self.blocks)
        is_first, is_last = start == 0, end == self.blocks
        return (
            self._sums[end]
            - self._sums[start]
            + is_first * self.embed_bytes
            + is_last * self.head_bytes
            + (is_first or is_last) * self.shared_bytes
        )

    def reach(self, start: int, end: int, room_bytes: int) -> int:
        """Return up to which block, `end` at most, one goes from `start` on within `room_bytes`."""
        room = room_bytes - (self.embed_bytes + self.shared_bytes if start == 0 else 0)
        last = min(end, bisect_right(self._sums, self._sums[start] + room) - 1)
        while last > start and self.bytes_of(start, last) > room_bytes:
            last -= 1
        return max(start, last)


@dataclass(frozen=True)
class Worker:
    """A node: what room it has left, how long a block takes it, how long its spans take now."""

    peer: PeerId
    room_bytes: int
    block_s: float
    busy_s: float = 0.0
    spans: list[Blocks] = field(default_factory=list[Blocks])


def runs(flags: Sequence[bool]) -> list[Blocks]:
    """Return the stretches [start, end) of flags that are set."""
    found: list[Blocks] = []
    at = 0
    for is_set, group in itertools.groupby(flags):
        end = at + len(list(group))
        if is_set:
            found.append((at, end))
        at = end
    return found


def fits(shape: Shape, length: int, room_bytes: int) -> bool:
    """Whether any window of so many blocks fits, wherever it lies."""
    starts = range(shape.blocks - length + 1)
    return all(shape.bytes_of(start, start + length) <= room_bytes for start in starts)


def share(
    shape: Shape,
    gaps: Sequence[Blocks],
    workers: Sequence[Worker],
    *,
    within: Sequence[tuple[int, int]] = (),
) -> dict[PeerId, Blocks]:
    """Share out `gaps` so that the slowest part takes as little time as can be.

    workers: in the order in which they are to lie. `within`: for each gap, the workers
    [first, last) that lie between those who hold what is around it. If these do (nearly) as well
    they take it: so nobody's part changes when another one's is settled.
    Where the room does not suffice, blocks at the end are left over; where there are more nodes
    than needed, nodes.
    Cost: O(nodes * log(nodes * blocks)) beside sorting nodes * blocks times.
    """
    found = _among_all(shape, gaps, workers)
    if len(within) != len(gaps):
        return found
    between: dict[PeerId, Blocks] = {}
    for gap, (first, last) in zip(gaps, within, strict=True):
        parts = _even(shape, gap, workers[first:last])
        if not parts or parts.keys() & between.keys():
            return found
        between |= parts
    return (
        between if _longest_s(between, workers) <= AS_GOOD * _longest_s(found, workers) else found
    )


def _among_all(
    shape: Shape, gaps: Sequence[Blocks], workers: Sequence[Worker]
) -> dict[PeerId, Blocks]:
    parts = _least(shape, gaps, workers)
    found: dict[PeerId, Blocks] = {}
    used = max((index for index, _, _ in parts), default=-1)
    for number, gap in enumerate(gaps):
        group = [(index, blocks) for index, at, blocks in parts if at == number]
        if not group:
            continue
        first, last = group[0][0], group[-1][0]
        if last == used:
            last = len(workers) - 1  # the ones left over help in the last gap
        even = _even(shape, (gap[0], group[-1][1][1]), workers[first : last + 1])
        found |= even or {workers[index].peer: blocks for index, blocks in group}
    return found


def _longest_s(parts: dict[PeerId, Blocks], workers: Sequence[Worker]) -> float:
    """Return how long the slowest part takes; without end if nothing is given to anybody."""
    times = [
        worker.busy_s + worker.block_s * (parts[worker.peer][1] - parts[worker.peer][0])
        for worker in workers
        if worker.peer in parts
    ]
    return max(times, default=math.inf)


def best(
    shape: Shape, gaps: Sequence[Blocks], workers: Sequence[Worker], limit: int
) -> list[Worker]:
    """Choose at most `limit` nodes: the fastest if they have room for all gaps, else the roomiest.

    They stay in their order.
    """
    if limit >= len(workers):
        return list(workers)
    total = sum(end - start for start, end in gaps)
    fast = sorted(workers, key=lambda worker: worker.busy_s + worker.block_s)[:limit]
    roomy = sorted(workers, key=lambda worker: -worker.room_bytes)[:limit]
    for chosen in (fast, roomy):
        inside = [worker for worker in workers if worker in chosen]
        if sum(end - start for _, _, (start, end) in _fill(shape, gaps, inside, math.inf)) == total:
            return inside
    return [worker for worker in workers if worker in roomy]


_Part = tuple[int, int, Blocks]  # index of the worker, of the gap, the blocks


def _fill(
    shape: Shape, gaps: Sequence[Blocks], workers: Sequence[Worker], limit_s: float
) -> list[_Part]:
    """Give each node in turn as much as it can do within `limit_s`: no order gets further."""
    parts: list[_Part] = []
    number, at = 0, gaps[0][0]
    for index, worker in enumerate(workers):
        end = gaps[number][1]
        if limit_s < math.inf:
            end = min(end, at + int((limit_s - worker.busy_s) / worker.block_s + 1e-9))
        end = shape.reach(at, end, worker.room_bytes) if end > at else at
        if end == at:
            continue
        parts.append((index, number, (at, end)))
        at = end
        if at == gaps[number][1]:
            number += 1
            if number == len(gaps):
                break
            at = gaps[number][0]
    return parts


def _least(shape: Shape, gaps: Sequence[Blocks], workers: Sequence[Worker]) -> list[_Part]:
    """Return the parts under the least limit of time that still covers what can be covered."""
    total = sum(end - start for start, end in gaps)
    longest = max(end - start for start, end in gaps)

    def covered(limit_s: float) -> int:
        return sum(end - start for _, _, (start, end) in _fill(shape, gaps, workers, limit_s))

    reachable = covered(math.inf)
    if reachable < total:
        return _fill(shape, gaps, workers, math.inf)
    limits = sorted(
        {worker.busy_s + n * worker.block_s for worker in workers for n in range(1, longest + 1)}
    )
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        if covered(limits[middle]) == total:
            high = middle
        else:
            low = middle + 1
    return _fill(shape, gaps, workers, limits[low])


def _even(shape: Shape, gap: Blocks, workers: Sequence[Worker]) -> dict[PeerId, Blocks]:
    """Share one gap out evenly by speed: the least longest time, and nobody is left out needlessly.

    Returns {} if the room does not allow it this way.
    """
    start, end = gap
    block_bytes = max(shape.block_bytes[start:end])
    room = [max(0, worker.room_bytes) // max(1, block_bytes) for worker in workers]
    for _ in range(2 * (end - start) + 2):  # each turn takes a block from a node at an end
        counts = _counts(end - start, workers, room)
        if counts is None:
            return {}
        parts: dict[PeerId, Blocks] = {}
        at, over = start, -1
        for index, count in enumerate(counts):
            if not count:
                continue
            parts[workers[index].peer] = at, at + count
            if shape.bytes_of(at, at + count) > workers[index].room_bytes:
                over = index
            at += count
        if over < 0:
            return parts
        room[over] = counts[over] - 1
    return {}


def _counts(total: int, workers: Sequence[Worker], room: Sequence[int]) -> list[int] | None:
    """Give block after block to who would be done first; None if there is no room for all."""
    counts = [0] * len(workers)
    heap = [
        (worker.busy_s + worker.block_s, index)
        for index, worker in enumerate(workers)
        if room[index]
    ]
    heapq.heapify(heap)
    for _ in range(total):
        if not heap:
            return None
        done_s, index = heapq.heappop(heap)
        counts[index] += 1
        if counts[index] < room[index]:
            heapq.heappush(heap, (done_s + workers[index].block_s, index))
    return counts
