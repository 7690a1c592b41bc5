"""Convergence on a small language model: what lossy wires and late rounds cost, in nats.

Two members, 150 steps each, a round every 15. The full-size figures are in docs/results.md.
"""

from functools import cache

import pytest

from protocols.modelsync.codecs import codec_named
from shoal.learn.names import strategy_named
from shoal.learn.simulate import Simulation
from shoal.learn.strategy import Strategy, Vector
from tests.learning.toys import Shakespeare

ROUNDS = 10

pytestmark = pytest.mark.slow


@cache
def loss_of(name: str, codec: str = "float32", **options: float) -> float:
    """Train; return the held-out loss of the state that all share."""

    def make() -> Strategy:
        return strategy_named(name, every=15, **options)

    def through(vector: Vector) -> Vector:
        return wire.decode(wire.encode(vector), len(vector))

    def through_mean(vector: Vector) -> Vector:
        return wire.decode(wire.encode_mean(vector), len(vector))

    wire, replicas = codec_named(codec), {member: Shakespeare() for member in "ab"}
    swarm = Simulation(
        make,
        replicas,
        rounds=ROUNDS,
        parts=replicas["a"].parts,
        through=through,
        through_mean=through_mean,
    )
    list(swarm)
    return replicas["a"].loss()


def test_four_bits_with_error_feedback_cost_next_to_nothing() -> None:
    """Goal: within 0.005 nats of float32, at an eighth of the bytes."""
    assert loss_of("diloco") < 2.6  # from 4.4
    assert abs(loss_of("diloco", "int4", feedback=1.0) - loss_of("diloco")) <= 0.005


def test_late_rounds_with_the_published_rates_diverge_and_our_defaults_do_not() -> None:
    naive = loss_of("eager", keep=0.0, momentum=0.9)
    assert naive > loss_of("diloco") + 1
    assert loss_of("eager") < loss_of("diloco") + 0.08
