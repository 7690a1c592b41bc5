"""Matrices as a few outer products, alike on all replicas: alternating power iteration.

A matrix M (rows x cols) is projected on an orthonormal basis that all replicas hold alike: in even
rounds P = M·Q goes out, in odd ones Q = Mᵀ·P, half of what both would be. The mean of what all
sent, made orthonormal, is the basis of the next round; since M changes slowly it turns towards
the largest singular vectors of the mean. Everything is folds and separate outer products.
Source: Zhang et al., "Evaluation and optimization of gradient compression" (ACP-SGD), 2023;
after Vogels et al., "PowerSGD", 2019.
"""

import hashlib
from dataclasses import dataclass
from math import fsum  # exact; `sum` of floats is another one since Python 3.12

import numpy as np
from numpy.typing import NDArray

from shoal.learn.exact import dot, fold_sum
from shoal.learn.strategy import Part, Vector

Matrix = NDArray[np.float32]

NEARLY_GONE = np.float32(0.1)  # a vector that lost this much to those before it is cleaned twice
GONE = np.float32(1e-5)  # and one this short is rounding: a seeded one takes its place
SEED_LEVELS = 1 << 20  # integers in a seeded vector: exact in float32 on any machine


@dataclass(frozen=True)
class Factored:
    """A matrix in the lane's vector, and where its basis lies: up to `rank` vectors."""

    start: int
    rows: int
    cols: int
    rank: int
    slot: int

    def view(self, vector: Vector) -> Matrix:
        """Return the matrix in a lane's vector."""
        return vector[self.start : self.start + self.rows * self.cols].reshape(self.rows, self.cols)


