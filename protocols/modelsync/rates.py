"""How fast a node can send, measured while it does: what shards are sized by.

The best of all windows is taken: a node waits for others most of a round, and while it does, what
it sends says nothing of its link.
"""

from collections import deque

WINDOW_S = 0.25  # shorter, the buffers of the kernel would be measured
KEPT = 8  # rounds whose best counts: a node that was busy for one is no slower for that
SAMPLES_MAX = 1024  # kept of a window; the oldest goes, and the rate is of the shorter window


class Meter:
    """Bytes/s of the best window."""

    def __init__(self) -> None:
        self._samples = deque[tuple[float, int]](maxlen=SAMPLES_MAX)
        self._bytes = 0
        self.rate = 0  # bytes/s; 0 before a whole window has passed

    def add(self, count: int, now: float) -> None:
        """So many more bytes have gone."""
        self._bytes += count
        self._samples.append((now, self._bytes))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        if now - since >= WINDOW_S:
            self.rate = max(self.rate, int((self._bytes - before) / (now - since)))


class Rates:
    """A node's rate over its last rounds: the best of them, bytes/s; 0 if none was measured."""

    def __init__(self) -> None:
        self._measured = deque[int](maxlen=KEPT)

    @property
    def best(self) -> int:
        """Bytes/s."""
        return max(self._measured, default=0)

    def add(self, rate: int) -> None:
        """A round has measured this; 0: too little went."""
        if rate:
            self._measured.append(rate)
