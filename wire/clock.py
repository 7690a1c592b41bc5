"""The real `Clock`: trio's time for waiting, the machine's time for stamps."""

import time

import trio


class SystemClock:
    """Time as this machine believes it. Only inside `trio.run`."""

    def now(self) -> float:
        """Seconds of trio's clock, which never goes back (and is virtual under a mock clock)."""
        return trio.current_time()

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000
