"""Guesses of what comes next, from what was said before; how many of them pay. Pure.

A window of guesses is verified in one pass over the stages, so on slow links several tokens cost
little more than one. The guess is what followed the longest suffix (four tokens to one) that
occurred before; how long it may be follows from how often guesses of its kind were right, and from
what a further row costs beside a step, both measured.
Source: prompt lookup decoding (Saxena, 2023); the gain of a window of w guesses, each right with
probability p, over a step: (1 + p + ... + p^w) tokens (Leviathan et al., arXiv 2211.17192).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocols.sharding.wire import DRAFT_MAX

SUFFIX_MAX = 4  # tokens of a suffix that is looked up; longer ones add little
GUESSES_MAX = DRAFT_MAX - 1  # one row of a step is the last token that was picked
FORGET_COST = 0.9  # kept, at every step, of what was measured of steps
FORGET_LUCK = 0.7  # the same of guesses: texts change quickly from prose to tables and back
SLOW = 4.0  # fold what was expected; what takes longer was no step alone
LOOKBACK = 4096  # tokens of a prompt that are indexed: 20 ms, in which nothing else happens
PAYS = 1.05  # fold more tokens a second, expected; less is noise of the measurement


@dataclass
class _Success:
    """How often guesses after a suffix of one length were right; begins undecided, one each."""

    right: float = 0.0
    wrong: float = 0.0

    @property
    def share(self) -> float:
        """The probability that the next guess is right."""
        return (self.right + 1.0) / (self.right + self.wrong + 2.0)

    def learn(self, right: int, *, all_right: bool) -> None:
        """Take what a window showed: so many right, and then, unless all were, a wrong one."""
        self.right = self.right * FORGET_LUCK + right
        self.wrong = self.wrong * FORGET_LUCK + (not all_right)

    def fade(self) -> None:
        """A step without a guess: bad luck is forgotten, so that it is tried again some time."""
        self.right *= FORGET_COST
        self.wrong *= FORGET_COST


@dataclass
class StepCost:
    """Seconds of a step by its rows: a line through what was measured, newer ones count more.

    base_s and row_s are what the route expects; they weigh as much as two steps.
    """

    base_s: float
    row_s: float
    _sums: list[float] = field(default_factory=list[float])  # of 1, r, r^2, t, r t

    def __post_init__(self) -> None:
        self._sums = [0.0] * 5
        for rows in (0, 8):
            self._add(rows, self.base_s + self.row_s * rows)

    def learn(self, guesses: int, seconds: float) -> None:
        """Take a measured step of one row and so many guesses.

        One in which a stage was replaced says nothing of steps: it counts as a slow one.
        """
        seconds = min(seconds, SLOW * (self.base_s + self.row_s * guesses))
        self._sums = [FORGET_COST * value for value in self._sums]
        self._add(guesses, seconds)
        count, rows, squares, times, products = self._sums
        spread = squares - rows * rows / count
        if spread > 0.5:  # guesses^2: else all steps had the same length, and say nothing of rows
            self.row_s = max(0.0, (products - rows * times / count) / spread)
        self.base_s = max(1e-6, (times - self.row_s * rows) / count)

    def _add(self, rows: int, seconds: float) -> None:
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [old + one for old, one in zip(self._sums, new, strict=True)]


def best_window(share: float, cost: StepCost, limit: int) -> int:
    """Return how many guesses give the most tokens a second; 0 if none pays."""
    best, best_rate = 0, PAYS / cost.base_s
    expected, right = 1.0, 1.0
    for window in range(1, limit + 1):
        right *= share
        expected += right
        rate = expected / (cost.base_s + cost.row_s * window)
        if rate > best_rate:
            best, best_rate = window, rate
    return best


class Drafter:
    """Guesses for one session. `add` every token that was said, prompt first."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._said: list[int] = []
        # where the tokens go on that last followed a suffix
        self._seen: dict[tuple[int, ...], int] = {}
        self._success = [_Success() for _ in range(SUFFIX_MAX + 1)]
        self._used = 0  # length of the suffix that the last guess came from
        self.drafted = 0
        self.accepted = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Note what was said; of a long text only its end."""
        for token in tokens[-LOOKBACK:]:
            at = len(self._said)
            for length in range(1, min(SUFFIX_MAX, at) + 1):
                self._seen[tuple(self._said[at - length :])] = at
            self._said.append(token)

    def draft(self, limit: int) -> list[int]:
        """Return up to `limit` guesses of what comes next, often none."""
        at, self._used = self._lookup()
        success = self._success[self._used]
        window = 0
        if self._used:
            window = best_window(success.share, self._cost, min(limit, GUESSES_MAX))
        if window == 0:
            success.fade()
        guesses: list[int] = []
        for index in range(at, at + window):  # it may run into its own guesses: a text in a loop
            beyond = index - len(self._said)
            guesses.append(guesses[beyond] if beyond >= 0 else self._said[index])
        return guesses

    def learn(self, guesses: int, right: int, seconds: float) -> None:
        """Take what the last step showed: how many guesses were right, and what it took."""
        self._cost.learn(guesses, seconds)
        if guesses:
            self._success[self._used].learn(right, all_right=right == guesses)
            self.drafted += guesses
            self.accepted += right

    def _lookup(self) -> tuple[int, int]:
        for length in range(min(SUFFIX_MAX, len(self._said)), 0, -1):
            at = self._seen.get(tuple(self._said[-length:]))
            if at is not None:
                return at, length
        return 0, 0


def right_guesses(guesses: Sequence[int], picked: Sequence[int]) -> int:
    """Return how many guesses were what was picked, up to the first that was not."""
    for count, (guess, token) in enumerate(zip(guesses, picked, strict=False)):
        if guess != token:
            return count
    return len(guesses)
