"""What a stage has of its session's input, and what it makes of each step. No I/O."""

from protocols.sharding.wire import Step
from wire.errors import BadMessage


class Intake:
    """Sees to it that the worker gets every row once, in order, and no more than was agreed."""

    def __init__(self, row_bytes: int, rows_max: int, max_tokens: int, *, position: int) -> None:
        """`position`: that of the first row that is not in the cache yet."""
        self.number = 0  # of the last step
        self.position = position
        self._row_bytes, self._rows_max, self._max_tokens = row_bytes, rows_max, max_tokens

    def take(self, step: Step) -> int:
        """Return how many rows a step has that the worker must compute; 0: it was seen before.

        A step below our position takes back what is after it. Raises BadMessage.
        """
        count, rest = divmod(len(step.rows), self._row_bytes)
        if rest or not 0 < count <= self._rows_max:
            raise BadMessage(
                f"{len(step.rows)} B are not 1 to {self._rows_max} rows of {self._row_bytes} B"
            )
        if step.picks > count:
            raise BadMessage(f"{step.picks} picks of {count} rows")
        if step.number <= self.number:
            return 0
        if step.position > self.position:
            raise BadMessage(f"rows from {step.position} on, after those before {self.position}")
        if step.position + count > self._max_tokens:
            raise BadMessage(
                f"rows up to {step.position + count}, room was reserved for {self._max_tokens}"
            )
        self.number, self.position = step.number, step.position + count
        return count
