"""Fashion-MNIST (Xiao et al., 2017), as Debian packages it, and a classifier that learns it."""

import gzip
import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shoal.learn.strategy import Part, Vector
from shoal.trainer import flatten, load_vector

FOLDER = Path("/usr/share/datasets/fashion-mnist")
HOW = "apt-get install dataset-fashion-mnist"
BATCH, LEARNING_RATE = 64, 1e-3
Bytes = NDArray[np.uint8]


def is_here() -> bool:
    """Tell whether the package is installed."""
    return FOLDER.exists()


@cache
def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [n, 784] from 0 to 1 and labels [n]; part is "train" or "t10k"."""
    pixels = _read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    labels = _read(f"{part}-labels-idx1-ubyte.gz", 8)
    return (
        torch.from_numpy(pixels.astype(np.float32) / np.float32(255)),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _read(name: str, head: int) -> Bytes:
    return np.frombuffer(gzip.decompress((FOLDER / name).read_bytes())[head:], np.uint8)


class Images:
    """A perceptron, 784-128-10, with Adam. Its batches depend on (member, step) alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        self.optimizer = self.fresh()

    def fresh(self) -> torch.optim.Optimizer:
        """Begin anew with the moments: what is then made follows from the parameters alone."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        return self.optimizer

    def make(self, member: str, round_: int, every: int) -> None:
        """Make a member's steps of a round, in place."""
        self.fresh()
        for step in range(round_ * every, (round_ + 1) * every):
            self.step(member, step)

    @property
    def parts(self) -> list[Part]:
        """The model as one tensor: strategies here do not look inside."""
        size = len(self.flat())
        return [Part("model", (size,), 0, size)]

    def flat(self) -> Vector:
        """See Replica."""
        return flatten(self.model)

    def load(self, vector: Vector) -> None:
        """See Replica."""
        load_vector(self.model, vector)

    def step(self, member: str, step: int) -> None:
        """See Replica."""
        images, labels = load("train")
        seed = hashlib.sha256(f"{member}/{step}".encode()).digest()
        chosen = np.random.default_rng(list(seed)).integers(len(labels), size=BATCH)
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(images[chosen]), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        self.optimizer.step()

    def accuracy(self) -> float:
        """Percent of the test images that it tells right."""
        images, labels = load("t10k")
        with torch.no_grad():
            found = self.model(images).argmax(dim=1)
        return 100 * float((found == labels).float().mean())