class LowRank:
    """The matrices of one lane, of at most `rank` outer products; small tensors stay whole.

    parts: of the lane, with positions in the lane's vector. A tensor is a matrix of its first
    dimension by the rest, if that makes it at least twice as small.
    """

    def __init__(self, parts: list[Part], rank: int) -> None:
        self.matrices: list[Factored] = []
        self.whole: list[Part] = []
        self.basis = 0  # float32 of all bases
        for part in parts:
            rows = part.shape[0] if part.shape else 1
            cols = (part.stop - part.start) // max(1, rows)
            most = min(rank, rows, cols)
            if most * max(rows, cols) * 2 > rows * cols:
                self.whole.append(part)
                continue
            self.matrices.append(Factored(part.start, rows, cols, most, self.basis))
            self.basis += most * max(rows, cols)

    def size(self, round_: int, rank: int) -> int:
        """Return how many float32 a round's contribution has."""
        small = sum(part.stop - part.start for part in self.whole)
        return small + sum(
            min(rank, matrix.rank) * self._sides(round_, index)[0]
            for index, matrix in enumerate(self.matrices)
        )

    def project(self, round_: int, rank: int, basis: Vector, vector: Vector) -> Vector:
        """Return what is sent of a lane's vector: the small tensors, then the factors."""
        out = np.empty(self.size(round_, rank), np.float32)
        at = self._copy_whole(vector, out, pack=True)
        for index, matrix in enumerate(self.matrices):
            directions = self._basis(round_, rank, index, basis)
            seen = self._turned(round_, index, matrix.view(vector))
            for direction in directions:
                out[at : at + len(seen)] = fold_sum(np.multiply(seen, direction))
                at += len(seen)
        return out

    def restore(self, round_: int, rank: int, basis: Vector, sent: Vector, elements: int) -> Vector:
        """Return the lane's vector that a contribution, or the mean of some, stands for."""
        vector = np.zeros(elements, np.float32)
        self._copy_whole(vector, sent, pack=False)
        for index, factors in enumerate(self._factors(round_, rank, sent)):
            target = self._turned(round_, index, self.matrices[index].view(vector))
            directions = self._basis(round_, rank, index, basis)
            for factor, direction in zip(factors, directions, strict=True):
                np.add(target, np.multiply(factor[:, None], direction), out=target)
        return vector

    def next_basis(self, round_: int, rank: int, mean: Vector | None, wanted: int) -> Vector:
        """Return the bases of round + 1, `wanted` vectors each, from the mean of this round.

        Without a mean (before the first round): seeded ones. round_ is then -1.
        """
        out = np.zeros(self.basis, np.float32)
        factors = None if mean is None else self._factors(round_, rank, mean)
        for index in range(len(self.matrices)):
            target = self._basis(round_ + 1, wanted, index, out)
            given = [] if factors is None else list(factors[index])
            for k in range(len(target)):
                seed = f"{round_}:{index}:{k}"
                vector = given[k] if k < len(given) else _seeded(len(target[k]), seed)
                target[k] = _cleaned(vector, target[:k], seed)
        return out

    def effective_rank(self, round_: int, rank: int, mean: Vector) -> float:
        """Return by how many directions the mean is really spread, on average over its matrices.

        The participation ratio (Σ σ²)² / Σ σ⁴, from the Gram matrix of the factors, for the other
        side's basis is orthonormal. 0 if there is no matrix that is not zero.
        """
        found: list[float] = []
        for factors in self._factors(round_, rank, mean):
            largest = np.abs(factors).max(initial=0)
            if largest == 0:
                continue
            rows = np.divide(factors, largest)
            gram = [[float(dot(left, right)) for right in rows] for left in rows]
            trace = fsum(gram[k][k] for k in range(len(rows)))
            found.append(trace * trace / fsum(value * value for row in gram for value in row))
        return fsum(found) / len(found) if found else 0.0

    # -- views -------------------------------------------------------------------------------

    def _sides(self, round_: int, index: int) -> tuple[int, int]:
        """Lengths of what is sent and of a basis vector. Neighbours take turns: sizes stay even."""
        matrix = self.matrices[index]
        if (round_ + index) % 2 == 0:
            return matrix.rows, matrix.cols
        return matrix.cols, matrix.rows

    def _turned(self, round_: int, index: int, matrix: Matrix) -> Matrix:
        return matrix if (round_ + index) % 2 == 0 else matrix.T

    def _basis(self, round_: int, rank: int, index: int, basis: Vector) -> Matrix:
        matrix, (_, length) = self.matrices[index], self._sides(round_, index)
        count = min(rank, matrix.rank)
        return basis[matrix.slot : matrix.slot + count * length].reshape(count, length)

    def _factors(self, round_: int, rank: int, sent: Vector) -> list[Matrix]:
        at = sum(part.stop - part.start for part in self.whole)
        found: list[Matrix] = []
        for index, matrix in enumerate(self.matrices):
            length, count = self._sides(round_, index)[0], min(rank, matrix.rank)
            found.append(sent[at : at + count * length].reshape(count, length))
            at += count * length
        return found

    def _copy_whole(self, vector: Vector, packed: Vector, *, pack: bool) -> int:
        at = 0
        for part in self.whole:
            size = part.stop - part.start
            if pack:
                packed[at : at + size] = vector[part.start : part.stop]
            else:
                vector[part.start : part.stop] = packed[at : at + size]
            at += size
        return at


def _cleaned(vector: Vector, before: Matrix, seed: str) -> Vector:
    """Return `vector` of length 1 and at right angles to all `before` (modified Gram–Schmidt)."""
    for attempt in range(len(vector) + 1):
        largest = np.abs(vector).max(initial=0)
        if largest > 0:
            vector = np.divide(vector, largest)  # or squares of large values would overflow
            length = np.sqrt(dot(vector, vector))
            vector, left = _rid_of(vector, before)
            if left < np.multiply(length, NEARLY_GONE):
                vector, left = _rid_of(vector, before)
            if left > np.multiply(length, GONE):
                return np.divide(vector, left)
        vector = _seeded(len(vector), f"{seed}:{attempt}")
    return vector  # more vectors than dimensions, which `rank` does not allow


def _rid_of(vector: Vector, before: Matrix) -> tuple[Vector, np.float32]:
    for other in before:
        vector = np.subtract(vector, np.multiply(other, dot(other, vector)))
    return vector, np.float32(np.sqrt(dot(vector, vector)))


def _seeded(length: int, seed: str) -> Vector:
    """Whole numbers out of a hash: numpy may change its generators from version to version."""
    stream = hashlib.shake_256(seed.encode()).digest(4 * length)
    levels = np.frombuffer(stream, dtype="<u4") % np.uint32(2 * SEED_LEVELS)
    return np.subtract(levels.astype(np.float32), np.float32(SEED_LEVELS))
