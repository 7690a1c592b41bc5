"""One replica of a run: does what its strategy says over the swarm, whatever happens to its rounds.

No torch: the model is what `Model` says, so that numpy scripts and tests drive it too. The order of
calls is that of `shoal.learn.strategy`, as `simulate` has it.

Whatever goes wrong ends in the same way: the run's state is loaded, and the lane's next round is
entered without data (our steps were made from a state that the run has left behind). A round to
which nobody brought data changes nothing.

A round that ends at a later step than it begins is submitted by a thread, so that the next steps
need not wait for the copy from the device, the subtraction and the daemon's check.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from shoal.checks import Checks, Recompute
from shoal.learn.strategy import Strategy, Turn, Vector
from shoal.run_client import ROUND_WAIT_S, RunClient, is_sound, waits
from shoal.runs import RoundResult

LOOK_S = 0.001  # seconds for the daemon to say that a round is not over


class Model(Protocol):
    """A model's trainable parameters as one flat float32 vector."""

    def read(self, start: int, stop: int) -> Callable[[], Vector]:
        """Copy elements as they are now; the result waits for the copy, in any thread, and
        returns it. It is valid until the same elements are read again.
        """
        ...

    def write(self, start: int, values: Vector) -> None:
        """Set elements from `start` on. `values` may change after the call."""
        ...


@dataclass
class Standing:
    """Where a lane is: the round before which its state is, and the round that is under way."""

    begun: int = 0  # local step after which the last round began
    is_open: bool = False  # submitted, not finished
    is_behind: bool = False  # it is open without data of us: the run had gone on
    is_new: bool = False  # we joined here: the next submit says so
    weight: float = 0.0  # that we submitted
    size: int = 0  # elements of the round's contributions
    submitting: Future[None] | None = None  # the thread that does it


