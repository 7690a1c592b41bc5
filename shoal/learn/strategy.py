"""What every way of learning together is: arithmetic over rounds, without I/O and without a clock.

A strategy says which lanes a run has, when their rounds begin and end, what goes into them and
what comes of them. The Trainer does it over the swarm, `simulate` in one process, with the same
calls in the same order; so on the float32 wire both end with the same bits.

Vectors are numpy float32, flat. Whatever replicas must have alike is made of separate ufuncs: no
fused multiply-add, no BLAS, no reductions whose order a processor chooses (`exact.py`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


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

    `contribution`: float32 that each member sends a round; `state`: float32 that replicas hold
    alike, the first `stop - start` of which are the slice's parameters.
    """

    start: int
    stop: int
    contribution: int
    state: int


@dataclass(frozen=True)
class Turn:
    """What a committed round tells: `value` is the mean (or mix) of the contributions.

    `sent` is what the others decoded of our own contribution, where the strategy asked for it;
    `contributed` is false if we brought nothing to this round.
    """

    round: int
    value: Vector
    members: int
    contributed: bool
    sent: Vector | None = None


class Strategy(ABC):
    """Base of all strategies; subclasses say their paper, and set what differs.

    One object belongs to one replica: it may keep what is that replica's own (residuals of error
    feedback, parameters as they were at the last submit), changed only in `finish`.
    """

    name: str = ""
    every: int = 25  # local steps between two rounds of a lane
    needs_sent = False  # error feedback: wants `Turn.sent`
    sample = 0  # members a round (MoDeST); 0: all
    replicas_differ = False  # mixes: members have states of their own, roots are not compared

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.lanes: list[Lane] = []

    def prepare(self, parts: list[Part]) -> list[Lane]:
        """Learn the model's layout, once, before anything else; return the lanes."""
        self.parts = parts
        self.lanes = self.make_lanes(parts[-1].stop)
        return self.lanes

    @abstractmethod
    def make_lanes(self, elements: int) -> list[Lane]:
        """Cut the flat vector into lanes."""

    @property
    @abstractmethod
    def settings(self) -> str:
        """What members must have alike: `NAME key=value key=value`, at most 256 characters of
        [a-z0-9_=.,:+ -].
        """

    @abstractmethod
    def first(self, lane: int, parameters: Vector) -> Vector:
        """Return the state before round 0, from the lane's initial parameters."""

    def topology(self, lane: int, round_: int) -> str:
        """How a round is averaged: all, ring, exponential, complete or pairs."""
        return "all"

    def begins(self, lane: int, round_: int, last: int) -> int:
        """Return the local step after which the contribution to a round is made.

        last: the step after which the lane's round before it began; 0 before the first (a joiner:
        the step after which its first whole round ended). `every` may have changed since, by
        what the members agreed on.
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
        return state[: self.lanes[lane].stop - self.lanes[lane].start]

    def export(self) -> dict[str, Vector]:
        """Return this replica's own vectors for a checkpoint (error feedback)."""
        return {}

    def restore(self, own: dict[str, Vector]) -> None:
        """Take back what `export` returned. Raises ValueError if it does not fit."""
