"""Arithmetic that ends in the same bits on every machine: float32, one numpy ufunc after another.

Fused into one kernel, a multiply-add rounds once instead of twice on processors that have it, and
BLAS and numpy's own `sum` add in an order that the processor's width decides: replicas on
different hardware would part ways. So sums are folded here in an order that is written down.
Averages and root are twins of the daemon's (protocols/modelsync); tests hold them equal.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

CONTRIBUTION_MAX = 1e29  # the daemon refuses values beyond it (protocols/modelsync/codecs.py)
ROOT_TAG = b"shoal/state/1"
ROOT_CHUNK_BYTES = 1 << 20  # a state is hashed, fetched and repaired in chunks of this size
ROOT_THREADS = 4  # SHA-256 does 0.4 to 2 GB/s a core; more than four cores are the trainer's
TOPOLOGIES = ("all", "ring", "exponential", "complete", "pairs")


def weighted_mean(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Average in the order given: multiply, add, and at last divide by the total weight.

    vectors: float32, one per member, in the certificate's order; those of weight 0 are skipped.
    Returns float32; zeros if all weights are zero.
    """
    mean = np.zeros_like(vectors[0])
    total = np.float32(sum(weights))
    if total == 0:
        return mean
    scaled = np.empty_like(mean)
    for vector, weight in zip(vectors, weights, strict=True):
        if weight > 0:
            np.multiply(vector, np.float32(weight), out=scaled)
            np.add(mean, scaled, out=mean)
    return np.divide(mean, total, out=mean)


def mix_row(
    topology: str, members: Sequence[str], index: int, *, run: str, lane: int, round_: int
) -> dict[int, float]:
    """Return whose contributions member `index` gets, itself included, and with what weights.

    Rows of one topology make a doubly stochastic matrix. `members` in the certificate's order.
    Keys of the result ascend. Raises ValueError for an unknown topology.
    Source: Lian et al. 2017 (ring); Assran et al. 2019 and Ying et al. 2021 (one-peer exponential).
    """
    count = len(members)
    match topology:
        case "complete":
            return dict.fromkeys(range(count), 1 / count)
        case "ring":
            near = sorted({(index - 1) % count, index, (index + 1) % count})
            return dict.fromkeys(near, 1 / len(near))
        case "exponential":
            hops = max(1, math.ceil(math.log2(count)))
            other = (index - (1 << round_ % hops)) % count
        case "pairs":
            other = _partner(members, index, f"{run}\0{lane}\0{round_}")
        case _:
            raise ValueError(f"no such topology: {topology[:16]!r}")
    return {index: 1.0} if other == index else dict.fromkeys(sorted((index, other)), 0.5)


def _partner(members: Sequence[str], index: int, seed: str) -> int:
    """Line up by SHA-256(seed, peer) and pair neighbours; the last of an odd count is alone."""
    line = sorted(range(len(members)), key=lambda j: rank_of(seed, members[j]))
    place = line.index(index) ^ 1
    return line[place] if place < len(line) else index


def rank_of(seed: str, peer: str) -> bytes:
    """Return the place of a peer in a seeded order: lowest first."""
    return hashlib.sha256(f"{seed}\0{peer}".encode()).digest()


def sample_of(members: Sequence[str], size: int, *, run: str, lane: int, round_: int) -> list[str]:
    """Return who makes a round of a sampled run, if everybody answers; all of them for size 0."""
    if not size:
        return sorted(members)
    seed = f"{run}\0{lane}\0{round_}"
    return sorted(sorted(members, key=lambda peer: rank_of(seed, peer))[:size])


def mix(vectors: Sequence[Vector], weights: Sequence[float], row: dict[int, float]) -> Vector:
    """Return one member's mix: the mean of its row; who brings weight 0 is left out of it."""
    shares = [share if weights[j] > 0 else 0.0 for j, share in row.items()]
    return weighted_mean([vectors[j] for j in row], shares)


def nesterov(
    phi: Vector, momentum_buffer: Vector, mean: Vector, *, lr: float, momentum: float
) -> tuple[Vector, Vector]:
    """Take the outer step with the averaged pseudo-gradient.

    m' = momentum * m + mean;  phi' = phi - lr * (mean + momentum * m').
    Returns new (phi', m'), float32; the inputs stay as they are.
    Source: Douillard et al., "DiLoCo", 2023.
    """
    rate, decay = np.float32(lr), np.float32(momentum)
    new_momentum = np.add(np.multiply(decay, momentum_buffer), mean)
    step = np.multiply(decay, new_momentum)
    np.add(mean, step, out=step)
    np.multiply(rate, step, out=step)
    return np.subtract(phi, step, out=step), new_momentum


def fold_sum(values: Vector) -> Vector:
    """Sum float32 [..., n] over the last axis: halves are added until one is left.

    Returns float32 [...]; zeros for n = 0. Error grows with log n. Cost: n additions, n/2 memory.
    """
    if values.shape[-1] == 0:
        return np.zeros(values.shape[:-1], np.float32)
    while (count := values.shape[-1]) > 1:
        half = count // 2
        folded = np.add(values[..., :half], values[..., half : 2 * half])
        if count % 2:
            np.add(folded[..., :1], values[..., -1:], out=folded[..., :1])
        values = folded
    return values[..., 0]


def dot(left: Vector, right: Vector) -> np.float32:
    """Inner product of two float32 [n], by `fold_sum`."""
    return np.float32(fold_sum(np.multiply(left, right)))


def variance(values: Vector) -> np.float32:
    """Variance of a float32 [n] around its mean, by `fold_sum`; 0 for n = 0."""
    if not len(values):
        return np.float32(0)
    count = np.float32(len(values))
    centred = np.subtract(values, np.divide(fold_sum(values), count))
    return np.float32(np.divide(dot(centred, centred), count))


def state_root(vector: Vector) -> bytes:
    """Hash a state: SHA-256(tag, SHA-256 of each MiB of little-endian float32).

    vector: float32, contiguous. Cost: one pass, in threads (hashlib lets go of the interpreter).
    """
    view = vector.astype("<f4", copy=False).data.cast("B")
    chunks = [view[at : at + ROOT_CHUNK_BYTES] for at in range(0, len(view), ROOT_CHUNK_BYTES)]
    threads = min(ROOT_THREADS, os.cpu_count() or 1, len(chunks))
    if threads <= 1:
        return hashlib.sha256(ROOT_TAG + b"".join(map(_hash, chunks))).digest()
    with ThreadPoolExecutor(threads) as pool:
        return hashlib.sha256(ROOT_TAG + b"".join(pool.map(_hash, chunks))).digest()


def _hash(chunk: memoryview) -> bytes:
    return hashlib.sha256(chunk).digest()
