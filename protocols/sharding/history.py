"""What a node has fed to the next one in the ring, so that it can be fed again. No I/O.

Rows lie one after the other, whatever steps they came in. Of the steps only what a receiver could
lack is kept: a step that a later one truncates away leaves no mark.
"""

from bisect import bisect_right
from collections import deque

from protocols.sharding.wire import SESSION_TOKENS_MAX, Picks, Step, rows_of_step
from wire.errors import BadMessage, NotFound

# The number of a session's first step. Lower ones are those of a reused prefix that is replayed
# before it: rows up to position p go as step p.
FIRST_NUMBER = SESSION_TOKENS_MAX + 1
PICKS_KEPT = 8  # the entry waits for the picks of a step before it sends the next; a few to spare


class Forgotten(NotFound):
    """A receiver lacks rows that are not kept any more."""

    code = "forgotten"


def step_rows_max(hidden_size: int) -> int:
    """Return how many rows a step of a session may have: the same for all its hops and codecs."""
    return rows_of_step(4 * hidden_size)


class History:
    """Rows of one hop of a session, contiguous from `base` on, and where its steps began.

    `rows` are those of a reused prefix. `rows_max` bounds the steps that are added and replayed.
    """

    def __init__(self, row_bytes: int, rows_max: int, *, base: int = 0, rows: bytes = b"") -> None:
        self.row_bytes, self.rows_max, self.base = row_bytes, rows_max, base
        self.number = 0  # of the last step; 0 before the first
        self._rows = bytearray(rows)
        # Both rise strictly: a step drops the marks of those before it that began no lower.
        self._numbers: list[int] = []
        self._starts: list[int] = []
        self._picks = 0  # that the last step asked for
        self._forgotten = 0  # the last step whose mark is gone with its rows

    @property
    def position(self) -> int:
        """The position of the row after the last one."""
        return self.base + len(self._rows) // self.row_bytes

    @property
    def size_bytes(self) -> int:
        """What is kept."""
        return len(self._rows)

    def begin(self, rows: bytes) -> None:
        """Have the rows of a reused prefix, before the first step."""
        assert not self.number, "it has begun"
        self._rows[:] = rows

    def add(self, step: Step) -> None:
        """Keep a step: its number is above all before, and there is no gap before its rows."""
        assert step.number > self.number, "a step that was added before"
        assert step.position <= self.position, "rows are missing"
        if step.position < self.base:
            self.base = step.position
            self._rows.clear()
        del self._rows[(step.position - self.base) * self.row_bytes :]
        self._rows += step.rows
        while self._starts and self._starts[-1] >= step.position:
            self._starts.pop()
            self._numbers.pop()
        self._starts.append(step.position)
        self._numbers.append(step.number)
        self.number, self._picks = step.number, step.picks

    def lacking(self, number: int, position: int) -> int:
        """Return from where on the rows are not those that a receiver has, who has seen `number`
        and rows before `position`: a step that it has not seen may take some of them back.
        """
        at = bisect_right(self._numbers, number)
        return min(position, *self._starts[at : at + 1], self.position)

    def after(self, number: int, position: int) -> Step | None:
        """Return the next step for who has seen `number` and has the rows before `position`.

        None if it lacks nothing. The last step goes as it was; those before it are merged, up to
        `rows_max` rows. Raises Forgotten, or BadMessage for what no receiver can have.
        """
        if number >= self.number:
            return None
        starts, numbers = self._starts, self._numbers
        start = min(position, starts[bisect_right(numbers, number)]) if starts else -1
        if start < self.base or number < self._forgotten:
            raise Forgotten(f"rows before {self.base} are not kept any more")
        if start == starts[-1]:
            return Step(numbers[-1], start, self.rows(start, self.position), self._picks)
        last = bisect_right(starts, start + self.rows_max) - 1  # the step before which we stop
        if last < 0 or starts[last] <= start:
            stop = merged = start + self.rows_max  # in the middle of a reused prefix
        else:
            stop = starts[last]
            merged = numbers[last - 1] if last else stop
        if merged <= number:
            raise BadMessage(f"a receiver that has seen {number} has rows up to {position}")
        return Step(merged, start, self.rows(start, stop), 0)

    def rows(self, start: int, stop: int) -> bytes:
        """Return the rows of positions [start, stop), which are kept."""
        view = memoryview(self._rows)
        size, base = self.row_bytes, self.base
        return bytes(view[(start - base) * size : (stop - base) * size])

    def forget(self, before: int) -> None:
        """Drop the rows before a position."""
        before = min(before, self.position)
        if before <= self.base:
            return
        del self._rows[: (before - self.base) * self.row_bytes]
        self.base = before
        dropped = bisect_right(self._starts, before - 1)
        if dropped:
            self._forgotten = self._numbers[dropped - 1]
            del self._starts[:dropped], self._numbers[:dropped]

    def fork(self, position: int) -> "History":
        """Return a history of its own that has the rows before a position as its prefix."""
        assert position <= self.position, "rows are missing"
        base = min(self.base, position)
        rows = self.rows(base, position)
        return History(self.row_bytes, self.rows_max, base=base, rows=rows)


class PicksKept:
    """The last picks that the last stage has made, for an entry that did not get them."""

    def __init__(self) -> None:
        self._kept = deque[Picks](maxlen=PICKS_KEPT)
        self.row_bytes = 1  # there are none

    def add(self, picks: Picks) -> None:
        """Keep the picks of a step."""
        self._kept.append(picks)

    def after(self, number: int, position: int) -> Picks | None:
        """Return the next picks for who has seen those of step `number`; None if there are none."""
        return next((picks for picks in self._kept if picks.number > number), None)
