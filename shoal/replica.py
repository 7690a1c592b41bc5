"""One replica of a run: does what its strategy says over the swarm, whatever happens to its rounds.

No torch: the model is what `Model` says, so that numpy scripts and tests drive it too. The order of
calls is that of `shoal.learn.strategy`, as `simulate` has it.

Whatever goes wrong ends in the same way: the run's state is loaded, and the lane's next round is
entered without data (our steps were made from a state that the run has left behind). A round to
which nobody brought data changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shoal.errors import ClientError
from shoal.learn.strategy import Strategy, Turn, Vector
from shoal.run_client import RunClient, is_sound, waits
from shoal.runs import RoundResult


class Model(Protocol):
    """A model's trainable parameters as one flat float32 vector."""

    def read(self, start: int, stop: int) -> Vector:
        """Return elements as they are now; valid until the next `read`."""
        ...

    def write(self, start: int, values: Vector) -> None:
        """Set elements from `start` on. `values` may change after the call."""
        ...


@dataclass
class Standing:
    """Where a lane is: the round before which its state is, and the round that is under way."""

    begun: int = 0  # local step after which the last round began
    is_open: bool = False  # submitted, not finished
    is_new: bool = False  # we joined here: the next submit says so
    weight: float = 0.0  # that we submitted
    size: int = 0  # elements of the round's contributions


