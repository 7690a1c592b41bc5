"""What hostile members send instead of their contributions: for tests and for the benchmark.

Each attack sees the honest contributions of its round, the attackers' own included, as the
literature grants it, and returns the one vector that every attacker sends.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Attack = Callable[[list[Vector], int], Vector]  # honest contributions [members], attackers


def sign_flip(honest: list[Vector], attackers: int, *, factor: float = 1000.0) -> Vector:
    """Send the mean of the honest ones, turned around and much longer."""
    return np.multiply(_mean(honest), np.float32(-factor))


def alie(honest: list[Vector], attackers: int) -> Vector:
    """ "A Little Is Enough" (Baruch et al., 2019): mean - z * deviation of each coordinate.

    z is the greatest for which enough honest members are farther from the mean than the attack,
    so that with the attackers they are a majority.
    """
    members = len(honest) + attackers
    needed = members // 2 + 1 - attackers
    share = (members - attackers - needed) / (members - attackers)
    z = max(NormalDist().inv_cdf(min(max(share, 0.01), 0.99)), 0.1)
    deviation: Vector = np.std(np.stack(honest), axis=0)
    return np.subtract(_mean(honest), np.multiply(deviation, np.float32(z)))


def inner_product(honest: list[Vector], attackers: int, *, epsilon: float = 0.5) -> Vector:
    """IPM (Xie et al., 2019): -epsilon * mean, small enough to pass for honest."""
    return np.multiply(_mean(honest), np.float32(-epsilon))


def _mean(vectors: list[Vector]) -> Vector:
    mean: Vector = np.mean(np.stack(vectors), axis=0)
    return mean


ATTACKS: dict[str, Attack] = {"sign_flip": sign_flip, "alie": alie, "ipm": inner_product}
