"""Whether a node should hold another span of a model than it does. Pure; the rule is of Petals.

A move costs fetching and loading, and what is cached for sessions: only a clear gain is worth it,
and one that is still there once the others have moved too.
"""

import random
from dataclasses import dataclass

from protocols.sharding.placement import View, can_leave, cover, paces, rates, weakest
from protocols.sharding.sharing import Blocks
from wire.ids import PeerId

QUALITY = 0.75  # the least throughput must be under this share of what it would become
EPSILON = 1e-3  # sums of rates are rounded
ROUNDS_MAX = 10  # of everybody moving in turn; it settles in two or three


@dataclass(frozen=True)
class Move:
    """Give up the span that begins at `start` for another one."""

    start: int
    to: Blocks


@dataclass
class _Holder:
    blocks: Blocks
    rate: float


def better_span(view: View, rng: random.Random) -> Move | None:
    """Return the move that raises the least throughput of a block enough; None if there is none.

    Never away from blocks that would then have nobody. Cost: O(rounds * nodes * blocks * span).
    Source: Petals, `block_selection.py` (the rule, not the code).
    """
    mine = [lease for lease in view.leases if lease.peer == view.me]
    host = next((host for host in view.hosts if host.peer == view.me), None)
    if len(mine) != 1 or mine[0].state != "ready" or host is None or view.wish is not None:
        return None
    lease = mine[0]
    if not all(cover(view)) or not can_leave(view, lease.start):
        return None
    pace = paces(view)
    ours = _Holder((lease.start, lease.end), _rate(lease.start, lease.end, pace[view.me]))
    least_now = min(rates(view))
    throughputs = rates(view, without=frozenset({(view.me, lease.start)}))
    to = weakest(throughputs, lease.end - lease.start)
    if to == ours.blocks or view.shape.bytes_of(*to) > host.room_bytes:
        return None
    _add(throughputs, to, ours.rate)
    _settle(throughputs, _others(view, pace), rng)
    if least_now < (QUALITY - EPSILON) * min(throughputs):
        return Move(lease.start, to)
    return None


def _others(view: View, pace: dict[PeerId, float]) -> list[_Holder]:
    """Return the nodes that may react: those with one span."""
    spans: dict[PeerId, list[Blocks]] = {}
    for lease in view.leases:
        if lease.covers and lease.peer != view.me:
            spans.setdefault(lease.peer, []).append((lease.start, lease.end))
    return [
        _Holder(held[0], _rate(*held[0], pace[peer]))
        for peer, held in sorted(spans.items())
        if len(held) == 1
    ]


def _settle(throughputs: list[float], holders: list[_Holder], rng: random.Random) -> None:
    """Let everybody take the weakest window in turn, until nobody moves."""
    for _ in range(ROUNDS_MAX):
        rng.shuffle(holders)
        moved = False
        for holder in holders:
            before = holder.blocks
            _add(throughputs, before, -holder.rate)
            holder.blocks = weakest(throughputs, before[1] - before[0])
            least = min(throughputs[slice(*holder.blocks)])
            if least >= min(throughputs[slice(*before)]) - EPSILON * holder.rate:
                holder.blocks = before  # no gain: it stays
            _add(throughputs, holder.blocks, holder.rate)
            moved = moved or holder.blocks != before
        if not moved:
            return


def _add(throughputs: list[float], blocks: Blocks, rate: float) -> None:
    for block in range(*blocks):
        throughputs[block] += rate


def _rate(start: int, end: int, pace: float) -> float:
    return 1 / ((end - start) * pace)