class Replica:
    """`step` after each local step of the optimizer; `done` when every lane had its rounds.

    on_round: called after each finished round with its lane and result.
    wish: returns the (codec, local steps) that we would like next; for runs with wire "auto".
    """

    def __init__(
        self,
        strategy: Strategy,
        client: RunClient,
        model: Model,
        *,
        weight: float = 1.0,
        on_round: Callable[[int, RoundResult], None] = lambda lane, result: None,
        wish: Callable[[], tuple[str, int]] = lambda: ("float32", 0),
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.weight, self.steps = weight, 0
        self._strategy, self._client, self._model = strategy, client, model
        self._on_round, self._wish, self._on_wait = on_round, wish, on_wait
        self._rounds = client.shape.rounds
        self._lanes = [Standing() for _ in strategy.lanes]
        self._offset = 0  # global steps that the run had without us

    # -- what a loop asks ----------------------------------------------------------------------

    @property
    def round(self) -> int:
        """Rounds that every lane has had."""
        return min(lane.round for lane in self._client.lanes)

    @property
    def done(self) -> bool:
        """True once every lane has had all its rounds."""
        return self.round >= self._rounds

    @property
    def global_step(self) -> int:
        """Local steps as the run counts them: who joins late starts where the run is."""
        return self._offset + self.steps

    def due(self) -> int:
        """Return the local step after which something must be done next."""
        return min(
            (self._next(lane) for lane in range(len(self._lanes)) if not self._is_over(lane)),
            default=self.steps,
        )

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Join the run; on return the model has the run's parameters."""
        client, strategy = self._client, self._strategy
        for number, lane in enumerate(strategy.lanes):
            parameters = self._model.read(lane.start, lane.stop)
            client.state(number)[:] = strategy.first(number, parameters)
        client.attach()
        for number, standing in enumerate(self._lanes):
            standing.is_new = client.source != "new" and not strategy.sample_size
            self._enter(number)
        if client.source != "new":
            client.note(f"loaded the state before round {self.round} from {client.source}")
            self._catch_up()
        self._take_turn()

    def restore(self, steps: int, begun: list[int]) -> None:
        """Go on from saved counters of local steps, after `start`."""
        self.steps, self._offset = steps, 0
        for standing, step in zip(self._lanes, begun, strict=True):
            standing.begun = step

    @property
    def begun(self) -> list[int]:
        """For each lane, the local step after which its last round began."""
        return [standing.begun for standing in self._lanes]

    def step(self) -> None:
        """Do what is due after one more local step. Waits as long as a round has no quorum."""
        if self.done:
            return
        self.steps += 1
        before, lanes = self.round, range(len(self._lanes))
        for lane in lanes:
            if self._lanes[lane].is_open and self._next(lane) <= self.steps:
                self._end(lane)
        for lane in lanes:
            is_free = not self._lanes[lane].is_open and not self._is_over(lane)
            if is_free and self._next(lane) <= self.steps:
                self._begin(lane)
        for lane in lanes:
            if self._lanes[lane].is_open and self._next(lane) <= self.steps:
                self._end(lane)
        if self.round > before:
            self._take_turn()

    # -- rounds --------------------------------------------------------------------------------

    def _is_over(self, lane: int) -> bool:
        return self._client.lanes[lane].round >= self._rounds

    def _next(self, lane: int) -> int:
        standing, round_ = self._lanes[lane], self._client.lanes[lane].round
        if standing.is_open:
            return self._strategy.ends(lane, round_, standing.begun)
        return self._strategy.begins(lane, round_, standing.begun)

    def _begin(self, lane: int) -> None:
        client, strategy, standing = self._client, self._strategy, self._lanes[lane]
        at, place = client.lanes[lane], strategy.lanes[lane]
        local = self._model.read(place.start, place.stop)
        ours = client.contribution(lane)[: strategy.size(lane, at.round, client.state(lane))]
        ours[:] = strategy.contribution(lane, at.round, client.state(lane), local)
        weight = self.weight
        if not is_sound(ours):
            client.note("the parameters are not finite or beyond 1e29: nothing of us in this round")
            weight = 0.0
        standing.begun = self.steps
        self._submit(lane, weight)

    def _submit(self, lane: int, weight: float) -> None:
        standing, client, round_ = self._lanes[lane], self._client, self._client.lanes[lane].round
        standing.is_open, standing.weight = True, weight
        standing.size = self._strategy.size(lane, round_, client.state(lane))
        client.submit(
            lane,
            weight,
            elements=standing.size,
            topology=self._strategy.topology(lane, round_),
            is_new=standing.is_new,
            wish=self._wish(),
        )

    def _end(self, lane: int) -> None:
        """Wait for the lane's round; if the run went on without us, for one that we are in."""
        client, standing = self._client, self._lanes[lane]
        while True:
            result = client.outcome(lane)
            while result.outcome == "waiting":
                client.note(waits(result))
                self._on_wait()
                result = client.outcome(lane)
            standing.is_open = False
            if result.outcome == "committed":
                standing.is_new = False
                self._finish(lane, result)
                return
            client.note(f"behind: loading the state before round {result.at_least} or later")
            self._fetch(lane, result.at_least, result.root)
            standing.begun = self.steps
            if self._is_over(lane):
                return
            self._submit(lane, 0.0)

    def _finish(self, lane: int, result: RoundResult) -> None:
        client, strategy, place = self._client, self._strategy, self._strategy.lanes[lane]
        brought = [weight > 0 for weight in result.weights]
        if any(brought):
            standing, sent = self._lanes[lane], client.sent(lane)
            turn = Turn(
                round=result.round,
                value=client.contribution(lane)[: standing.size],
                members=sum(brought),
                contributed=standing.weight > 0 and client.member in result.contributors,
                sent=None if sent is None else sent[: standing.size],
            )
            spare = client.spare(lane)
            strategy.finish(lane, turn, client.state(lane), spare)
            client.advance(lane, result.round + 1)
            now = self._model.read(place.start, place.stop) if _looks(strategy) else spare
            self._model.write(place.start, strategy.local(lane, client.state(lane), now))
        else:
            client.stay(lane, result.round + 1)
            self._enter(lane)
        if result.every:
            strategy.pace(result.every)
        self._on_round(lane, result)

    # -- being behind --------------------------------------------------------------------------

    def _enter(self, lane: int) -> None:
        """Go on from the lane's state as it is."""
        parameters = self._strategy.enter(lane, self._client.state(lane))
        self._model.write(self._strategy.lanes[lane].start, parameters)

    def _fetch(self, lane: int, at_least: int, root: str = "") -> None:
        self._client.fetch(lane, at_least=at_least, root=root)
        self._enter(lane)
        steps = self._client.lanes[lane].round * self._strategy.every
        self._offset = max(self._offset, steps - self.steps)

    def _catch_up(self) -> None:
        """Enter the rounds that are going on, without data: nobody waits for us, and from their
        ends on we are exact.
        """
        if self._strategy.sample_size:
            return  # whoever is in the next sample starts from the state it fetches
        waiting = [lane for lane in range(len(self._lanes)) if not self._is_over(lane)]
        for lane in waiting:
            self._submit(lane, 0.0)
        for lane in waiting:
            self._end(lane)
        rounds = max(lane.round for lane in self._client.lanes)
        self._offset = max(self._offset, rounds * self._strategy.every - self.steps)

    def _take_turn(self) -> None:
        """Sampled runs: wait for a round that we are in, with the state that it starts from."""
        if not self._strategy.sample_size:
            return
        client, round_ = self._client, self.round
        while round_ < self._rounds:
            answer = client.turn(0, round_)
            if answer == "waiting":
                self._on_wait()
            elif answer == "out":
                round_ += 1
            elif client.lanes[0].round < round_:
                self._fetch(0, round_)
                round_ = client.lanes[0].round  # it may have gone on: ask again
            else:
                break
        else:
            if client.lanes[0].round < self._rounds:
                self._fetch(0, self._rounds)
        self._lanes[0].begun = self.steps


def _looks(strategy: Strategy) -> bool:
    """True if the strategy's `local` mixes in what the model's parameters are now."""
    return type(strategy).local is not Strategy.local


def lanes_of(strategy: Strategy) -> list[tuple[int, int]]:
    """Return a prepared strategy's lanes as `shoal.run_client.Shape` takes them."""
    if not strategy.lanes:
        raise ClientError("the strategy has not been prepared")
    return [(lane.contribution, lane.state) for lane in strategy.lanes]
