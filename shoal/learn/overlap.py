"""DiLoCo whose rounds run while training goes on."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np

from shoal.learn.averaging import DiLoCo, PseudoGradient
from shoal.learn.strategy import LANES_MAX, Lane, Turn, Vector, require

GRAIN = 4096  # elements: fragments begin at multiples, as blocks of the codecs do


@dataclass(kw_only=True)
class EagerDiLoCo(DiLoCo):
    """Eager DiLoCo: rounds take a whole interval; what a member moves meanwhile stays with it.

    Round k is of interval k's movement Δ_i and ends with interval k + 1. The state then makes
    DiLoCo's step with the mean, so it is one interval old; the replica goes on from
    θ_i ← φ - keep · (what it has moved since): its own delta is fresh, the others' one round old.
    keep = 0 is a naive delay. Published: own delta at 1/n and rates 0.7, 0.9; over 12 rounds on
    Shakespeare (batches of 16) that ends at 3.02 nats, with 0.7, 0.5 at 2.51, and a naive delay
    at 5.21 and 2.79; DiLoCo without delay at 2.22. The defaults here, keep = 1, end at 2.27.
    Source: Kale et al., "Eager updates for overlapped communication and computation in DiLoCo",
    2025; all of the own movement is kept as in CoCoD-SGD, Shen et al. 2019.
    """

    keep: float = 1.0

    name: ClassVar[str] = "eager"
    _anchors: dict[int, Vector] = field(init=False, default_factory=dict[int, Vector])
    _moved: dict[int, Vector] = field(init=False, default_factory=dict[int, Vector])
    _lost: set[int] = field(init=False, default_factory=set[int])

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(0.0 <= self.keep <= 1.0, f"keep is from 0 to 1, not {self.keep}")

    def enter(self, lane: int, round_: int, state: Vector, now: Vector) -> Vector:
        """See Strategy."""
        return self._go_on_from(lane, state[: self.lanes[lane].elements])

    def ends(self, lane: int, round_: int, begun: int) -> int:
        """See Strategy: nothing is left to do while the last round runs."""
        return begun if round_ + 1 == self.rounds else begun + self.every

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See Strategy: what we moved since the last contribution, other than by rounds."""
        delta = self.take(lane, local)
        return self.errors.add(lane, delta) if self.needs_sent else delta

    def finish(self, lane: int, turn: Turn, state: Vector, out: Vector) -> None:
        """See Strategy."""
        super().finish(lane, turn, state, out)
        if not turn.contributed:  # our parameters are not finite, or were not asked for
            self._lost.add(lane)

    def local(self, lane: int, state: Vector, now: Vector) -> Vector:
        """See the class."""
        phi = state[: self.lanes[lane].elements]
        if lane in self._lost:
            return self._go_on_from(lane, phi)
        moved = self._move(lane, now)
        kept = np.multiply(moved, np.float32(self.keep))
        self._anchors[lane] = np.subtract(phi, kept, out=kept)
        return kept

    def take(self, lane: int, local: Vector) -> Vector:
        """Return what is to be contributed, and count anew from here."""
        delta = self._move(lane, local)
        self._anchors[lane], self._moved[lane] = local.copy(), np.zeros_like(delta)
        return delta

    def _move(self, lane: int, now: Vector) -> Vector:
        """Add what the model has moved since the anchor to what it had moved before."""
        step = np.subtract(self._anchors[lane], now)
        self._moved[lane] = np.add(self._moved[lane], step, out=step)
        return step

    def _go_on_from(self, lane: int, phi: Vector) -> Vector:
        self._lost.discard(lane)
        self._anchors[lane], self._moved[lane] = phi.copy(), np.zeros_like(phi)
        return phi


@dataclass(kw_only=True)
class StreamingDiLoCo(EagerDiLoCo):
    """Streaming DiLoCo: fragments of the model in rounds of their own, staggered, τ steps long.

    Fragment p begins a round every H steps, H/P after the fragment before it, and ends it `delay`
    (τ) steps later. So traffic is even, its peak 1/P of DiLoCo's, and hidden behind τ steps.
    Published: then θ_p ← (1 - α) φ_p + α θ_p, α = 0.5 (`mixing`), τ = 5 with H = 100. The default,
    mixing = 0, keeps what the member moved in these τ steps, as EagerDiLoCo does: with τ a third
    of H it costs 0.014 nats on Shakespeare where mixing by a half costs 0.045.
    Source: Douillard et al., "Streaming DiLoCo with overlapping communication", 2025.
    """

    fragments: int = 4
    delay: int = 5
    mixing: float = 0.0

    name: ClassVar[str] = "streaming"

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(1 <= self.fragments <= LANES_MAX, f"fragments are from 1 to {LANES_MAX}")
        require(0 <= self.delay <= self.every, f"delay is from 0 to every ({self.every})")
        require(0.0 <= self.mixing < 1.0, f"mixing is from 0 to below 1, not {self.mixing}")

    def make_lanes(self, elements: int) -> list[Lane]:
        """Cut evenly, at multiples of GRAIN if the model is large enough."""
        count = min(self.fragments, elements)
        grain = GRAIN if elements >= GRAIN * count else 1
        cuts = [elements * p // count // grain * grain for p in range(count)] + [elements]
        return [
            Lane(start, stop, stop - start, 2 * (stop - start)) for start, stop in pairwise(cuts)
        ]

    def begins(self, lane: int, round_: int, last: int) -> int:
        """See Strategy: the first rounds are staggered, and so are all that follow."""
        if round_ == 0:
            return max(1, self.every * (lane + 1) // len(self.lanes))
        return last + self.every

    def ends(self, lane: int, round_: int, begun: int) -> int:
        """See Strategy."""
        return begun + self.delay

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See Strategy; with mixing it is φ - θ, what was mixed in with it."""
        if not self.mixing:
            return super().contribution(lane, round_, state, local)
        return PseudoGradient.contribution(self, lane, round_, state, local)

    def local(self, lane: int, state: Vector, now: Vector) -> Vector:
        """See the class. Without delay nothing is mixed: that would undo part of the round."""
        if not self.mixing:
            return super().local(lane, state, now)
        if not self.delay or lane in self._lost:
            return self._go_on_from(lane, state[: len(now)])
        kept = np.multiply(now, np.float32(self.mixing))
        phi = np.multiply(state[: len(now)], np.float32(1 - self.mixing))
        return np.add(phi, kept, out=kept)
