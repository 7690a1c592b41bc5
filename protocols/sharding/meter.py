"""What a worker measured of itself lately: time of a step, share of the time that it computes."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

from protocols.sharding.worker_wire import Load

WINDOW_S = 3.0  # seconds over which the share fades: leases are written about as often
WEIGHT = 0.2  # of the newest step in the averages of times
PROMPT_ROWS = 8  # of a step, from which on its rows tell what a row of a prompt costs
_US = 1e6


class Meter:
    """Written by the thread that computes, read by any."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._decode_s = self._row_s = 0.0
        self._share, self._changed = 0.0, now()  # the share at that time, and
        self._computing = False  # what has been going on since

    @property
    def decode_s(self) -> float:
        """Seconds that a step of single rows takes lately; 0: not known."""
        return self._decode_s

    @contextmanager
    def computing(self) -> Generator[None]:
        """Count the time of the block as busy."""
        self._turn(computing=True)
        try:
            yield
        finally:
            self._turn(computing=False)

    def step(self, rows: int, seconds: float) -> None:
        """Count one step: of several sessions' rows together it is one row for each."""
        if rows == 1:
            self._decode_s = _mean(self._decode_s, seconds)
        elif rows >= PROMPT_ROWS:
            self._row_s = _mean(self._row_s, max(0.0, seconds - self._decode_s) / (rows - 1))

    def load(self, resident_bytes: int) -> Load:
        """Return the measurements, with the memory that the process holds."""
        times = round(self._decode_s * _US), round(self._row_s * _US)
        return Load(*times, self._share_at(self._now()), resident_bytes)

    def _turn(self, *, computing: bool) -> None:
        now = self._now()
        self._share, self._changed, self._computing = self._share_at(now), now, computing

    def _share_at(self, now: float) -> float:
        goal = 1.0 if self._computing else 0.0
        return goal + (self._share - goal) * math.exp(-(now - self._changed) / WINDOW_S)


def _mean(before: float, value: float) -> float:
    return value if before == 0.0 else before + WEIGHT * (value - before)
