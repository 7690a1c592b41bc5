"""Convergence on a small language model: what lossy wires and late rounds cost, in nats.

Two members, 150 steps each, a round every 15. `python -m benchmarks.nats` has the longer ones.
"""

from functools import cache

import pytest

from tests.learning import convergence

pytestmark = pytest.mark.slow


@cache
def loss_of(name: str, codec: str = "float32", **options: float) -> float:
    return convergence.train(name, members=2, steps=150, every=15, codec=codec, **options).loss


def test_four_bits_with_error_feedback_cost_next_to_nothing() -> None:
    """Goal: within 0.005 nats of float32, at an eighth of the bytes."""
    assert loss_of("diloco") < 2.6  # from 4.4
    assert abs(loss_of("diloco", "int4", feedback=1.0) - loss_of("diloco")) <= 0.005


def test_late_rounds_with_the_published_rates_diverge_and_our_defaults_do_not() -> None:
    naive = loss_of("eager", keep=0.0, momentum=0.9)
    assert naive > loss_of("diloco") + 1
    assert loss_of("eager") < loss_of("diloco") + 0.08
