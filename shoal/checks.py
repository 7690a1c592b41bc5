"""Verified runs: making another member's contribution anew, from the state that it began with.

The daemon names the members to check in the result of a round (`RoundResult.duties`) and compares
what is made with what they had committed to. It works where a contribution follows from the run's
state, the member and the round alone: the inner optimizer starts afresh in every round, and data
and dropout are seeded by (member, round).
"""

from collections.abc import Callable
from typing import Protocol

from shoal.errors import ClientError
from shoal.learn.strategy import Strategy, Vector
from shoal.run_client import RunClient
from shoal.runs import RoundResult

KEPT_ROUNDS = 4  # states from which rounds can be made anew (protocols/modelsync/verify.py)

Recompute = Callable[[str, int], None]


class Writable(Protocol):
    """What is read and written of `shoal.replica.Model`."""

    def read(self, start: int, stop: int) -> Callable[[], Vector]:
        """Copy elements; the result returns them."""
        ...

    def write(self, start: int, values: Vector) -> None:
        """Set elements from `start` on."""
        ...


class Checks:
    """Keeps the states before the last rounds, and does what the daemon asks for.

    recompute: called with a member's peer ID and a round while the model holds the parameters
    that the member had begun the round with; makes its local steps, in place.
    """

    def __init__(
        self, strategy: Strategy, client: RunClient, model: Writable, recompute: Recompute
    ) -> None:
        check_verifiable(strategy)
        self._strategy, self._client, self._model = strategy, client, model
        self._recompute = recompute
        self._states: dict[int, Vector] = {}

    def remember(self, round_: int) -> None:
        """The client's state is still the one before `round_`."""
        self._states[round_] = self._client.state(0).copy()
        for old in sorted(self._states)[:-KEPT_ROUNDS]:
            del self._states[old]

    def work_off(self, result: RoundResult) -> bool:
        """Do the duties that came with a round; True if there were any.

        Then the model's parameters are what the last of them left.
        """
        place, client = self._strategy.lanes[0], self._client
        due = [duty for duty in result.duties if duty.round in self._states]
        for duty in due:
            state = self._states[duty.round]
            now = self._model.read(place.start, place.stop)()
            begun = self._strategy.enter(0, duty.round, state, now)
            self._model.write(place.start, begun)
            self._recompute(duty.target, duty.round)
            local = self._model.read(place.start, place.stop)()
            made = self._strategy.contribution(0, duty.round, state, local)
            client.contribution(0)[: len(made)] = made
            if not client.verdict(duty):
                client.note(f"round {duty.round}: {duty.target[-8:]} brought something else")
        return bool(due)


def check_verifiable(strategy: Strategy) -> None:
    """Raise ClientError unless contributions follow from the run's state alone."""
    is_plain = len(strategy.lanes) == 1 and strategy.ends(0, 0, 0) == 0
    if not is_plain or strategy.needs_sent or strategy.sample_size or strategy.replicas_differ:
        raise ClientError(
            f"{strategy.name} cannot be verified",
            hint="use fedavg, localsgd or diloco, without error feedback",
        )
