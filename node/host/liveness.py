"""Is the other end still there? Pure: told what was sent and heard, it says what to do next.

A ping once nothing came for INTERVAL_S, on a stream of its own; an answer that does not come within
PATIENCE_S is a miss, unless other bytes came meanwhile; MISSES_MAX in a row and the connection is
dead. So a peer that is stopped or unplugged is noticed after 4 + 3 + 3 = 10 s. One that talks is
alive, and is pinged every REFRESH_S for its round trip only: between 20 peers that gossip, pings
would be half of all that an idle node does.

Where it hurries, since a call waits for its answer or the network has changed, silence is asked
about after HURRY_S, and each answer has that long: 3 s in all.
"""

from dataclasses import dataclass

INTERVAL_S = 4.0
PATIENCE_S = 3.0  # a daemon beside a training job may not get the CPU for a second
MISSES_MAX = 2
REFRESH_S = 30.0
HURRY_S = 1.0  # a tenth of that is a far peer's round trip; the rest is for a busy machine
HURRY_ROUND_TRIPS = 4.0  # and for a path that is slow just now, as far as PATIENCE_S


def patience_s(rtt_s: float | None, *, hurries: bool) -> float:
    """How long an answer may take. `rtt_s`: what it took lately, if it came at all."""
    if rtt_s is None or not hurries:
        return PATIENCE_S
    return min(PATIENCE_S, max(HURRY_S, HURRY_ROUND_TRIPS * rtt_s))


@dataclass
class Liveness:
    """One connection: ping at `next_ping_at`, report what came of it, until `is_dead`.

    `bytes_in` is all that the connection has brought so far.
    """

    next_ping_at: float
    misses: int = 0
    is_checking: bool = False  # it is asked until it answers, whatever else it says
    _bytes_at_ping: int = 0
    _answered_at: float = -REFRESH_S

    def check(self, now: float) -> None:
        """Ask now: there is reason to doubt the connection."""
        self.is_checking = True
        self.next_ping_at = now

    def is_due(self, now: float, heard_at: float, *, hurries: bool = False) -> bool:
        """Tell whether to ping now; if not, `next_ping_at` is later. `heard_at`: the last bytes."""
        if self.is_checking:
            return True
        interval_s = HURRY_S if hurries else INTERVAL_S
        quiet_at = max(heard_at, self._answered_at) + interval_s
        self.next_ping_at = max(now, min(quiet_at, self._answered_at + REFRESH_S))
        if self.next_ping_at <= now:
            return True
        self.misses = 0  # it was heard since
        return False

    def pinged(self, bytes_in: int) -> None:
        """A ping went out."""
        self._bytes_at_ping = bytes_in

    def answered(self, now: float) -> None:
        """It came back."""
        self.misses, self.is_checking = 0, False
        self._answered_at = now
        self.next_ping_at = now + INTERVAL_S

    def missed(self, now: float, bytes_in: int) -> None:
        """It did not, in time: ask again at once."""
        self.misses = 0 if bytes_in > self._bytes_at_ping else self.misses + 1
        self.next_ping_at = now

    @property
    def is_dead(self) -> bool:
        """True once nobody can be said to be there."""
        return self.misses >= MISSES_MAX
