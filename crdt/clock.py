"""Hybrid logical clock: 48 bits of wall-clock milliseconds, then 16 bits of counter.

A writer that lies about its time wins for at most the `max_skew_ms` of the namespace: what is
stamped further ahead is refused until its time comes.
Source: Kulkarni et al., "Logical Physical Clocks", 2014.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from wire.errors import ShoalError

COUNTER_BITS = 16
HLC_MAX = 2**63 - 1  # SQLite's and msgspec's largest integer; the year 6429
FUTURE_MAX_MS = 30_000  # how far ahead a stamp may be: honest machines differ by less (NTP or not)


class ClockError(ShoalError):
    """The wall clock is too far behind stamps that this node has accepted."""

    code = "clock"
    hint = "set this machine's clock (NTP); it has gone back"


def stamp(wall_ms: int) -> int:
    """Return the smallest stamp of a millisecond."""
    return wall_ms << COUNTER_BITS


def wall_of(hlc: int) -> int:
    """Return the milliseconds of a stamp."""
    return hlc >> COUNTER_BITS


def utc(wall_ms: int) -> str:
    """Return a time as people read it; whoever set it may have set it to anything."""
    try:
        return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{wall_ms} ms"


def is_future(hlc: int, now_ms: int, max_skew_ms: int = FUTURE_MAX_MS) -> bool:
    """True for a stamp that must not be merged yet."""
    return wall_of(hlc) > now_ms + max_skew_ms


@dataclass
class HybridClock:
    """Stamps that always grow, stay close to the wall clock, and follow what was seen.

    Others' stamps push it up to half of `max_skew_ms` ahead: so a liar at the bound cannot make
    our own stamps too new for a peer whose clock is a little behind.
    """

    max_skew_ms: int = FUTURE_MAX_MS
    last: int = 0

    def tick(self, now_ms: int, *, after: int = 0) -> int:
        """Return a new stamp, larger than all before and than `after`. Raises ClockError.

        One that is over half the bound ahead, because `after` is, is for that one entry: the
        clock does not follow it.
        """
        hlc = max(self.last + 1, after + 1, stamp(now_ms))
        if is_future(hlc, now_ms, self.max_skew_ms):
            ahead_s = (wall_of(hlc) - now_ms) / 1000
            raise ClockError(f"the next stamp would be {ahead_s:.1f} s ahead of this clock")
        if hlc == self.last + 1:  # also when our own time has gone back
            self.last = hlc
        self.observe(hlc, now_ms)
        return hlc

    def observe(self, hlc: int, now_ms: int) -> None:
        """Follow a stamp seen elsewhere, up to half the bound ahead of our own time."""
        if wall_of(hlc) <= now_ms + self.max_skew_ms // 2:
            self.last = max(self.last, hlc)
