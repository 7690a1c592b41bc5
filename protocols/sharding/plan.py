"""What every node of a model should do now, as one of them sees it: gaps, replicas, wishes. Pure.

Leases that are only claimed do not count as cover: who claims takes part in the plan, again and
again, until what it is given stays the same. So all who see the same agree, and whoever saw less
puts it right.
"""

import functools
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise

from protocols.sharding.placement import (
    CLAIMED,
    DRAINING,
    HOT_S,
    REPLICAS_MAX,
    Lease,
    View,
    cover,
    least_window,
    rank,
    second_spans,
    surplus,
    workers_of,
)
from protocols.sharding.sharing import Blocks, Worker, best, runs, share
from wire.ids import PeerId

STALE_S = 15.0  # a claim that is older will come to nothing: three times what one takes
SILENT_S = 6.0  # a gap that is older: who has claimed nothing since does not see it, or will not


@dataclass(frozen=True)
class Plan:
    """What this node should do: claim a span, give up those that begin at `leave`. `agreed`: all
    others claim just what falls to them in our eyes.
    """

    claim: Blocks | None = None
    leave: tuple[int, ...] = ()
    agreed: bool = False


def plan(view: View) -> Plan:
    """Return what this node should do now."""
    mine = [lease for lease in view.leases if lease.peer == view.me and lease.covers]
    wish = view.wish
    if wish is not None and wish.end:
        return _as_told((wish.start, min(wish.end, view.shape.blocks)), mine)
    given = _Simulation(view).run()
    claims = {x.peer: (x.start, x.end) for x in view.leases if x.state == CLAIMED}
    others = {peer: blocks for peer, blocks in given.items() if peer != view.me}
    claims.pop(view.me, None)
    return Plan(given.get(view.me), surplus(view), agreed=others == claims)


def _as_told(blocks: Blocks, mine: list[Lease]) -> Plan:
    """Hold just these blocks. What begins at the same block goes first: a lease is named by it."""
    has_it = any((lease.start, lease.end) == blocks for lease in mine)
    if has_it:
        return Plan(None, tuple(x.start for x in mine if (x.start, x.end) != blocks))
    in_the_way = tuple(lease.start for lease in mine if lease.start == blocks[0])
    return Plan(None if in_the_way else blocks, in_the_way)


