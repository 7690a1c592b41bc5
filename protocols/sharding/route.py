"""Which stages a generation goes through: the least time over (node, block). Pure.

A route may enter and leave a span at any block. Its cost is the time of one answer token: half the
measured round trip of each link around the ring (entry, stages, entry), the measured time of the
blocks used, and the prompt's share of both. Among routes that cost nearly the same, one of two at
random by cached load.
Source: Petals (shortest path over servers and blocks); Dodoor, arXiv 2510.12889 (two choices with
cached loads, counted up at once by who sends).
"""

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wire.errors import ShoalError
from wire.ids import PeerId

NEAR_SHARE = 0.1  # routes that cost up to so much more than the best are as good as it
UNKNOWN_RTT_S = 0.1  # round trip of a link that nobody has measured: as across a continent
HOP_S = 0.001  # what one more stage costs even on the same machine: framing, two wake-ups
FULL_S = 1.0  # added for a stage whose free tokens do not suffice: it may say busy
FAST_RTT_S = 0.010  # below it, all is lossless: on a busy machine loopback takes some ms, too
SENT_LOAD = 0.25  # load that a session adds which we sent since the load was told

Array = npt.NDArray[np.float64]


class NoRoute(ShoalError):
    """Some blocks of the model are on no node that is ready."""

    code = "no_route"
    hint = "`shoal map` shows which blocks are missing; `shoal serve` brings them"


@dataclass(frozen=True)
class Candidate:
    """A ready span, as the entry knows it.

    decode_s, prefill_s: measured, of the whole span: one row alone, each further row of a prompt.
    load: share of its time that it computes. delays: round trips to other nodes, the entry too,
    in seconds. penalty: its times count (1 + penalty) fold; infinite: never.
    """

    peer: PeerId
    start: int
    end: int
    decode_s: float
    prefill_s: float = 0.0
    free_tokens: int = 1 << 30
    load: float = 0.0
    delays: Mapping[PeerId, float] = field(default_factory=dict[PeerId, float])
    penalty: float = 0.0


@dataclass(frozen=True)
class RouteHop:
    """Blocks [start, end) on one node. `codec` is that of the rows that it gives."""

    peer: PeerId
    start: int
    end: int
    codec: str = "float32"
    decode_s: float = 0.0  # of these blocks, as measured there
    prefill_s: float = 0.0


def find_route(
    n_layers: int,
    candidates: Sequence[Candidate],
    *,
    entry: PeerId,
    start: int = 0,
    end: int | None = None,
    previous: PeerId | None = None,
    following: PeerId | None = None,
    tokens: int,
    prompt_tokens: int,
    without: Collection[PeerId] = (),
    rng: random.Random,
    sent_lately: Mapping[PeerId, int] | None = None,
    codec: str = "auto",
    dtype: str = "float32",
) -> list[RouteHop]:
    """Return stages for blocks [start, end), in order.

    tokens: room that the session needs, its prompt and answer together. previous, following: the
    nodes that feed the first stage and that the last one feeds, if not the entry. sent_lately:
    sessions that we opened on each node since its load was told.
    Raises NoRoute, which names the blocks that nobody has.
    Cost: O(blocks x candidates^2) in numpy: 200 x 100 take tens of milliseconds.
    """
    end = n_layers if end is None else end
    usable = [
        c
        for c in candidates
        if c.peer not in without and not math.isinf(c.penalty) and c.start < end and c.end > start
    ]
    _check_covered(start, end, usable)
    answer_tokens = max(1, tokens - prompt_tokens)
    graph = _Graph(usable, previous or entry, following or entry, start, end)
    graph.weigh(tokens, prompt_tokens / answer_tokens)
    sent = sent_lately or {}
    picked = min((graph.walk(rng) for _ in range(2)), key=lambda path: graph.load(path, sent))
    return graph.hops(picked, last=end == n_layers, codec=codec, dtype=dtype)


def choose_codec(wanted: str, dtype: str, rtt_s: float) -> str:
    """Return the codec of a link: what is wanted, or what is lossless or near it and not slow."""
    if wanted != "auto":
        return wanted
    if dtype in ("bfloat16", "float16"):
        return dtype
    return "float32" if rtt_s < FAST_RTT_S else "float16"


def kept_codec(route: Sequence[RouteHop], wanted: str, dtype: str) -> str:
    """Return the codec of links that a failover adds to a route: the one it has, or lossless."""
    if wanted != "auto":
        return wanted
    links = {hop.codec for hop in route[:-1]}
    return links.pop() if len(links) == 1 else dtype


def _check_covered(start: int, end: int, usable: list[Candidate]) -> None:
    has = [False] * (end - start)
    for candidate in usable:
        for block in range(max(start, candidate.start), min(end, candidate.end)):
            has[block - start] = True
    missing = [start + index for index, is_there in enumerate(has) if not is_there]
    if missing:
        raise NoRoute(f"no ready node has blocks {_ranges(missing)}")


