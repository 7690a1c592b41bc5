"""Aggregators: what the owner of a shard makes of the members' contributions to it.

`mean` weighs members by their samples and is bit-identical wherever it is computed, in chunks
or whole. The others are robust: a member that lies cannot move them far, so each member counts
once, whatever weight it claims (a liar would claim the greatest). Members of weight 0 bring
nothing and are skipped by all. A robust result is made by one owner and encoded once, so the
dot products of `clip` and `flag` may be in float64, in whatever order.

None can be trusted when half of the members or more are hostile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from protocols.modelsync.vectors import VALUE_MAX, Vector
from wire.errors import UsageError

CLIP_ROUNDS_MAX = 20  # of centered clipping (BTARD's code)
CLIP_EPSILON = 1e-6  # a step shorter than this times tau ends it (BTARD's code)
FLAG_ROUNDS = 20  # of reweighting; the coefficients of 4 to 64 members change by < 1e-3 after 10
_FLAG_EPSILON = 1e-6  # keeps the weight of a vector that lies in the subspace finite
_RANK_TOLERANCE = 1e-12  # of the greatest eigenvalue: below is rounding, not a direction
_AT_ONCE = 1 << 18  # elements averaged at a time: a chunk; measured best, less costs more calls
_ZERO = np.float32(0)
_SLICE = 1 << 16  # elements of all vectors worked on at a time: 64 of them in float64 are 32 MiB


@dataclass(frozen=True)
class Aggregator:
    """One way to make one vector of several. Not `is_chunked`: it must see a whole shard."""

    name: str
    is_chunked: bool
    combine: Callable[[list[Vector]], Vector] | None = None  # None: the weighted mean

    def __call__(
        self, vectors: list[Vector], weights: list[float], out: Vector | None = None
    ) -> Vector:
        """Combine vectors of one length; those of weight 0 are skipped. Zeros if none is left.

        out: where it is put, which may be one of `vectors`; None: in new memory.
        """
        if self.combine is None:
            return weighted_mean(vectors, weights, out)
        kept = [vector for vector, weight in zip(vectors, weights, strict=True) if weight > 0]
        result = self.combine(kept) if kept else np.zeros_like(vectors[0])
        if out is None:
            return result
        np.copyto(out, result)
        return out


def aggregator_named(name: str) -> Aggregator:
    """Return `mean`, `median`, `trimmed:trim=0.25`, `clip:tau=auto` or `flag`.

    A parameter may be left out, which gives what stands here. Raises UsageError for other names.
    """
    kind, _, argument = name.partition(":")
    key, _, value = argument.partition("=")
    if name == "mean":
        return Aggregator(name, is_chunked=True)
    if name == "median":
        return Aggregator(name, is_chunked=True, combine=coordinate_median)
    if name == "flag":
        return Aggregator(name, is_chunked=False, combine=flag)
    if kind == "trimmed" and (key == "trim" or not argument):
        trim = _number(name, value or "0.25", below=0.5)
        return Aggregator(name, is_chunked=True, combine=partial(trimmed_mean, trim=trim))
    if kind == "clip" and (key == "tau" or not argument):
        tau = None if value in {"", "auto"} else _number(name, value, below=1e30)
        return Aggregator(name, is_chunked=False, combine=partial(centered_clip, tau=tau))
    raise _unknown(name)


def weighted_mean(vectors: list[Vector], weights: list[float], out: Vector | None = None) -> Vector:
    """Average in the order given, float32, with separate multiply, add and divide.

    Vectors of weight 0 are skipped. All weights zero gives zeros: nobody had anything to say.
    out: for the result; it may be one of `vectors`.
    """
    total = np.float32(sum(weights))
    mean = np.empty_like(vectors[0]) if out is None else out
    if total == 0:
        mean.fill(0)
        return mean
    (first, its_weight), *rest = (
        (v, np.float32(w)) for v, w in zip(vectors, weights, strict=True) if w > 0
    )
    scratch = np.empty((2, min(len(mean), _AT_ONCE)), dtype=np.float32)
    for at in range(0, len(mean), _AT_ONCE):
        part = slice(at, min(at + _AT_ONCE, len(mean)))
        added, scaled = scratch[:, : part.stop - at]
        np.multiply(first[part], its_weight, out=added)
        np.add(added, _ZERO, out=added)  # a sum begins with 0: -0 becomes that
        for vector, weight in rest:
            np.multiply(vector[part], weight, out=scaled)
            np.add(added, scaled, out=added)
        np.divide(added, total, out=mean[part])
    return mean


def coordinate_median(vectors: list[Vector]) -> Vector:
    """Return the median of each coordinate; of an even number, the mean of the two in the middle.

    Source: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018.
    """
    return trimmed_mean(vectors, trim=0.5)


def trimmed_mean(vectors: list[Vector], *, trim: float) -> Vector:
    """Average each coordinate without its extremes.

    trim: share of members dropped at each end, rounded up; one or two always stay. Every member
    that is left counts once. Cost: members^2 / 2 comparisons of the whole vector.
    Source: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018.
    """
    count = len(vectors)
    dropped = min(int(np.ceil(trim * count)), (count - 1) // 2)
    out = np.empty_like(vectors[0])
    for part in _slices(len(out)):
        rows = _ordered([vector[part] for vector in vectors])
        kept = rows[dropped : count - dropped]
        out[part] = weighted_mean(kept, [1.0] * len(kept))
    return out


def centered_clip(vectors: list[Vector], *, tau: float | None = None) -> Vector:
    """From the coordinate median, step to the mean of the vectors clipped to radius tau around it.

    v += mean((x_i - v) * min(1, tau / |x_i - v|)) until it stands. tau None: the (lower) median of
    the distances to the first v, so that half of the vectors are not clipped at first. Every
    member counts once. v stays a combination of the median and the vectors, so that all
    distances follow from one matrix of dot products: O(n^2 d) once, O(n^2) a round.
    Source: Karimireddy et al., ICML 2021; Gorbunov et al. (BTARD), ICML 2022.
    """
    count, center = len(vectors), coordinate_median(vectors)
    gram = _dots(vectors, center)
    lengths = np.sqrt(np.diag(gram))
    radius = float(np.sort(lengths)[(count - 1) // 2]) if tau is None else tau
    moved = np.zeros(count)  # v = center + sum of moved_i (x_i - center)
    for _ in range(CLIP_ROUNDS_MAX):
        cross = gram @ moved
        squares = np.diag(gram) - 2 * cross + moved @ cross
        distances = np.sqrt(np.maximum(squares, 0))
        pull = np.minimum(1, radius / np.maximum(distances, np.finfo(float).tiny)) / count
        step = pull - pull.sum() * moved
        moved += step
        if step @ gram @ step <= (CLIP_EPSILON * radius) ** 2:
            break
    return _combined(vectors, moved, center)


def flag(vectors: list[Vector]) -> Vector:
    """Average the projections of the vectors' directions onto the subspace that most agree on.

    The subspace, of ceil((n + 1) / 2) dimensions, minimises the sum of sines between it and the
    directions, by iteratively reweighted least squares; the paper's pairwise regulariser is left
    out. It is spanned by the vectors, so all is arithmetic on their n x n dot products. The
    result is scaled by the median length, as directions have none. Every member counts once.
    Source: Almasi et al., "Flag Aggregator", ICLR 2024.
    """
    count = len(vectors)
    gram = _dots(vectors)
    lengths = np.sqrt(np.diag(gram))
    units = np.divide(1, lengths, out=np.zeros(count), where=lengths > 0)
    cosines = gram * units[:, None] * units
    weights = np.ones(count)
    projection = np.zeros((count, count))
    for _ in range(FLAG_ROUNDS):
        roots = np.sqrt(weights)
        values, spans = np.linalg.eigh(cosines * roots[:, None] * roots)
        values, spans = values[-(count // 2 + 1) :], spans[:, -(count // 2 + 1) :]
        is_real = values > _RANK_TOLERANCE * max(values[-1], np.finfo(float).tiny)
        basis = roots[:, None] * spans[:, is_real] / np.sqrt(values[is_real])
        projection = basis @ (basis.T @ cosines)  # column i: what of the directions makes i
        inside = np.einsum("ij,ij->j", projection, cosines)  # squared cosine to the subspace
        weights = 1 / np.sqrt(np.maximum(1 - inside, 0) + _FLAG_EPSILON)
    scale = float(np.median(lengths))
    return _combined(vectors, projection.mean(axis=1) * units * scale)


def _slices(elements: int) -> Iterator[slice]:
    return (slice(start, start + _SLICE) for start in range(0, elements, _SLICE))


def _ordered(rows: list[Vector]) -> list[Vector]:
    """Sort each coordinate over the rows, by odd-even transposition: whole rows at a time."""
    rows = [row.copy() for row in rows]
    for turn in range(len(rows)):
        for low in range(turn % 2, len(rows) - 1, 2):
            less = np.minimum(rows[low], rows[low + 1])
            np.maximum(rows[low], rows[low + 1], out=rows[low + 1])
            rows[low] = less
    return rows


def _dots(vectors: list[Vector], center: Vector | None = None) -> NDArray[np.float64]:
    """Return the dot products of all pairs, less `center` if given: [n, n], float64."""
    gram = np.zeros((len(vectors), len(vectors)))
    for part in _slices(len(vectors[0])):
        rows = np.stack([vector[part] for vector in vectors]).astype(np.float64)
        if center is not None:
            rows -= center[part]
        gram += rows @ rows.T
    return gram


def _combined(
    vectors: list[Vector], factors: NDArray[np.float64], center: Vector | None = None
) -> Vector:
    """Return the sum of factors times vectors; with a center, of what differs from it, plus it."""
    out = np.empty_like(vectors[0])
    for part in _slices(len(out)):
        rows = np.stack([vector[part] for vector in vectors]).astype(np.float64)
        if center is None:
            out[part] = factors @ rows
        else:
            out[part] = center[part] + factors @ (rows - center[part])
    return np.clip(out, -np.float32(VALUE_MAX), np.float32(VALUE_MAX), out=out)


def _number(name: str, text: str, *, below: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _unknown(name) from None
    if not 0 < number < below:
        raise _unknown(name)
    return number


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"no such aggregator: {name[:32]!r}",
        hint="mean, median, trimmed:trim=0.25, clip:tau=auto or flag",
    )
