"""A strategy over several replicas in one process: bit for bit what the swarm does.

For the float32 wire and as long as nobody dies or joins. Lossy codecs come in by `through`.
Replicas go through the same calls, in the same order, as `strategy.py` says of the Trainer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shoal.learn.exact import mix, mix_row, sample_of, weighted_mean
from shoal.learn.strategy import Part, Strategy, Turn, Vector


class Replica(Protocol):
    """A model that can be trained."""

    def flat(self) -> Vector:
        """Return a copy of its parameters, float32."""
        ...

    def load(self, vector: Vector, /) -> None:
        """Copy parameters into it."""
        ...

    def step(self, member: str, step: int, /) -> object:
        """Make local step number `step` (from 0) with the batches of `member`."""
        ...


@dataclass(frozen=True)
class Finished:
    """A round that all members have finished: their states after it, by member."""

    lane: int
    round: int
    step: int  # local steps made so far
    states: Mapping[str, Vector]


@dataclass
class _Member:
    """One replica with a strategy of its own and where it is in each lane."""

    name: str
    replica: Replica
    strategy: Strategy
    weight: float
    states: list[Vector] = field(default_factory=list[Vector])

    def model(self, lane: int) -> Vector:
        cut = self.strategy.lanes[lane]
        return self.replica.flat()[cut.start : cut.stop]

    def load(self, lane: int, parameters: Vector) -> None:
        cut, flat = self.strategy.lanes[lane], self.replica.flat()
        flat[cut.start : cut.stop] = parameters
        self.replica.load(flat)

    def enter(self, lane: int, round_: int, state: Vector) -> None:
        self.states[lane] = state.copy()
        self.load(
            lane, self.strategy.enter(lane, round_, self.states[lane], self.model(lane).copy())
        )

    def finish(self, lane: int, turn: Turn) -> None:
        out = self.states[lane].copy()
        self.strategy.finish(lane, turn, self.states[lane], out)
        self.states[lane] = out
        self.load(lane, self.strategy.local(lane, out, self.model(lane)))


@dataclass
class _Lane:
    """Where a lane is: its round, when the one before began, and what is under way."""

    round: int = 0
    last: int = 0
    turns: dict[str, Turn] | None = None  # of the round under way, by member


class Simulation:
    """All members in step. Iterate over it: it yields each finished round.

    make: returns a new strategy; called once a replica. replicas: by peer ID.
    parts: layout of the model, or one tensor. run: name, which seeds pairs and samples.
    weights: by peer ID, 1 for the rest. through: decode(encode(vector)) of a lossy codec, and
    through_mean: the same of a mean, if the codec writes means in another way.
    """

    def __init__(
        self,
        make: Callable[[], Strategy],
        replicas: Mapping[str, Replica],
        *,
        rounds: int,
        parts: list[Part] | None = None,
        run: str = "run",
        weights: Mapping[str, float] | None = None,
        through: Callable[[Vector], Vector] = lambda vector: vector,
        through_mean: Callable[[Vector], Vector] | None = None,
    ) -> None:
        self._rounds, self._run, self._through = rounds, run, through
        self._through_mean = through_mean or through
        self._members = [
            _Member(name, replicas[name], make(), (weights or {}).get(name, 1.0))
            for name in sorted(replicas)
        ]
        start = self._members[0].replica.flat()
        parts = parts or [Part("model", (len(start),), 0, len(start))]
        lanes = [member.strategy.prepare(parts, rounds) for member in self._members]
        cuts = lanes[0]
        self._lanes = [_Lane() for _ in cuts]
        self.strategy = self._members[0].strategy  # asked for what all say alike
        for member in self._members:
            flat = member.replica.flat() if self.strategy.replicas_differ else start
            for lane, cut in enumerate(cuts):
                member.states.append(member.strategy.first(lane, flat[cut.start : cut.stop]))
                member.enter(lane, 0, member.states[lane])

    @property
    def states(self) -> dict[str, list[Vector]]:
        """The states of all lanes, by member."""
        return {member.name: member.states for member in self._members}

    def __iter__(self) -> Iterator[Finished]:
        step = 0
        while any(lane.round < self._rounds for lane in self._lanes):
            for member in self._active(0):
                member.replica.step(member.name, step)
            step += 1
            yield from self._finish_all(step)
            for lane in range(len(self._lanes)):
                self._begin(lane, step)
            yield from self._finish_all(step)
        for member in self._members:
            for lane, state in enumerate(member.states):
                member.load(lane, member.strategy.leave(lane, state, member.model(lane)))

    def _active(self, lane: int) -> list[_Member]:
        """Return who takes part in a lane's round now: in sampled runs not all."""
        names = sample_of(
            [member.name for member in self._members],
            self.strategy.sample_size,
            run=self._run,
            lane=lane,
            round_=self._lanes[lane].round,
        )
        return [member for member in self._members if member.name in names]

    def _begin(self, number: int, step: int) -> None:
        lane, strategy = self._lanes[number], self.strategy
        if lane.turns is not None or lane.round == self._rounds:
            return
        if strategy.begins(number, lane.round, lane.last) > step:
            return
        active = self._active(number)
        brought: list[Vector] = []
        for member in active:
            state = member.states[number]
            size = member.strategy.size(number, lane.round, state)
            whole = member.strategy.contribution(number, lane.round, state, member.model(number))
            brought.append(whole[:size].copy())
        lane.turns = self._average(number, active, brought)
        lane.last = step

    def _average(
        self, number: int, active: list[_Member], brought: list[Vector]
    ) -> dict[str, Turn]:
        round_ = self._lanes[number].round
        weights = [member.weight for member in active]
        sent = [self._through(vector) for vector in brought]
        topology = self.strategy.topology(number, round_)
        names = [member.name for member in active]
        values: list[Vector]
        if topology == "all":
            mean = weighted_mean(sent, weights)
            values = [self._through_mean(mean)] * len(active)
            _owe(sent, weights, np.subtract(mean, values[0]))
        else:
            values = []
            for index in range(len(active)):
                row = mix_row(topology, names, index, run=self._run, lane=number, round_=round_)
                seen = [brought[j] if j == index else sent[j] for j in range(len(active))]
                values.append(mix(seen, weights, row))
        return {
            member.name: Turn(round_, values[i], len(active), member.weight > 0, sent[i])
            for i, member in enumerate(active)
        }

    def _finish_all(self, step: int) -> Iterator[Finished]:
        for number, lane in enumerate(self._lanes):
            if lane.turns is None or self.strategy.ends(number, lane.round, lane.last) > step:
                continue
            turns, lane.turns = lane.turns, None
            done, lane.round = lane.round, lane.round + 1
            for member in self._members:
                if member.name in turns:
                    member.finish(number, turns[member.name])
            for member in self._members:
                if member.name not in turns:
                    member.enter(number, lane.round, self._after(number, turns))
            states = {member.name: member.states[number] for member in self._members}
            yield Finished(number, done, step, states)

    def _after(self, number: int, turns: dict[str, Turn]) -> Vector:
        """Return the state that those led to who made the round, for those who sat out."""
        return next(m.states[number] for m in self._members if m.name in turns)


def _owe(sent: list[Vector], weights: list[float], lost: Vector) -> None:
    """Take from what each member has sent what its encoding of the mean of its shard has lost.

    Equal shards, and nothing less than the average weighs: see docs/protocols/modelsync.md.
    """
    if not lost.any():
        return
    bounds = [len(lost) * owner // len(sent) for owner in range(len(sent) + 1)]
    count = sum(weight > 0 for weight in weights)
    for owner, weight in enumerate(weights):
        if weight > 0:
            own = slice(bounds[owner], bounds[owner + 1])
            factor = np.float32(min(sum(weights) / weight, count))
            sent[owner] = sent[owner].copy()
            sent[owner][own] -= lost[own] * factor
