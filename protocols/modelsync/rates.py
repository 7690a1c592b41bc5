"""How fast a node can send, measured while it does: what shards are sized by.

The best of all windows is taken: a node waits for others most of a round, and while it does, what
it sends says nothing of its link.
"""

from collections import deque

WINDOW_S = 0.25  # shorter, the buffers of the kernel would be measured
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