def _ranges(blocks: list[int]) -> str:
    """Write blocks as `0-3, 7-8`: up to, not including, the second number, as spans are."""
    spans: list[list[int]] = []
    for block in blocks:
        if spans and spans[-1][1] == block:
            spans[-1][1] = block + 1
        else:
            spans.append([block, block + 1])
    return ", ".join(f"{first}-{last}" for first, last in spans)


class _Graph:
    """States are (candidate, block that it computes next); costs are seconds per answer token."""

    def __init__(
        self, usable: list[Candidate], source: PeerId, sink: PeerId, start: int, end: int
    ) -> None:
        self.usable, self.start, self.end = usable, start, end
        self.rtts = np.array([[_rtt(a, b) for b in usable] for a in usable])
        self.first = np.array([_rtt_to(c, source) for c in usable])
        self.last = np.array([_rtt_to(c, sink) for c in usable])

    def weigh(self, tokens: int, prompt_share: float) -> None:
        """Compute what each state costs to the end (`to_go`), from the last block to the first."""
        factor = np.array([1.0 + c.penalty for c in self.usable])
        full = np.array([FULL_S if c.free_tokens < tokens else 0.0 for c in self.usable])
        self.block_s = factor * np.array(
            [(c.decode_s + c.prefill_s * prompt_share) / (c.end - c.start) for c in self.usable]
        )
        self.enter = (self.rtts / 2 + HOP_S) * factor + full  # [from, to]
        np.fill_diagonal(self.enter, np.inf)
        self.begin = (self.first / 2 + HOP_S) * factor + full
        self.leave = self.last / 2
        self.to_go = np.full((self.end - self.start, len(self.usable)), np.inf)
        after = self.leave
        for block in range(self.end - 1, self.start - 1, -1):
            there = np.array([c.start <= block < c.end for c in self.usable])
            self.to_go[block - self.start] = np.where(there, self.block_s + after, np.inf)
            after = self._after(block)

    def _after(self, block: int) -> Array:
        """What is left for each candidate before `block`, staying or handing over there."""
        here: Array = self.to_go[block - self.start]
        handed: Array = (self.enter + here).min(axis=1)
        after: Array = np.minimum(here, handed)
        return after

    def walk(self, rng: random.Random) -> list[tuple[int, int]]:
        """Return (candidate, first block) of one route within `NEAR_SHARE` of the best."""
        costs = self.begin + self.to_go[0]
        budget = float(costs.min()) * (1 + NEAR_SHARE)
        at = _one_of(costs, budget, rng)
        spent = float(self.begin[at])
        path = [(at, self.start)]
        for block in range(self.start + 1, self.end):
            spent += float(self.block_s[at])
            here = self.to_go[block - self.start]
            costs = self.enter[at] + here
            if here[at] <= costs.min():
                continue
            following = _one_of(costs, budget - spent, rng)
            spent += float(self.enter[at, following])
            at = following
            path.append((at, block))
        return path

    def load(self, path: list[tuple[int, int]], sent: Mapping[PeerId, int]) -> float:
        """Return the load of the busiest node of a path: told, and what we sent there since."""
        peers = [self.usable[index] for index, _ in path]
        return max(c.load + SENT_LOAD * sent.get(c.peer, 0) for c in peers)

    def hops(
        self, path: list[tuple[int, int]], *, last: bool, codec: str, dtype: str
    ) -> list[RouteHop]:
        """Return the path as stages; the last stage of all gives picks."""
        found: list[RouteHop] = []
        for place, (index, start) in enumerate(path):
            candidate, end, rtt_s, is_end = self.usable[index], self.end, self.last[index], last
            if place + 1 < len(path):
                other, end = path[place + 1]
                rtt_s, is_end = self.rtts[index, other], False
            gives = "picks" if is_end else choose_codec(codec, dtype, float(rtt_s))
            share = (end - start) / (candidate.end - candidate.start)
            times = candidate.decode_s * share, candidate.prefill_s * share
            found.append(RouteHop(candidate.peer, start, end, gives, *times))
        return found


def _one_of(costs: Array, budget: float, rng: random.Random) -> int:
    """Return one index at random of those within the budget; the cheapest is, but for rounding."""
    near = np.flatnonzero(costs <= max(budget, float(costs.min())))
    return int(near[rng.randrange(len(near))])


def _rtt(a: Candidate, b: Candidate) -> float:
    """The round trip between two candidates, as either of them measured it."""
    if a.peer == b.peer:
        return 0.0
    return a.delays.get(b.peer, b.delays.get(a.peer, UNKNOWN_RTT_S))


def _rtt_to(candidate: Candidate, peer: PeerId) -> float:
    return 0.0 if candidate.peer == peer else candidate.delays.get(peer, UNKNOWN_RTT_S)
