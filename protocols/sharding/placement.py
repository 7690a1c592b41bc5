"""Which node holds which blocks of a model, seen by one of them: cover, pace, throughput. Pure.

Nobody leads: every node computes the same plan (plan.py) from what it sees and does its own part.
Source of the weakest window: Petals (Borzunov et al., 2023).
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from protocols.sharding.manifest import Layer
from protocols.sharding.sharing import Blocks, Shape, Worker, fits
from wire.ids import PeerId

COVERING = ("fetching", "loading", "ready")  # states of who has decided for a span
CLAIMED, DRAINING = "claimed", "draining"
HOT = 0.8  # load over which a block asks for one more node, after
HOT_S = 30.0
IDLE = 0.1  # load under which a spare node is let go, after
IDLE_S = 600.0
REPLICAS_MAX = 64
EVEN = 1.5  # speeds that are within this factor of the median count as the same: timing is noisy


@dataclass(frozen=True)
class Span:
    """Blocks [start, end) on one node."""

    peer: PeerId
    start: int
    end: int


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person told this node: blocks [start, end) or, with `end` 0, whatever is needed;
    within so many bytes (0: what the node offers); or nothing at all (`never`). `model`: the id of
    the one that was meant: any member can give its name to another.
    """

    start: Layer = 0
    end: Layer = 0
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    never: bool = False
    model: Annotated[str, Meta(max_length=64)] = ""


@dataclass(frozen=True)
class Host:
    """A node that may hold spans: what room it has for this model in all, and how fast it says
    that it is (0: unknown).
    """

    peer: PeerId
    room_bytes: int
    speed: float = 0.0


@dataclass(frozen=True)
class Lease:
    """A span as its node tells it. `age_s`: since we saw it in this state; `hot_s`, `idle_s`: for
    how long we have seen its load over `HOT`, or under `IDLE`. `since_ms`: by its node's clock.
    """

    peer: PeerId
    start: int
    end: int
    state: str
    age_s: float = 0.0
    hot_s: float = 0.0
    idle_s: float = 0.0
    decode_us: int = 0
    since_ms: int = 0

    @property
    def covers(self) -> bool:
        """Whether its node has decided for it."""
        return self.state in COVERING


@dataclass(frozen=True)
class View:
    """What a node sees of one model. `hosts` are the nodes that may take a part, perhaps `me`;
    `leases` those of living nodes, ours too. `gap_s`: for how long some block had no node; `heard`:
    who claimed something in that time.
    """

    me: PeerId
    shape: Shape
    hosts: Sequence[Host]
    leases: Sequence[Lease]
    replicas: int = 1
    nodes: int = 0  # over how many nodes at most it is split; 0: all
    wish: Wish | None = None
    gap_s: float = 0.0
    heard: frozenset[PeerId] = frozenset()


@functools.lru_cache(maxsize=4096)
def rank(model: str, peer: PeerId) -> bytes:
    """Return a node's place in the order of a model: the same for everybody, random for each."""
    return hashlib.sha256(f"{model}\0{peer}".encode()).digest()


def cover(view: View, *, without: frozenset[tuple[PeerId, int]] = frozenset()) -> list[int]:
    """Return on how many nodes each block is, leaving out spans by (peer, start)."""
    counts = [0] * view.shape.blocks
    for lease in view.leases:
        if lease.covers and (lease.peer, lease.start) not in without:
            for block in range(lease.start, min(lease.end, view.shape.blocks)):
                counts[block] += 1
    return counts


def workers_of(view: View) -> list[Worker]:
    """Return the nodes with the room that they have left and how long a block takes them."""
    pace = paces(view)
    held: dict[PeerId, list[Blocks]] = {}
    for lease in view.leases:
        if lease.covers or lease.state == DRAINING:
            held.setdefault(lease.peer, []).append((lease.start, lease.end))
    found: list[Worker] = []
    for host in view.hosts:
        spans = held.get(host.peer, [])
        taken = sum(view.shape.bytes_of(*span) for span in spans)
        blocks = sum(end - start for start, end in spans)
        room, block_s = host.room_bytes - taken, pace[host.peer]
        found.append(Worker(host.peer, room, block_s, blocks * block_s, spans))
    return found


