"""Guesses of what comes next, from what was said before; how many of them pay. Pure.

A window of guesses is verified in one pass over the stages, so on slow links several tokens cost
little more than one. The guess is what followed the longest suffix (four tokens to one) that
occurred before; how long it may be follows from how often the guess after a suffix of that length
was right, or would have been, in the prompt too, and from what a further row costs beside a step.
Source: prompt lookup decoding (Saxena, 2023); the gain of a window of w guesses, each right with
probability p, over a step: (1 + p + ... + p^w) tokens (Leviathan et al., arXiv 2211.17192).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocols.sharding.wire import DRAFT_MAX

SUFFIX_MAX = 4  # tokens of a suffix that is looked up; longer ones add little
GUESSES_MAX = DRAFT_MAX - 1  # one row of a step is the last token that was picked
FORGET_COST = 0.9  # kept, at every step, of what was measured of steps
FORGET_LUCK = 0.9  # the same of guesses: texts change quickly from prose to tables and back
FIRST_SHARE, FIRST_WEIGHT = 0.25, 2.0  # of guesses that are right, before any; counts as so many
SLOW = 4.0  # fold what was expected; what takes longer was no step alone
LOOKBACK = 4096  # tokens of a prompt that are indexed: 25 ms, in which nothing else happens
PAYS = 1.1  # fold more tokens a second, expected; less is noise of the measurement
PROBE = 4  # every so many windows one is half as long: else what a row costs is never learned


@dataclass
class _Luck:
    """How often the guess after a suffix of one length is right, made or not."""

    right: float = FIRST_SHARE * FIRST_WEIGHT
    all: float = FIRST_WEIGHT

    @property
    def share(self) -> float:
        """The probability that the next guess is right."""
        return self.right / self.all

    def learn(self, *, right: bool) -> None:
        """Take what came after such a suffix."""
        self.right = self.right * FORGET_LUCK + right
        self.all = self.all * FORGET_LUCK + 1.0


@dataclass
class StepCost:
    """Seconds of a step by its rows: a line through what was measured, newer ones count more.

    base_s and row_s are what the route expects; they weigh as much as two steps. No row is taken to
    cost less than what the route expects, which is what one of a long prompt costs.
    """

    base_s: float
    row_s: float
    _sums: list[float] = field(default_factory=list[float])  # of 1, r, r^2, t, r t
    _least_s: float = 0.0

    def __post_init__(self) -> None:
        self._sums, self._least_s = [0.0] * 5, self.row_s
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
            self.row_s = max(self._least_s, (products - rows * times / count) / spread)
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
        self._luck = [_Luck() for _ in range(SUFFIX_MAX + 1)]  # by the length of the suffix
        self._windows = 0
        self.drafted = 0
        self.accepted = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Note what was said; of a long text only its end."""
        for token in tokens[-LOOKBACK:]:
            at = len(self._said)
            guess, length = self._lookup()
            if length:
                self._luck[length].learn(right=self._said[guess] == token)
            for length in range(1, min(SUFFIX_MAX, at) + 1):
                self._seen[tuple(self._said[at - length :])] = at
            self._said.append(token)

    def draft(self, limit: int) -> list[int]:
        """Return up to `limit` guesses of what comes next, often none."""
        at, length = self._lookup()
        window = 0
        if length:
            window = best_window(self._luck[length].share, self._cost, min(limit, GUESSES_MAX))
        self._windows += window > 0
        if self._windows % PROBE == 0:
            window = (window + 1) // 2
        guesses: list[int] = []
        for index in range(at, at + window):  # it may run into its own guesses: a text in a loop
            beyond = index - len(self._said)
            guesses.append(guesses[beyond] if beyond >= 0 else self._said[index])
        return guesses

    def learn(self, guesses: int, right: int, seconds: float) -> None:
        """Take what the last step showed: how many guesses were right, and what it took."""
        self._cost.learn(guesses, seconds)
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
