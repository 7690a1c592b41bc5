"""Is the other end still there? Pure: told what was sent and heard, it says what to do next.

A ping every INTERVAL_S on a stream of its own; an answer that does not come within PATIENCE_S is a
miss, unless other bytes came meanwhile; MISSES_MAX in a row and the connection is dead. So a peer
that is stopped or unplugged just after an answer is noticed after 4 + 3 + 3 = 10 s.
"""

from dataclasses import dataclass

INTERVAL_S = 4.0
PATIENCE_S = 3.0  # a daemon beside a training job may not get the CPU for a second
MISSES_MAX = 2


@dataclass
class Liveness:
    """One connection: ping at `next_ping_at`, report what came of it, until `is_dead`.

    `bytes_in` is all that the connection has brought so far.
    """

    next_ping_at: float
    misses: int = 0
    _bytes_at_ping: int = 0

    def pinged(self, bytes_in: int) -> None:
        """A ping went out."""
        self._bytes_at_ping = bytes_in

    def answered(self, now: float) -> None:
        """It came back."""
        self.misses = 0
        self.next_ping_at = now + INTERVAL_S

    def missed(self, now: float, bytes_in: int) -> None:
        """It did not, in time: ask again at once."""
        self.misses = 0 if bytes_in > self._bytes_at_ping else self.misses + 1
        self.next_ping_at = now

    @property
    def is_dead(self) -> bool:
        """True once nobody can be said to be there."""
        return self.misses >= MISSES_MAX
