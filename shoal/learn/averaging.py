"""Members train alone for a while, then the mean of what they have moved is applied by all.

What is sent is the pseudo-gradient, outer minus local parameters: it is small and centred, so that
lossy codecs cost little; applied with rate 1 it gives the mean of the parameters themselves.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from shoal.learn.exact import nesterov
from shoal.learn.feedback import ErrorFeedback
from shoal.learn.strategy import Lane, Strategy, Turn, Vector, require


@dataclass(kw_only=True)
class PseudoGradient(Strategy):
    """Base: contribution Δ_i = φ - θ_i (and what error feedback owes), one lane.

    feedback: decay of the error feedback; 0 is without. See `feedback.DECAYS`.
    """

    feedback: float = 0.0
    errors: ErrorFeedback = field(init=False)

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        self.errors = ErrorFeedback(self.feedback)

    def make_lanes(self, elements: int) -> list[Lane]:
        """See Strategy."""
        return [Lane(0, elements, elements, elements)]

    @property
    def needs_sent(self) -> bool:
        """See Strategy."""
        return self.feedback > 0

    def first(self, lane: int, parameters: Vector) -> Vector:
        """See Strategy: parameters, the rest of the state zero."""
        state = np.zeros(self.lanes[lane].state, np.float32)
        state[: len(parameters)] = parameters
        return state

    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """See Strategy."""
        delta = np.subtract(state[: len(local)], local)
        return self.errors.add(lane, delta) if self.needs_sent else delta

    def finish(self, lane: int, turn: Turn, state: Vector, out: Vector) -> None:
        """See Strategy."""
        self.outer(lane, state, turn.value, out)
        if self.needs_sent:
            self.errors.after(lane, turn)

    def outer(self, lane: int, state: Vector, mean: Vector, out: Vector) -> None:
        """Apply the mean pseudo-gradient: φ' = φ - Δ."""
        np.subtract(state, mean, out=out)

    def export(self) -> dict[str, Vector]:
        """See Strategy."""
        return self.errors.export()

    def restore(self, own: dict[str, Vector]) -> None:
        """See Strategy."""
        self.errors.restore(own, {n: lane.contribution for n, lane in enumerate(self.lanes)})


@dataclass(kw_only=True)
class LocalSGD(PseudoGradient):
    """Local SGD: φ' = mean_i θ_i every `every` steps. Stich, "Local SGD converges fast", 2019."""

    name: ClassVar[str] = "localsgd"


@dataclass(kw_only=True)
class FedAvg(PseudoGradient):
    """Federated averaging: φ' = Σ_k n_k θ_k / Σ n_k over a sample of max(C·K, 1) clients.

    n_k is the member's weight (its number of samples). fraction: C; below 1 the run is sampled
    and `clients` says K. every: local steps, E epochs of them. Defaults of the paper: C = 0.1,
    E = 1 to 20, batches of 10; here all clients, for swarms are smaller than telephones.
    Source: McMahan et al., "Communication-efficient learning of deep networks", 2017.
    """

    fraction: float = 1.0
    clients: int = 0

    name: ClassVar[str] = "fedavg"

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(0.0 < self.fraction <= 1.0, f"fraction is above 0, up to 1, not {self.fraction}")
        require(self.clients > 0 or self.fraction == 1.0, "fraction needs clients, their number")

    @property
    def sample_size(self) -> int:
        """See Strategy."""
        if self.fraction == 1.0:
            return 0
        return max(1, round(self.fraction * self.clients))


@dataclass(kw_only=True)
class Modest(PseudoGradient):
    """MoDeST: each round is trained and averaged by a seeded sample; the others sit it out.

    φ' = mean_{i in sample} θ_i. Who does not answer is passed over, so training goes on while a
    few of many are there. Published: samples of 10; here 4, since swarms are smaller.
    Source: de Vos et al., "Decentralized learning made practical with client sampling", 2023.
    """

    sample: int = 4

    name: ClassVar[str] = "modest"

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(1 <= self.sample <= 64, f"sample is from 1 to 64, not {self.sample}")

    @property
    def sample_size(self) -> int:
        """See Strategy."""
        return self.sample


@dataclass(kw_only=True)
class DiLoCo(PseudoGradient):
    """DiLoCo: an outer step with Nesterov momentum on the mean pseudo-gradient.

    m' = μ m + Δ;  φ' = φ - η (Δ + μ m').  State: φ, m.
    Defaults: η = 0.7, μ = 0.5, measured best for short runs (tens of outer rounds); published are
    0.7 and 0.9, for hundreds. every: 25 here; 100 to 500 when rounds are dear.
    Source: Douillard et al., "DiLoCo", 2023.
    """

    lr: float = 0.7
    momentum: float = 0.5

    name: ClassVar[str] = "diloco"

    def __post_init__(self) -> None:
        """See Strategy."""
        super().__post_init__()
        require(0.0 < self.lr <= 4.0, f"lr is above 0, up to 4, not {self.lr}")
        require(0.0 <= self.momentum < 1.0, f"momentum is from 0 to below 1, not {self.momentum}")

    def make_lanes(self, elements: int) -> list[Lane]:
        """See Strategy."""
        return [Lane(0, elements, elements, 2 * elements)]

    def outer(self, lane: int, state: Vector, mean: Vector, out: Vector) -> None:
        """See the class."""
        n = self.lanes[lane].elements
        phi, buffer = nesterov(
            state[:n], state[n : 2 * n], mean, lr=self.lr, momentum=self.momentum
        )
        out[:n], out[n : 2 * n] = phi, buffer
