"""The arithmetic of DiLoCo's outer loop, in numpy, the same bits on every machine.

Each step is a separate float32 ufunc: fused into one kernel, a multiply-add would round once
instead of twice on processors that have it, and replicas on different hardware would part ways.
Source: Douillard et al., "DiLoCo", 2023 (outer SGD with Nesterov momentum on pseudo-gradients).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

CONTRIBUTION_MAX = 1e29  # the daemon refuses values beyond it (protocols/modelsync/codecs.py)


def weighted_mean(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Average in the order given: multiply, add, and at last divide by the total weight.

    vectors: float32, one per member, in the certificate's order; those of weight 0 are skipped.
    Returns float32; zeros if all weights are zero.
    """
    mean = np.zeros_like(vectors[0])
    total = np.float32(sum(weights))
    if total == 0:
        return mean
    for vector, weight in zip(vectors, weights, strict=True):
        if weight > 0:
            np.add(mean, np.multiply(vector, np.float32(weight)), out=mean)
    return np.divide(mean, total, out=mean)


def nesterov(
    phi: Vector, momentum_buffer: Vector, mean: Vector, *, lr: float, momentum: float
) -> tuple[Vector, Vector]:
    """Take the outer step with the averaged pseudo-gradient.

    m' = momentum * m + mean;  phi' = phi - lr * (mean + momentum * m').
    Returns new (phi', m'), float32; the inputs stay as they are.
    """
    rate, decay = np.float32(lr), np.float32(momentum)
    new_momentum = np.add(np.multiply(decay, momentum_buffer), mean)
    step = np.add(mean, np.multiply(decay, new_momentum))
    return np.subtract(phi, np.multiply(rate, step)), new_momentum