class Replica:
    """`step` after each local step of the optimizer; `done` when every lane had its rounds.

    on_round: called after each finished round with its lane and result.
    on_end: called with a lane whose last state was loaded: others made its last round.
    recompute: makes another member's steps (verified runs; see `shoal.checks`).
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
        on_end: Callable[[int], None] = lambda lane: None,
        wish: Callable[[], tuple[str, int]] = lambda: ("float32", 0),
        recompute: Recompute | None = None,
    ) -> None:
        self.weight, self.steps = weight, 0
        self._strategy, self._client, self._model = strategy, client, model
        self._on_round, self._on_end, self._wish = on_round, on_end, wish
        self._rounds = client.shape.rounds
        self._lanes = [Standing() for _ in strategy.lanes]
        self._offset = 0  # global steps that the run had without us
        self._checks = Checks(strategy, client, model, recompute) if recompute else None
        self._submitter = ThreadPoolExecutor(1, "shoal-submit")

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

    def remaining(self) -> int:
        """Return how many local steps there are until something must be done."""
        return self.due() - self.steps

    # -- life ----------------------------------------------------------------------------------

    def attach(self) -> None:
        """Join the run; on return the model has the run's parameters."""
        client, strategy = self._client, self._strategy
        for number, lane in enumerate(strategy.lanes):
            parameters = self._model.read(lane.start, lane.stop)()
            client.state(number)[:] = strategy.first(number, parameters)
        client.attach()
        for number, standing in enumerate(self._lanes):
            standing.is_new = client.source != "new" and not strategy.sample_size
            self._enter(number)

    def start(self, steps: int = 0) -> None:
        """Enter the rounds that are going on; call it once, after `attach`.

        steps: as a checkpoint has them.
        """
        self.steps = steps
        if self._client.source != "new":
            text = f"loaded the state before round {self.round} from {self._client.source}"
            self._client.note(text)
            self._catch_up()
        if self.done:
            self._leave()
        self._take_turn()

    def step(self) -> None:
        """Do what is due after one more local step. Waits as long as a round has no quorum."""
        if self.done:
            return
        self.steps += 1
        if self.steps < self.due():
            return
        self.settle()
        before, lanes = self.round, range(len(self._lanes))
        self._end_those_due()
        for lane in lanes:
            is_free = not self._lanes[lane].is_open and not self._is_over(lane)
            if is_free and self._next(lane) <= self.steps:
                self._begin(lane)
        self._end_those_due()
        if self.round > before:
            self._take_turn()

    def settle(self) -> None:
        """Wait until what is being submitted is. Raises what went wrong."""
        for standing in self._lanes:
            submitting, standing.submitting = standing.submitting, None
            if submitting is not None:
                submitting.result()

    def close(self) -> None:
        """End the thread that submits. The client is the caller's to leave."""
        self._submitter.shutdown()

    def _end_those_due(self) -> None:
        for lane, standing in enumerate(self._lanes):
            if standing.is_open and self._next(lane) <= self.steps:
                self._end(lane)

    # -- rounds --------------------------------------------------------------------------------

    def _is_over(self, lane: int) -> bool:
        return self._client.lanes[lane].round >= self._rounds

    def _next(self, lane: int) -> int:
        standing, round_ = self._lanes[lane], self._client.lanes[lane].round
        if standing.is_open and standing.is_behind:
            return self.steps  # looked after at each step
        if standing.is_open:
            return self._strategy.ends(lane, round_, standing.begun)
        return self._strategy.begins(lane, round_, standing.begun)

    def _begin(self, lane: int) -> None:
        standing, place = self._lanes[lane], self._strategy.lanes[lane]
        local = self._model.read(place.start, place.stop)
        standing.begun, standing.is_open = self.steps, True
        if self._next(lane) > self.steps:
            standing.submitting = self._submitter.submit(self._bring, lane, local)
        else:
            self._bring(lane, local)

    def _bring(self, lane: int, local: Callable[[], Vector]) -> None:
        client, strategy = self._client, self._strategy
        round_, state = client.lanes[lane].round, client.state(lane)
        whole, size = client.contribution(lane), strategy.size(lane, round_, state)
        ours = whole[:size]
        ours[:] = strategy.contribution(lane, round_, state, local())[:size]
        whole[size:] = 0
        weight = self.weight
        if not is_sound(ours):
            client.note("the parameters are not finite or beyond 1e29: nothing of us in this round")
            weight = 0.0
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
        """Wait for the lane's round; if the run went on without us, for one that we are in.

        With several lanes we go on with our steps meanwhile, and look at it after each: the round
        may need somebody who waits for us in another lane.
        """
        client, standing = self._client, self._lanes[lane]
        while True:
            only_looks = standing.is_behind and len(self._lanes) > 1
            wait_s = LOOK_S if only_looks else ROUND_WAIT_S
            result = client.outcome(lane, wait_s=wait_s)
            while result.outcome == "waiting":
                if only_looks:
                    return
                client.note(waits(result))
                client.on_wait()
                result = client.outcome(lane, wait_s=wait_s)
            standing.is_open = False
            if result.outcome == "committed":
                if standing.is_behind:  # the others began it earlier, if it had a delay
                    standing.begun = self.steps - self._strategy.ends(lane, result.round, 0)
                standing.is_new = standing.is_behind = False
                self._finish(lane, result)
                if self._checks is None or not self._checks.work_off(result):
                    return
                self._enter(lane)  # the time for our own steps is gone: nothing of us next
                self._count_steps(lane)
            else:
                client.note(f"behind: loading the state before round {result.at_least} or later")
                self._fetch(lane, result.at_least, result.root)
            standing.begun = self.steps
            if self._is_over(lane) or self._strategy.sample_size:
                break  # of a sampled run: it waits for its turn first
            standing.is_behind = True
            self._submit(lane, 0.0)
        if self.done:
            self._leave()
        if self._is_over(lane):
            self._on_end(lane)

    def _finish(self, lane: int, result: RoundResult) -> None:
        client, strategy, place = self._client, self._strategy, self._strategy.lanes[lane]
        if self._checks is not None:
            self._checks.remember(result.round)
        if any(result.weights):
            standing, sent = self._lanes[lane], client.sent(lane)
            turn = Turn(
                round=result.round,
                value=client.contribution(lane)[: standing.size],
                members=len(result.contributors),
                contributed=standing.weight > 0 and client.member in result.contributors,
                sent=None if sent is None else sent[: standing.size],
            )
            spare = client.spare(lane)
            spare[:] = client.state(lane)
            strategy.finish(lane, turn, client.state(lane), spare)
            client.advance(lane, result.round + 1)
            state = client.state(lane)
            now = self._model.read(place.start, place.stop)() if _looks(strategy) else state
            self._model.write(place.start, strategy.local(lane, state, now))
        else:
            client.stay(lane, result.round + 1)
            self._enter(lane)
        if result.every and client.shape.wire == "auto":
            strategy.pace(result.every)
        if self.done:
            self._leave()
        self._on_round(lane, result)

    def _leave(self) -> None:
        """Every lane had all its rounds: the model becomes what the run has made."""
        for lane, place in enumerate(self._strategy.lanes):
            now = self._model.read(place.start, place.stop)()
            state = self._client.state(lane)
            self._model.write(place.start, self._strategy.leave(lane, state, now))

    # -- being behind --------------------------------------------------------------------------

    def _enter(self, lane: int) -> None:
        """Go on from the lane's state as it is."""
        place, client = self._strategy.lanes[lane], self._client
        now = self._model.read(place.start, place.stop)()
        round_ = client.lanes[lane].round
        parameters = self._strategy.enter(lane, round_, client.state(lane), now)
        self._model.write(place.start, parameters)

    def _fetch(self, lane: int, at_least: int, root: str = "") -> None:
        self._client.fetch(lane, at_least=at_least, root=root)
        self._enter(lane)
        self._count_steps(lane)

    def _count_steps(self, lane: int) -> None:
        """The run has made its steps without us."""
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
            self._lanes[lane].is_behind = True
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
                client.on_wait()
            elif answer == "out":
                round_ += 1
            elif client.lanes[0].round < round_:
                self._fetch(0, round_)
                round_ = client.lanes[0].round  # it may have gone on: ask again
            else:
                break
        else:
            is_late = client.lanes[0].round < self._rounds
            if is_late:
                self._fetch(0, self._rounds)
            self._leave()
            if is_late:
                self._on_end(0)
        self._lanes[0].begun = self.steps


def _looks(strategy: Strategy) -> bool:
    """True if the strategy's `local` mixes in what the model's parameters are now."""
    return type(strategy).local is not Strategy.local
