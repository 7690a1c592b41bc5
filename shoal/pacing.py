"""What a run on the wire `auto` needs to know here: how long a step takes, how fast the link is."""

from collections.abc import Callable

from shoal.learn.controller import Controller
from shoal.runs import RoundResult


class Pace:
    """Times the caller's steps and its rounds, and says what this member wishes next.

    elements: of the largest lane's contribution; lanes: that share the link. now: a clock, s.
    """

    def __init__(self, every: int, *, elements: int, lanes: int, now: Callable[[], float]) -> None:
        self._controller, self._now = Controller(every), now
        self._elements, self._lanes, self._members = elements, lanes, 1
        self._left_at: float | None = None
        self._computed_s, self._steps = 0.0, 0

    def arrive(self) -> None:
        """A local step has been made."""
        if self._left_at is not None:
            self._computed_s += self._now() - self._left_at
            self._steps += 1

    def leave(self) -> None:
        """The caller goes on with its next step: what a round took is not computing."""
        self._left_at = self._now()

    def finished(self, result: RoundResult) -> None:
        """Take in what a committed round measured, and what its members agreed on."""
        self._members = max(1, len(result.members))
        step_s = self._computed_s / self._steps if self._steps else 0.0
        moved = max(result.bytes_in, result.bytes_out)
        self._controller.measured(step_s=step_s, rate=result.rate, moved=moved)
        self._computed_s, self._steps = 0.0, 0
        self._controller.agreed(result.codec, result.every)

    def wish(self) -> tuple[str, int]:
        """Return the codec and the local steps that would hide the next round."""
        choice = self._controller.wish(
            elements=self._elements, members=self._members, rounds_at_once=self._lanes
        )
        return choice.codec, choice.every