class _Simulation:
    """What everybody would do, given what we see."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._order = functools.partial(rank, view.shape.model)
        workers = workers_of(view)
        holding = {lease.peer for lease in view.leases if lease.state != CLAIMED}
        unable = _unable(view)
        able = [worker for worker in workers if worker.peer not in unable]
        self._free = [worker for worker in able if worker.peer not in holding]
        self._spare = [worker for worker in able if worker.peer in holding and worker.spans]
        self._given: dict[PeerId, Blocks] = {}

    def run(self) -> dict[PeerId, Blocks]:
        """Return what each node would claim."""
        view = self._view
        gaps = runs([not count for count in cover(view)])
        if gaps:
            self._fill(gaps)
        else:
            self._thicken()
        mine = [worker for worker in self._free if worker.peer == view.me]
        if mine and view.wish is not None and not view.wish.end:  # told to host, whatever it is
            window = least_window(view, mine[0])
            if window is not None and not gaps:
                self._given.setdefault(view.me, window)
        return self._given

    def _fill(self, gaps: list[Blocks]) -> None:
        """Share out blocks that nobody has: to the free, then to who has room beside its span."""
        view = self._view
        free, spare = self._free, self._spare
        if view.gap_s > SILENT_S:
            heard = view.heard | {view.me}
            free = [worker for worker in free if worker.peer in heard]
            spare = [worker for worker in spare if worker.peer in heard]
        limit = view.nodes or math.ceil((len(free) + len(spare)) / view.replicas)
        gaps = self._share(gaps, free, limit=max(0, limit - len(spare)))
        if not view.nodes:
            gaps = self._share(gaps, free, limit=len(free))  # and replicas when more nodes come
        gaps = self._share(gaps, spare, limit=len(gaps))  # few: each is a process and a hop more
        gaps = self._share(gaps, spare, limit=len(spare))
        self._share(gaps, free, limit=len(free))  # better over more than was asked than not at all

    def _thicken(self) -> None:
        """Share out blocks that should be on more nodes: to the free; as often as the record says,
        also to who has room beside a span elsewhere.
        """
        view = self._view
        rest = self._share(self._thin(), self._free, limit=view.nodes or len(self._free))
        counts = cover(view)
        few = [False] * len(counts)
        for start, end in rest:
            few[start:end] = [count < view.replicas for count in counts[start:end]]
        elsewhere = [
            worker
            for worker in self._spare
            if not any(any(few[start:end]) for start, end in worker.spans)
        ]
        for start, end in self._share(runs(few), elsewhere, limit=len(elsewhere)):
            self._beside(start, end)

    def _beside(self, start: int, end: int) -> None:
        """Give blocks to nodes that hold others: what one holds to the one whose part comes next,
        around the model, so that each gets about as much as it has.
        """
        blocks = self._view.shape.blocks
        edges = {edge for worker in self._spare for span in worker.spans for edge in span}
        for at, until in pairwise(sorted({start, end, *(x for x in edges if start < x < end)})):

            def distance(worker: Worker, until: int = until) -> tuple[int, bytes]:
                return (min(worker.spans)[0] - until) % blocks, self._order(worker.peer)

            given = at
            for worker in sorted(self._spare, key=distance):
                holds = any(first < until and at < last for first, last in worker.spans)
                reach = self._view.shape.reach(given, until, worker.room_bytes)
                if worker.peer not in self._given and not holds and reach > given:
                    self._given[worker.peer] = given, reach
                    given = reach

    def _share(self, gaps: list[Blocks], workers: list[Worker], *, limit: int) -> list[Blocks]:
        """Give to each its part; return what is left over."""
        if not gaps or not limit:
            return gaps
        open_ = [worker for worker in workers if worker.peer not in self._given]
        open_.sort(key=lambda worker: self._order(worker.peer))
        open_ = best(self._view.shape, gaps, open_, limit)
        is_first = not any(worker.spans for worker in open_)
        within = [self._between(gap, open_) for gap in gaps] if is_first else []
        given = share(self._view.shape, gaps, open_, within=within)
        self._given.update(given)
        missing = [False] * self._view.shape.blocks
        for start, end in gaps:
            missing[start:end] = [True] * (end - start)
        for start, end in given.values():
            missing[start:end] = [False] * (end - start)
        return runs(missing)

    def _between(self, gap: Blocks, workers: list[Worker]) -> tuple[int, int]:
        """Return which workers [first, last) lie, in order, between the holders around a gap."""
        places = [self._order(worker.peer) for worker in workers]
        covering = [lease for lease in self._view.leases if lease.covers]
        before = max((self._order(x.peer) for x in covering if x.end == gap[0]), default=b"")
        after = min((self._order(x.peer) for x in covering if x.start == gap[1]), default=None)
        first = bisect_right(places, before)
        return first, len(places) if after is None else max(first, bisect_left(places, after))

    def _thin(self) -> list[Blocks]:
        """Return the blocks that should be on more nodes: all of theirs are busy, or too few.

        A second span that a node took in need counts as none: a free node relieves it.
        """
        view = self._view
        second = second_spans(view.leases)
        lasting = cover(view, without=second)
        cool = [0] * view.shape.blocks
        counts = cover(view)
        for lease in view.leases:
            if lease.covers and lease.hot_s < HOT_S:
                for block in range(lease.start, lease.end):
                    cool[block] += 1
        wanted = [
            min(REPLICAS_MAX, max(view.replicas, 1 if cool[block] else counts[block] + 1))
            for block in range(view.shape.blocks)
        ]
        return runs([have < want for have, want in zip(lasting, wanted, strict=True)])


def _unable(view: View) -> set[PeerId]:
    """Return who cannot take more: it failed, refused, leaves, or claims and claims."""
    return {
        lease.peer
        for lease in view.leases
        if lease.state in ("failed", "refused", DRAINING)
        or (lease.state == CLAIMED and lease.age_s > STALE_S and lease.peer != view.me)
    }
