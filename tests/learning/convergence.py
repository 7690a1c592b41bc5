"""Train the small language model by a strategy, in one process; tests and benchmarks/nats.py do."""

from collections.abc import Callable
from dataclasses import dataclass

from protocols.modelsync.codecs import codec_named
from shoal.learn.exact import weighted_mean
from shoal.learn.names import strategy_named
from shoal.learn.simulate import Simulation
from shoal.learn.strategy import Strategy, Vector
from tests.learning.toys import Shakespeare


@dataclass(frozen=True)
class Trained:
    """Held-out loss in nats of the mean of all replicas, steps made, bytes that each sent."""

    loss: float
    steps: int
    bytes_sent: int


def train(
    name: str,
    *,
    members: int,
    steps: int,
    every: int,
    codec: str = "float32",
    make_model: Callable[[], Shakespeare] = Shakespeare,
    **options: object,
) -> Trained:
    """Train for about `steps` local steps of each member."""
    wire, sent = codec_named(codec), 0

    def make() -> Strategy:
        return strategy_named(name, every=every, **options)

    def through(vector: Vector) -> Vector:
        nonlocal sent
        data = wire.encode(vector)
        sent += len(data)
        return wire.decode(data, len(vector))

    def through_mean(vector: Vector) -> Vector:
        return wire.decode(wire.encode_mean(vector), len(vector))

    replicas = {f"member-{n}": make_model() for n in range(members)}
    swarm = Simulation(
        make,
        replicas,
        rounds=steps // every,
        parts=replicas["member-0"].parts,
        through=through,
        through_mean=through_mean,
    )
    made = [finished.step for finished in swarm][-1]
    judge = make_model()
    judge.load(weighted_mean([r.flat() for r in replicas.values()], [1.0] * members))
    return Trained(judge.loss(), made, sent // members)
