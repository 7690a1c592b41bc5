"""Which codec, and how many local steps between rounds, so that the link never makes training wait.

A run on the wire `auto` asks at each round. The rule: what a round takes on the link is at most
what its interval takes to compute, T_comm <= T_compute, with the least lossy codec for which that
holds at the run's own `every`; if it holds for none, the most compact, and rounds become rarer.
Members wish each for itself, the most compact codec and the largest `every` win.
Source: the idea of DiLoCoX (Qi et al. 2025), T_comm(compression) <= T_compute(H).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.learn.strategy import EVERY_MAX

SLACK = 0.75  # of the interval: a less lossy codec must fit in this much, or it would flap
STRETCH = 1.25  # steps are lowered again if they are more than this much above the need
SMOOTHING = 0.3  # weight of a new measurement: three rounds make two thirds of the average
JUMP = 2.0  # a rate that is off by more than this is no noise: it is taken as it is
LIMIT_S = 1.0  # of moving bytes at a rate before that rate is taken for the link's own
GROWTH = 1.03  # a round, while the link is not the limit: a futile try costs some 4 %

# Least lossy first: name, bytes a parameter. As protocols/modelsync/codecs.py; tests hold it equal.
LADDER = (
    ("float32", 4.0),
    ("bfloat16", 2.0),
    ("int8", 1.001),
    ("int4", 0.501),
    ("topk", 0.029),
)


@dataclass(frozen=True)
class Choice:
    """What a member wishes for the next round."""

    codec: str
    every: int


@dataclass(frozen=True)
class Load:
    """What a round weighs here.

    step_s: seconds of one local step. rate: bytes/s that this node's link moves in one direction,
    measured while rounds waited for it. elements: float32 of a contribution. members: of the last
    round. rounds_at_once: lanes that share the link in an interval.
    """

    step_s: float
    rate: float
    elements: int
    members: int
    rounds_at_once: int = 1

    def comm_s(self, bytes_per_element: float) -> float:
        """Seconds that the rounds of one interval take on the link, in each direction.

        Butterfly: a member sends its contribution but for its own shard, and its shard's mean
        to all others: 2 (n - 1) / n of a contribution, and receives as much.
        """
        share = 2 * (self.members - 1) / max(1, self.members)
        return share * self.elements * bytes_per_element * self.rounds_at_once / self.rate


def choose(
    load: Load,
    *,
    every: int,
    now: Choice,
    ladder: Sequence[tuple[str, float]] = LADDER,
    every_max: int = EVERY_MAX,
) -> Choice:
    """Return codec and local steps for the next round, and stay with `now` where that will do.

    every: what the run was set to; it is never fewer. now: what is in force; a codec that is not
    in the ladder counts as its least lossy. A link that has not been measured (rate 0, or
    step_s 0) changes nothing.
    """
    if load.rate <= 0 or load.step_s <= 0:
        return now
    names = [name for name, _ in ladder]
    held = names.index(now.codec) if now.codec in names else 0
    budget = every * load.step_s
    for index, (name, size) in enumerate(ladder):
        room = budget * SLACK if index < held else budget
        if load.comm_s(size) <= room:
            return Choice(name, _steps(load, size, every, now, every_max))
    name, size = ladder[-1]
    return Choice(name, _steps(load, size, every, now, every_max))


def _steps(load: Load, size: float, every: int, now: Choice, every_max: int) -> int:
    """Return the steps that a round of this size needs; those of now if they are not far off."""
    needed = min(max(every, math.ceil(load.comm_s(size) / load.step_s)), every_max)
    if needed <= now.every <= needed * STRETCH and needed > every:
        return now.every
    return needed


class Controller:
    """Smooths measurements and chooses; one for each run of a node."""

    def __init__(self, every: int, *, ladder: Sequence[tuple[str, float]] = LADDER) -> None:
        self._every, self._ladder = every, ladder
        self.now = Choice(ladder[0][0], every)
        self._step_s = self._rate = 0.0

    def measured(self, *, step_s: float = 0.0, rate: float = 0.0, moved: int = 0) -> None:
        """Take in what a round measured; 0 is nothing measured. rate: bytes/s. moved: bytes.

        Small rounds move few bytes a second on any link, and taking that for its rate would make
        them smaller still: a rate counts if bytes moved at it for a second. A round that was over
        sooner says that the link is faster than needed, so the estimate grows until a less lossy
        codec is tried: a link that recovered is found out.
        """
        self._step_s = _smoothed(self._step_s, step_s)
        rate = rate if math.isfinite(rate) else 0.0
        if rate > 0 and moved >= rate * LIMIT_S:
            is_jump = not self._rate / JUMP <= rate <= self._rate * JUMP
            self._rate = rate if is_jump else _smoothed(self._rate, rate)
        elif self._rate and self.now != Choice(self._ladder[0][0], self._every):
            self._rate = max(self._rate * GROWTH, rate)

    def agreed(self, codec: str, every: int) -> None:
        """Take in what the members agreed on: hysteresis is about what is in force."""
        self.now = Choice(codec, every or self.now.every)

    def wish(self, *, elements: int, members: int, rounds_at_once: int = 1) -> Choice:
        """Return what this member wishes for the next round."""
        load = Load(self._step_s, self._rate, elements, members, rounds_at_once)
        return choose(load, every=self._every, now=self.now, ladder=self._ladder)


def _smoothed(old: float, new: float) -> float:
    if new <= 0 or not math.isfinite(new):
        return old
    return new if old <= 0 else old + SMOOTHING * (new - old)
