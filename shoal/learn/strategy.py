"""What every way of learning together is: arithmetic over rounds, without I/O and without a clock.

A strategy says which lanes a run has, when their rounds begin and end, what goes into them and
what comes of them. The Trainer does it over the swarm, `simulate` in one process, with the same
calls in the same order; so on the float32 wire both end with the same bits.

Before the first local step, and whenever a state comes from elsewhere: `enter`, and the model gets
what it returns. After local step T, for every lane in turn, each of these in its own pass:

1. a round that is under way and `ends` at T or before: wait, `finish`, root, announce, and the
   model gets what `local` returns;
2. if none is under way, rounds are left, and the next `begins` at T or before: `contribution`
   (once a round: retries keep it), submit;
3. as 1, for rounds that began just now and end at T.

When every lane has had all its rounds, the model gets what `leave` returns.

Vectors are numpy float32, flat. Whatever replicas must have alike is made of separate ufuncs: no
fused multiply-add, no BLAS, no reductions whose order a processor chooses (`exact.py`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Option = int | float | str | bool

EVERY_MAX = 1 << 20  # local steps between two rounds, as on the wire (protocols/modelsync/wire.py)
LANES_MAX = 256  # as on the wire


@dataclass(frozen=True)
class Part:
    """One tensor of the model in the flat vector: `stop - start` elements of this shape."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Lane:
    """One sequence of rounds: the slice of the flat vector that it covers, in elements.

    `contribution`: the most float32 that each member sends a round; `state`: float32 that replicas
    hold alike, the first `stop - start` of which are the slice's parameters.
    """

    start: int
    stop: int
    contribution: int
    state: int

    @property
    def elements(self) -> int:
        """Parameters in the slice."""
        return self.stop - self.start


@dataclass(frozen=True)
class Turn:
    """What a committed round tells: `value` is the mean (or mix) of the contributions.

    `sent` is what has arrived of our own contribution, where the strategy asked for it: what the
    others decoded of it, less what we owe for encoding the mean of our shard. `contributed` is
    false if we brought nothing to this round.
    """

    round: int
    value: Vector
    members: int
    contributed: bool
    sent: Vector | None = None


def require(is_so: object, what: str) -> None:
    """Raise ValueError(what) unless it is so: an option out of its range."""
    if not is_so:
        raise ValueError(what)


@dataclass(kw_only=True)
class Strategy(ABC):
    """Base of all strategies; subclasses say their paper, and set what differs. Options are fields.

    One object belongs to one replica. It may keep what is that replica's own: what `export`
    returns (residuals of error feedback) changes in `finish` only, so that an aborted round
    leaves no trace; the rest (parameters as they were at the last submit) is dropped by `enter`.
    What `finish` writes depends on the turn and the state alone.
    """

    every: int = 25  # local steps between two rounds of a lane

    name: ClassVar[str] = ""
    replicas_differ: ClassVar[bool] = False  # mixes: states differ, roots are not compared
    parts: list[Part] = field(init=False, default_factory=list[Part])
    lanes: list[Lane] = field(init=False, default_factory=list[Lane])
    rounds: int = field(init=False, default=0)
    settings: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Write down what members must have alike: `NAME key=value key=value`."""
        require(1 <= self.every <= EVERY_MAX, f"every is from 1 to {EVERY_MAX}, not {self.every}")
        options = [f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self) if f.init]
        self.settings = " ".join([self.name, *options])

    def prepare(self, parts: list[Part], rounds: int) -> list[Lane]:
        """Learn the model's layout and the run's length, once, at first; return the lanes."""
        self.parts, self.rounds = parts, rounds
        self.lanes = self.make_lanes(parts[-1].stop)
        return self.lanes

    @abstractmethod
    def make_lanes(self, elements: int) -> list[Lane]:
        """Cut the flat vector into lanes."""

    @property
    def needs_sent(self) -> bool:
        """True for error feedback: `Turn.sent` is wanted."""
        return False

    @property
    def sample_size(self) -> int:
        """Members that make a round (sampled runs); 0: all."""
        return 0

    @abstractmethod
    def first(self, lane: int, parameters: Vector) -> Vector:
        """Return the state before round 0, from the lane's initial parameters."""

    def enter(self, lane: int, round_: int, state: Vector, now: Vector) -> Vector:
        """Go on from a state that `local` has not led to; return the model's parameters for it.

        At the start, after joining, and when this replica was behind. Forgets what is in flight.
        `round_`: the lane's next round; `now`: what the model's parameters are.
        """
        return state[: self.lanes[lane].elements]

    def topology(self, lane: int, round_: int) -> str:
        """How a round is averaged: all, ring, exponential, complete or pairs."""
        return "all"

    def size(self, lane: int, round_: int, state: Vector) -> int:
        """Return how many elements this round's contributions have, alike on all members."""
        return self.lanes[lane].contribution

    def pace(self, every: int) -> None:
        """Take over the local steps between two rounds that the members agreed on."""
        self.every = every

    def begins(self, lane: int, round_: int, last: int) -> int:
        """Return the local step after which the contribution to a round is made.

        last: the step after which the lane's round before it began; 0 before the first (a joiner:
        the step after which its first whole round ended).
        """
        return last + self.every

    def ends(self, lane: int, round_: int, begun: int) -> int:
        """Return the local step after which a round that began at `begun` is waited for."""
        return begun

    @abstractmethod
    def contribution(self, lane: int, round_: int, state: Vector, local: Vector) -> Vector:
        """Return what we bring, from the lane's state and the model's own parameters now."""

    @abstractmethod
    def finish(self, lane: int, turn: Turn, state: Vector, out: Vector) -> None:
        """Write the state after the round into `out` (not the same memory as `state`)."""

    def local(self, lane: int, state: Vector, now: Vector) -> Vector:
        """Return what the model's parameters become after `finish`; `now` is what they are."""
        return state[: self.lanes[lane].elements]

    def leave(self, lane: int, state: Vector, now: Vector) -> Vector:
        """Return what the model's parameters are at the end of the run: alike on all replicas."""
        return state[: self.lanes[lane].elements]

    def export(self) -> dict[str, Vector]:
        """Return this replica's own vectors for a checkpoint (error feedback)."""
        return {}

    def restore(self, own: dict[str, Vector]) -> None:
        """Take back what `export` returned. Raises ValueError if it does not fit."""
        require(not own, f"{self.name} has no vectors of its own")


def _text(value: Option) -> str:
    """As in `settings`: floats to nine digits, which names every float32."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)
