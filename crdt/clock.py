"""Hybrid logical clock: 48 bits of wall-clock milliseconds, then 16 bits of counter.

A writer that lies about its time wins for at most `FUTURE_MAX_MS`: what is stamped further ahead
is refused until its time comes. Source: Kulkarni et al., "Logical Physical Clocks", 2014.
"""

from dataclasses import dataclass

from wire.errors import ShoalError

COUNTER_BITS = 16
HLC_MAX = 2**63 - 1  # SQLite's and msgspec's largest integer; the year 6429
FUTURE_MAX_MS = 30_000  # how far ahead a stamp may be: honest machines differ by less (NTP or not)
LEAD_MAX_MS = 15_000  # how far others' stamps may push our clock. Half of the above, so that a
# liar at the bound cannot make our own stamps too new for a peer whose clock is a little behind.


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


def is_future(hlc: int, now_ms: int) -> bool:
    """True for a stamp that must not be merged yet."""
    return wall_of(hlc) > now_ms + FUTURE_MAX_MS


@dataclass
class HybridClock:
    """Stamps that always grow, stay close to the wall clock, and follow what was seen."""

    last: int = 0

    def tick(self, now_ms: int, *, after: int = 0) -> int:
        """Return a new stamp, larger than all before and than `after`. Raises ClockError."""
        hlc = max(self.last + 1, after + 1, stamp(now_ms))
        if is_future(hlc, now_ms):
            ahead_s = (wall_of(hlc) - now_ms) / 1000
            raise ClockError(f"the next stamp would be {ahead_s:.1f} s ahead of this clock")
        if wall_of(hlc) <= now_ms + LEAD_MAX_MS:
            self.last = hlc
        return hlc

    def observe(self, hlc: int, now_ms: int) -> None:
        """Follow a stamp seen elsewhere, up to `LEAD_MAX_MS` ahead of our own time."""
        if wall_of(hlc) <= now_ms + LEAD_MAX_MS:
            self.last = max(self.last, hlc)
