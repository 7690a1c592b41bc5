"""`shoal.join`: for scripts that average anything, with the same bits for everybody.

with shoal.join("mine", elements=1000) as run:
    r = run.round(vector, weight=3.0)
    r.value, r.members, r.root
"""

from dataclasses import dataclass
from types import TracebackType

import numpy as np

from shoal.client import Client
from shoal.errors import ClientError
from shoal.learn.exact import CONTRIBUTION_MAX
from shoal.learn.strategy import Vector
from shoal.run_client import ROUND_WAIT_S, ROUNDS_MAX, RunClient, Shape, is_sound, waits
from shoal.runs import LaneBody, RoundResult, Tensor


@dataclass(frozen=True)
class Round:
    """What a round brought: the weighted mean, who made it, the hash of the mean.

    `missed`: rounds that the run had without us since our last one.
    """

    value: Vector
    members: list[str]
    root: str
    round: int
    missed: int = 0


class Averaging:
    """A run in which scripts average vectors; made by `join`. Use it with `with`."""

    def __init__(self, part: RunClient) -> None:
        """Attach to the daemon."""
        self._part = part
        part.attach()
        self._is_new = part.source != "new"

    @property
    def member(self) -> str:
        """Our peer ID."""
        return self._part.member

    @property
    def value(self) -> Vector:
        """The last round's mean, as the run has it; zeros before the first. A copy."""
        return self._part.state(0).copy()

    def round(self, vector: Vector, *, weight: float = 1.0) -> Round:
        """Average with all members of the run; waits until the round is committed.

        vector: as many numbers as the run has elements; taken as float32. weight: its share in the
        mean, 0 or from 0.001 to a million. Every member gets the same bits. If rounds went by
        without us, `vector` goes into the one that is next.
        Raises ClientError if the vector does not fit or the daemon refuses.
        """
        part, began = self._part, self._part.lanes[0].round
        values = np.asarray(vector, dtype=np.float32).reshape(-1)
        if len(values) != len(part.state(0)) or not is_sound(values):
            raise ClientError(
                f"{len(values)} numbers; the run has {len(part.state(0))} elements, finite "
                f"and not beyond {CONTRIBUTION_MAX:g}"
            )
        if self._is_new:  # who has just come brings nothing to its first round
            self._take_part(values, 0.0)
            began = part.lanes[0].round
        result = self._take_part(values, weight)
        missed = result.round - began
        return Round(self.value, result.members, part.lanes[0].root, result.round, missed)

    def _take_part(self, values: Vector, weight: float) -> RoundResult:
        part = self._part
        while True:
            part.contribution(0)[:] = values
            result = part.submit(0, weight, is_new=self._is_new, wait_s=ROUND_WAIT_S)
            while result.outcome == "waiting":
                part.note(waits(result))
                result = part.outcome(0)
            if result.outcome == "committed":
                break
            part.fetch(0, at_least=result.at_least, root=result.root)
        self._is_new = False
        if any(result.weights):
            part.spare(0)[:] = part.contribution(0)
            part.advance(0, result.round + 1)
        else:
            part.stay(0, result.round + 1)
        return result

    def close(self) -> None:
        """Leave the run."""
        self._part.leave(finished=True)

    def __enter__(self) -> "Averaging":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def join(
    run: str,
    *,
    elements: int,
    rounds: int = ROUNDS_MAX,
    wire: str = "float32",
    aggregator: str = "mean",
    min_members: int = 1,
    patience_s: float = 20.0,
    client: Client | None = None,
) -> Averaging:
    """Take part in a run that averages vectors of `elements` numbers.

    wire: the codec that numbers travel in (float32, bfloat16, float16, int8, int4, …). aggregator:
    mean, or one that a minority of liars cannot move (median, trimmed, clip, flag). min_members:
    the first round waits for so many; patience_s: then a round waits so long for slow ones.
    Raises shoal.errors.ClientError if the daemon is not there or refuses.
    """
    shape = Shape(
        [LaneBody(elements, elements, 0, elements)],
        rounds=rounds,
        wire=wire,
        min_members=min_members,
        patience_s=patience_s,
        aggregator=aggregator,
        layout=[Tensor("value", [elements])],
    )
    return Averaging(RunClient(run, shape, client=client))
