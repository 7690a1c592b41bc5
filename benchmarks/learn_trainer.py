"""A real training as a child that answers orders: `shoal.Trainer` with a small torch model.

`python -m benchmarks.learn_trainer HOME` speaks to the daemon of that state directory.
"""

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

import shoal
from benchmarks.fashion import Images
from benchmarks.orders import Answer, answer_orders, say
from shoal.learn.averaging import FedAvg
from shoal.learn.names import strategy_named
from shoal.learn.strategy import Vector
from shoal.trainer import Trainer, flatten
from tests.learning.toys import Classifier


@dataclass(kw_only=True)
class Hostile(FedAvg):
    """FedAvg that sends its contribution turned around and much longer."""

    factor: ClassVar[float] = 1.0

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See Strategy."""
        honest = super().contribution(lane, round_, state, local)
        return np.multiply(honest, np.float32(self.factor))


class Child:
    """The orders, a method each."""

    def __init__(self, home: str) -> None:
        self.client = shoal.connect(home)

    def toy(
        self, run: str, strategy: str, rounds: int, members: int, options: dict[str, int]
    ) -> Answer:
        """Train the toy classifier by a strategy; the hash of the parameters at the end."""
        replica = Classifier()
        with Trainer(
            replica.model,
            run=run,
            rounds=rounds,
            strategy=strategy_named(strategy, **options),
            wire="float32",
            min_members=members,
            client=self.client,
        ) as trainer:
            while not trainer.done:
                replica.step(trainer.member, trainer.global_step)
                trainer.step()
            member = trainer.member
        sha256 = hashlib.sha256(replica.flat().tobytes()).hexdigest()
        return {"member": member, "sha256": sha256}

    def fashion(
        self,
        run: str,
        rounds: int,
        members: int,
        every: int,
        aggregator: str,
        factor: float,
        is_verified: bool = False,
    ) -> Answer:
        """Train on Fashion-MNIST; factor: what is done to our contribution. Accuracy in percent."""
        images, round_, made = Images(), -1, 0
        recompute = partial(images.make, every=every) if is_verified else None
        Hostile.factor = factor
        with Trainer(
            images.model,
            run=run,
            rounds=rounds,
            strategy=Hostile(every=every),
            wire="float32",
            aggregator=aggregator,
            recompute=recompute,
            min_members=members,
            client=self.client,
        ) as trainer:
            while not trainer.done:
                if trainer.round != round_:  # verified: by (state, member, round) alone
                    round_, made = trainer.round, 0
                    if is_verified:
                        images.fresh()
                images.step(trainer.member, round_ * every + made)
                made += 1
                trainer.step()
            root = trainer.root
        return {"accuracy": images.accuracy(), "root": root, "size": len(flatten(images.model))}


def main(home: str) -> None:
    """Obey until the input ends."""
    torch.set_num_threads(1)
    child = Child(home)
    say({})
    answer_orders({"toy": child.toy, "fashion": child.fashion})


if __name__ == "__main__":
    main(sys.argv[1])