def paces(view: View) -> dict[PeerId, float]:
    """Return the time that a block takes each node: measured, else from the speed it told.

    The unit is no matter. What is close to the median counts as the median: timing is noisy, and
    all shall see the same.
    """
    times: dict[PeerId, tuple[int, int]] = {}  # time and blocks of what is measured
    for lease in view.leases:
        if lease.state == "ready" and lease.decode_us:
            time_us, blocks = times.get(lease.peer, (0, 0))
            times[lease.peer] = time_us + lease.decode_us, blocks + lease.end - lease.start
    measured = {peer: time_us / blocks for peer, (time_us, blocks) in times.items()}
    told = {host.peer: host.speed for host in view.hosts if host.speed > 0}
    both = sorted(measured[peer] * told[peer] for peer in measured.keys() & told.keys())
    unit = both[len(both) // 2] if both else 1.0
    guessed = {peer: unit / speed for peer, speed in told.items()}
    known = {**guessed, **measured}
    median = sorted(known.values())[len(known) // 2] if known else 1.0
    found = {peer: _rounded(known.get(peer, median), median) for peer in measured}
    return found | {
        host.peer: _rounded(known.get(host.peer, median), median) for host in view.hosts
    }


def _rounded(pace: float, median: float) -> float:
    """Return a pace as a share of the median, in eighths of an octave."""
    ratio = min(64.0, max(1 / 64, pace / median))
    return 1.0 if 1 / EVEN <= ratio <= EVEN else 2 ** (round(8 * math.log2(ratio)) / 8)


def second_spans(leases: Sequence[Lease]) -> frozenset[tuple[PeerId, int]]:
    """Return the spans, by (peer, start), that nodes hold beside an older one of theirs."""
    oldest: dict[PeerId, Lease] = {}
    for lease in leases:
        known = oldest.get(lease.peer)
        if lease.covers and (known is None or _age_of(lease) < _age_of(known)):
            oldest[lease.peer] = lease
    return frozenset(
        (lease.peer, lease.start)
        for lease in leases
        if lease.covers and oldest[lease.peer].start != lease.start
    )


def _age_of(lease: Lease) -> tuple[int, int]:
    return lease.since_ms, lease.start


def rates(view: View, *, without: frozenset[tuple[PeerId, int]] = frozenset()) -> list[float]:
    """Return the throughput of each block: the sum over its nodes of 1 / time of their spans."""
    pace = paces(view)
    leases = [x for x in view.leases if x.covers and (x.peer, x.start) not in without]
    blocks: dict[PeerId, int] = {}
    for lease in leases:
        blocks[lease.peer] = blocks.get(lease.peer, 0) + lease.end - lease.start
    found = [0.0] * view.shape.blocks
    for lease in sorted(leases, key=lambda x: (x.peer, x.start)):  # so that all get the same sums
        rate = 1 / (blocks[lease.peer] * pace.get(lease.peer, 1.0))
        for block in range(lease.start, min(lease.end, view.shape.blocks)):
            found[block] += rate
    return found


def least_window(view: View, worker: Worker) -> Blocks | None:
    """Return the weakest window of as many blocks as a node has room for; None if it has none."""
    shape = view.shape
    length = next((n for n in range(shape.blocks, 0, -1) if fits(shape, n, worker.room_bytes)), 0)
    return weakest(rates(view), length) if length else None


def weakest(throughputs: Sequence[float], length: int) -> Blocks:
    """Return the window whose sorted throughputs are the lexicographic minimum; the first of them.

    Source: Petals, `block_selection.py` (the rule, not the code).
    """
    starts = range(len(throughputs) - length + 1)
    start = min(starts, key=lambda at: sorted(throughputs[at : at + length]))
    return start, start + length


def surplus(view: View) -> tuple[int, ...]:
    """Return the starts of our spans that others hold as well, and that are not needed.

    A second span goes when first spans of others, that are ready, cover it. A first one goes when
    it was idle for long and nodes before us in the order of the model cover it: those never count
    on us, so that not all go at once.
    """
    if view.wish is not None:
        return ()
    second = second_spans(view.leases)
    ready = [lease for lease in view.leases if lease.state == "ready" and lease.peer != view.me]
    first = [lease for lease in ready if (lease.peer, lease.start) not in second]
    ours = rank(view.shape.model, view.me)
    before = [lease for lease in first if rank(view.shape.model, lease.peer) < ours]
    gone: list[int] = []
    for lease in view.leases:
        if lease.peer != view.me or lease.state != "ready":
            continue
        others = first if (lease.peer, lease.start) in second else before
        is_over = others is first or lease.idle_s >= IDLE_S
        if is_over and _covered(lease, others, view.replicas):
            gone.append(lease.start)
    return tuple(gone)


def _covered(lease: Lease, others: Sequence[Lease], times: int) -> bool:
    return all(
        sum(other.start <= block < other.end for other in others) >= times
        for block in range(lease.start, lease.end)
    )


def can_leave(view: View, start: int) -> bool:
    """Whether our span from `start` on can go for another: others hold it, ready, and none of them
    that comes before us is about to go too.
    """
    ours = rank(view.shape.model, view.me)
    moving = {
        lease.peer
        for lease in view.leases
        if lease.state != "ready" and rank(view.shape.model, lease.peer) < ours
    }
    ready = [
        lease
        for lease in view.leases
        if lease.state == "ready" and lease.peer != view.me and lease.peer not in moving
    ]
    mine = [lease for lease in view.leases if lease.peer == view.me and lease.start == start]
    return all(_covered(lease, ready, max(1, view.replicas)) for lease in mine)
