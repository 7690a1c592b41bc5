"""DiLoCoX: outer optimisers by pipeline stage, one step late, low rank that follows the run."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from shoal.learn.exact import nesterov
from shoal.learn.lowrank import LowRank
from shoal.learn.overlap import EagerDiLoCo
from shoal.learn.strategy import LANES_MAX, Lane, Part, Turn, Vector, require

WINDOW = 5  # rounds over which the effective rank is averaged
MARGIN = 2.0  # the rank is this much more than the effective rank, so that it can grow again
TAIL = 2  # float32 at the end of a state: rank, average of the effective rank


@dataclass(kw_only=True)
class DiLoCoX(EagerDiLoCo):
    """DiLoCoX: each stage is a lane with an outer optimiser of its own; contributions are low rank.

    M = Δ_i + e_i;  C(M) of rank r (`lowrank.py`; the wire makes int4 of it);  e_i ← M - C(M);
    φ, m ← Nesterov(φ, m, mean C(M)), one interval late as in EagerDiLoCo; what the others have
    not got stays with the member: θ_i ← φ - e_i - (what it has moved since). The rank is twice the
    effective rank of the averaged delta, over 5 rounds, at most `rank`; H follows in proportion,
    so that the link stays as busy: H_t = H · r_t / rank. Bases and rank are part of the state.
    Defaults: rank 8, feedback 1. Without e_i in the model it learns anew what it owes already, and
    that counts twice (Shakespeare, 10 rounds: 2.74 nats instead of 2.60). The paper's workers hold
    one stage each; here a member holds all lanes: what is saved is traffic, not memory.
    Source: Qi et al., "DiLoCoX", 2025, the exact rule of adaption is ours; e_i in the model as in
    Xie et al., "CSER: communication-efficient SGD with error reset", 2020.
    """

    feedback: float = 1.0
    stages: int = 2
    rank: int = 8
    adapt: bool = True

    name: ClassVar[str] = "dilocox"
    _low: list[LowRank] = field(init=False, default_factory=list[LowRank])
    _shares: dict[int, float] = field(init=False, default_factory=dict[int, float])

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(1 <= self.stages <= LANES_MAX, f"stages are from 1 to {LANES_MAX}")
        require(1 <= self.rank <= 256, f"rank is from 1 to 256, not {self.rank}")

    def make_lanes(self, elements: int) -> list[Lane]:
        """See Strategy."""
        lanes: list[Lane] = []
        self._low.clear()
        for parts in _stages(self.parts, self.stages):
            start, stop = parts[0].start, parts[-1].stop
            inside = [Part(p.name, p.shape, p.start - start, p.stop - start) for p in parts]
            low = LowRank(inside, self.rank)
            self._low.append(low)
            most = max(1, low.size(0, self.rank), low.size(1, self.rank))
            lanes.append(Lane(start, stop, most, 2 * (stop - start) + low.basis + TAIL))
        return lanes

    def first(self, lane: int, parameters: Vector) -> Vector:
        """See Strategy."""
        state = super().first(lane, parameters)
        basis, tail = self._views(lane, state)
        basis[:] = self._low[lane].next_basis(-1, self.rank, None, self.rank)
        tail[:] = self.rank, self.rank / MARGIN
        return state

    def enter(self, lane: int, round_: int, state: Vector, now: Vector) -> Vector:
        """See Strategy."""
        self._shares[lane] = self._rank(lane, state) / self.rank
        return super().enter(lane, round_, state, now)

    def begins(self, lane: int, round_: int, last: int) -> int:
        """See Strategy; `every` is H of the full rank."""
        return last + self._interval(lane)

    def ends(self, lane: int, round_: int, begun: int) -> int:
        """See Strategy."""
        return begun if round_ + 1 == self.rounds else begun + self._interval(lane)

    def size(self, lane: int, round_: int, state: Vector) -> int:
        """See Strategy: what this round's rank needs."""
        return max(1, self._low[lane].size(round_, self._rank(lane, state)))

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See the class."""
        delta = self.take(lane, local)
        if self.needs_sent:
            delta = self.errors.add(lane, delta)
        basis, _ = self._views(lane, state)
        return self._low[lane].project(round_, self._rank(lane, state), basis, delta)

    def finish(self, lane: int, turn: Turn, state: Vector, out: Vector) -> None:
        """See the class."""
        low, rank, n = self._low[lane], self._rank(lane, state), self.lanes[lane].elements
        basis, tail = self._views(lane, state)
        mean = low.restore(turn.round, rank, basis, turn.value, n)
        rates = {"lr": self.lr, "momentum": self.momentum}
        out[:n], out[n : 2 * n] = nesterov(state[:n], state[n : 2 * n], mean, **rates)
        wanted, average = rank, float(tail[1])
        if self.adapt and low.matrices:
            found = low.effective_rank(turn.round, rank, turn.value)
            average += (found - average) / WINDOW
            wanted = min(self.rank, max(1, math.ceil(MARGIN * average)))
        new_basis, new_tail = self._views(lane, out)
        new_basis[:] = low.next_basis(turn.round, rank, turn.value, wanted)
        new_tail[:] = wanted, average
        self._shares[lane] = wanted / self.rank
        self._settle(lane, turn, basis, rank)

    def _settle(self, lane: int, turn: Turn, basis: Vector, rank: int) -> None:
        if not turn.contributed:
            self._lost.add(lane)
        elif self.needs_sent:
            assert turn.sent is not None, "a strategy with feedback is told what was sent"
            n = self.lanes[lane].elements
            self.errors.settle(lane, self._low[lane].restore(turn.round, rank, basis, turn.sent, n))

    def local(self, lane: int, state: Vector, now: Vector) -> Vector:
        """See the class."""
        owed = None if lane in self._lost else self.errors.owed(lane)
        model = super().local(lane, state, now)
        if owed is not None:
            model = self._anchors[lane] = np.subtract(model, owed)
        return model

    def restore(self, own: dict[str, Vector]) -> None:
        """See Strategy: residuals are of the lane's parameters, not of what is sent."""
        self.errors.restore(own, {n: lane.elements for n, lane in enumerate(self.lanes)})

    def _views(self, lane: int, state: Vector) -> tuple[Vector, Vector]:
        return state[2 * self.lanes[lane].elements : -TAIL], state[-TAIL:]

    def _rank(self, lane: int, state: Vector) -> int:
        return min(self.rank, max(1, int(state[-TAIL])))

    def _interval(self, lane: int) -> int:
        return max(1, math.ceil(self.every * self._shares.get(lane, 1.0)))


def _stages(parts: list[Part], count: int) -> list[list[Part]]:
    """Cut the tensors into at most `count` runs of about equal size."""
    runs: list[list[Part]] = []
    elements = parts[-1].stop
    for part in parts:
        begun = len(runs) * elements // count  # where the next run may begin
        if not runs or (part.start >= begun and len(runs) < count):
            runs.append([])
        runs[-1].append(part)
    return runs
