"""Members mix parameters with neighbours: no replica is like another."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from shoal.learn.exact import TOPOLOGIES
from shoal.learn.strategy import Lane, Strategy, Turn, Vector, require


@dataclass(kw_only=True)
class DecentralizedSGD(Strategy):
    """Decentralised SGD, mixing while the gradient is computed: x_i' = Σ_j w_ij x_j - u(g(x_i)).

    A round begins before a local step and ends after it (`delay` steps later), so the gradient is
    taken at the un-mixed x_i and the update u, whatever the user's optimizer makes of it, is
    applied to the mix. delay = 0 mixes after the step and waits. State: what the mix gave.
    topology: ring, exponential (default: two messages a member, mixed exactly after log2 n
    rounds if n is a power of two) or complete.
    Sources: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", 2017;
    Ying et al., "Exponential graph is provably efficient", 2021.
    """

    every: int = 1
    delay: int = 1
    graph: str = "exponential"

    name: ClassVar[str] = "dsgd"
    replicas_differ: ClassVar[bool] = True
    _begun: dict[int, Vector] = field(init=False, default_factory=dict[int, Vector])

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(0 <= self.delay <= self.every, "delay is from 0 to `every` steps")
        graphs = TOPOLOGIES[1:]
        require(
            self.graph in graphs, f"graph is one of {', '.join(graphs)}, not {self.graph!r:.40}"
        )

    def make_lanes(self, elements: int) -> list[Lane]:
        """See Strategy."""
        return [Lane(0, elements, elements, elements)]

    def first(self, lane: int, parameters: Vector) -> Vector:
        """See Strategy."""
        return parameters.copy()

    def enter(self, lane: int, round_: int, state: Vector, now: Vector) -> Vector:
        """See Strategy."""
        self._begun.pop(lane, None)
        return state

    def topology(self, lane: int, round_: int) -> str:
        """See Strategy."""
        return self.graph

    def ends(self, lane: int, round_: int, begun: int) -> int:
        """See Strategy."""
        return begun + self.delay

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See Strategy: the parameters, before the step that the round overlaps."""
        self._begun[lane] = local.copy()
        return local

    def finish(self, lane: int, turn: Turn, state: Vector, out: Vector) -> None:
        """See Strategy."""
        out[:] = turn.value
        if not turn.contributed:  # our own were not finite, say: go on from the neighbours' mix
            self._begun.pop(lane, None)

    def local(self, lane: int, state: Vector, now: Vector) -> Vector:
        """See Strategy: the mix, and what we have moved while it was made."""
        begun = self._begun.pop(lane, None)
        if begun is None or not self.delay:
            return state
        moved = np.subtract(now, begun, out=begun)
        return np.add(state, moved, out=moved)

    def leave(self, lane: int, state: Vector, now: Vector) -> Vector:
        """See Strategy: here every replica keeps its own."""
        return now


@dataclass(kw_only=True)
class DecentralizedAdam(DecentralizedSGD):
    """Decentralised Adam with overlap: x_i' = Σ_j w_ij x_j - α Adam(g(x_i)).

    The exchange is that of DecentralizedSGD; use it with `shoal.learn_torch.AccumAdamW`, whose
    moments see means of several gradients, as one large batch would give them.
    Source: Wang et al., "From promise to practice: realizing high-performance decentralized
    training", 2025.
    """

    name: ClassVar[str] = "dadam"


@dataclass(kw_only=True)
class FinalMerge(DecentralizedSGD):
    """A single merging suffices: sparse random pairs while training, one mean of all at the end.

    x_i, x_j ← (x_i + x_j) / 2 for seeded pairs every `every` steps; after the last round every
    replica has mean_i x_i, as good as a server's run. Published: communication is worth most late.
    Source: "On the surprising effectiveness of a single global merging in decentralized
    learning", 2025.
    """

    every: int = 50
    delay: int = 0
    graph: str = "pairs"

    name: ClassVar[str] = "finalmerge"

    def topology(self, lane: int, round_: int) -> str:
        """See Strategy: the last round is of all."""
        return "all" if round_ == self.rounds - 1 else self.graph
