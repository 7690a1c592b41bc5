"""Averaging of models that have grown apart, without the loss of variance that a mean brings."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal.learn.averaging import PseudoGradient
from shoal.learn.exact import fold_sum, variance
from shoal.learn.strategy import Lane, Vector


@dataclass(kw_only=True)
class VarianceCorrected(PseudoGradient):
    """Variance-corrected averaging: the mean model, each tensor scaled to the variance it had.

    The mean of k uncorrelated models has a k-th of their variance, and signals die out in it. So
    with w̄ = mean_i w_i per tensor, and V = mean_i Var(w_i), which is averaged with the parameters:
    w ← mean(w̄) + (w̄ - mean(w̄)) · √(V / Var(w̄)).
    Replicas may begin with different parameters: the state before round 0 is zeros, and a member
    begins from its own. Among replicas alike the factor is about 1. Contribution: φ - w_i, then
    Var(w_i) of each tensor; use a wire of 16 bits or more, or the variances suffer.
    Source: Tian et al., "The vanishing variance problem in fully decentralized neural-network
    systems", 2024.
    """

    name: ClassVar[str] = "variance"

    def make_lanes(self, elements: int) -> list[Lane]:
        """See Strategy."""
        return [Lane(0, elements, elements + len(self.parts), elements)]

    def first(self, lane: int, parameters: Vector) -> Vector:
        """See the class."""
        return np.zeros_like(parameters)

    def enter(self, lane: int, round_: int, state: Vector, now: Vector) -> Vector:
        """See the class."""
        return state if round_ else now

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See the class."""
        variances = [variance(local[part.start : part.stop]) for part in self.parts]
        brought = np.concatenate([np.subtract(state, local), np.array(variances, np.float32)])
        return self.errors.add(lane, brought) if self.needs_sent else brought

    def outer(self, lane: int, state: Vector, mean: Vector, out: Vector) -> None:
        """See the class. A tensor without variance, such as a new bias, stays as the mean is."""
        count = len(state)
        np.subtract(state, mean[:count], out=out)
        for part, wanted in zip(self.parts, mean[count:], strict=True):
            tensor = out[part.start : part.stop]
            found = variance(tensor)
            if found > 0 and wanted > 0:
                factor = np.sqrt(np.divide(np.float32(wanted), found))
                centre = np.divide(fold_sum(tensor), np.float32(len(tensor)))
                np.subtract(tensor, centre, out=tensor)
                np.multiply(tensor, factor, out=tensor)
                np.add(tensor, centre, out=tensor)
