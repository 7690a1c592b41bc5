"""A tiny regression in torch, for tests of training: its batches depend on (member, step) only."""

import numpy as np
import torch

from shoal.learn.strategy import Vector
from shoal.trainer import flatten, load_vector


class Learner:
    """One replica; also what `shoal.learn.simulate` takes. Make them in one thread: the seed of
    torch is the process's.
    """

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def step(self, member: str, step: int) -> float:
        """Make local step number `step` with the batch of `member`; return the loss."""
        random = np.random.default_rng([step, *member.encode()])
        x = torch.from_numpy(random.standard_normal((32, 8), dtype=np.float32))
        loss = torch.nn.functional.mse_loss(self.model(x), x.sum(dim=1, keepdim=True))
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def flat(self) -> Vector:
        """Return a copy of the parameters."""
        return flatten(self.model)

    def load(self, vector: Vector) -> None:
        """Copy parameters into the model."""
        load_vector(self.model, vector)
