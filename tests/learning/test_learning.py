"""Every strategy learns: a second or so each, of a small classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from shoal.learn.exact import variance
from shoal.learn.names import STRATEGIES, strategy_named
from shoal.learn.simulate import Simulation
from shoal.learn.strategy import Strategy, Vector
from shoal.learn.variance import VarianceCorrected
from shoal.learn_torch import AccumAdamW
from tests.learning.toys import Classifier

ROUNDS = {"dsgd": 120, "dadam": 120, "finalmerge": 6}
EVERY = {"dsgd": 1, "dadam": 1, "finalmerge": 20}


def train(name: str, replicas: dict[str, Classifier]) -> None:
    def make() -> Strategy:
        return strategy_named(name, every=EVERY.get(name, 10))

    parts = replicas["a"].parts
    list(Simulation(make, replicas, rounds=ROUNDS.get(name, 12), parts=parts))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_lowers_the_loss(name: str) -> None:
    replicas = {member: Classifier() for member in "abc"}
    before = replicas["a"].loss()
    train(name, replicas)
    assert before > 2.2  # ln 10 = 2.3: a guess
    assert all(replica.loss() < 0.4 for replica in replicas.values())


def test_decentralised_adam_learns_with_its_own_optimizer() -> None:
    replicas = {member: Classifier() for member in "abcd"}
    for replica in replicas.values():
        replica.optimizer = AccumAdamW(replica.model.parameters(), lr=3e-3)
    train("dadam", replicas)
    assert all(replica.loss() < 0.4 for replica in replicas.values())
    spread = np.std([replica.flat() for replica in replicas.values()], axis=0).max()
    assert 0 < spread < 0.1  # each its own model, and near the others


def test_one_final_merge_recovers_what_sparse_pairs_left_apart() -> None:
    """Each member sees 7 of 10 classes; whoever is left alone fails at the others."""

    def some() -> dict[str, Classifier]:
        return {m: Classifier(classes=range(n, n + 7)) for n, m in enumerate("abcd")}

    apart, merged = some(), some()
    for name, replica in apart.items():
        for step in range(120):
            replica.step(name, step)
    train("finalmerge", merged)
    assert len({replica.flat().tobytes() for replica in merged.values()}) == 1
    assert merged["a"].loss() < min(replica.loss() for replica in apart.values()) / 2


@dataclass(kw_only=True)
class PlainMean(VarianceCorrected):
    """The same from independent parameters, without the correction."""

    name: ClassVar[str] = "plain"

    def outer(self, lane: int, state: Vector, mean: Vector, out: Vector) -> None:
        np.subtract(state, mean[: len(state)], out=out)


def from_independent_seeds(kind: type[Strategy]) -> tuple[float, float]:
    """Return by what the first round changed the weights' variance, and the loss after 40."""
    replicas = {name: Classifier(seed=n, hidden=4) for n, name in enumerate("abcd")}
    parts, first, ratio = replicas["a"].parts, replicas["a"].flat(), 0.0
    weights = [p for p in parts if len(p.shape) == 2]
    for each in Simulation(lambda: kind(every=2), replicas, rounds=40, parts=parts):
        if each.round == 0:
            before, after = (
                sum(float(variance(vector[p.start : p.stop])) for p in weights)
                for vector in (first, each.states["a"])
            )
            ratio = after / before
    return ratio, replicas["a"].loss()


def test_the_mean_of_independent_models_keeps_its_variance_and_learns_on() -> None:
    plain_ratio, plain_loss = from_independent_seeds(PlainMean)
    ratio, loss = from_independent_seeds(VarianceCorrected)
    assert plain_ratio == pytest.approx(1 / 4, rel=0.1)  # signals die out in such a model
    assert ratio == pytest.approx(1, rel=0.1)
    assert loss < plain_loss - 0.5


# -- the optimizer ---------------------------------------------------------------------------


def quadratic(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.nn.Parameter(torch.randn(20))
    target, optimizer = torch.randn(20), make([x])
    for _ in range(30):
        optimizer.zero_grad()
        ((x - target + 0.1 * torch.randn(20)) ** 2).sum().backward()
        optimizer.step()
    return x.detach()


def test_accumulating_one_gradient_is_adamw() -> None:
    how: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99), "weight_decay": 0.1}
    ours = quadratic(lambda x: AccumAdamW(x, accumulate=1, **how))
    torch.testing.assert_close(ours, quadratic(lambda x: torch.optim.AdamW(x, **how)))


def test_moments_change_every_few_steps_with_the_mean_gradient() -> None:
    x = torch.nn.Parameter(torch.zeros(1))
    optimizer = AccumAdamW([x], lr=0.0, betas=(0.5, 0.5), accumulate=2)
    for gradient in (1.0, 3.0, 8.0):
        x.grad = torch.tensor([gradient])
        optimizer.step()
    own = optimizer.state[x]
    assert own["first"].item() == 0.5 * 2.0  # the mean of 1 and 3; 8 waits for its fellow
    assert own["second"].item() == 0.5 * 4.0
    assert own["gathered"].item() == 4.0


def test_accumulating_less_than_one_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        AccumAdamW([torch.nn.Parameter(torch.zeros(1))], accumulate=0)
