"""What the demo prints: few lines, each a fact that was checked before it was said."""

import sys
import textwrap
import time
from dataclasses import dataclass, field

from node.demo.swarm import DemoFailed

LINES_MAX = 64  # what a person reads; the demo fails rather than say more
WIDTH = 100


@dataclass
class Narrator:
    """Prints lines with the time since the start, and counts them."""

    started: float = field(default_factory=time.monotonic)
    lines: int = 0

    def say(self, text: str) -> None:
        """Print one line, or several if the text has several."""
        for line in text.splitlines():
            self.lines += 1
            if self.lines > LINES_MAX:
                raise DemoFailed(f"the demo has more than {LINES_MAX} lines to say")
            sys.stdout.write(line.rstrip()[:WIDTH] + "\n")
        sys.stdout.flush()

    def head(self, text: str) -> None:
        """Begin a part."""
        self.say(f"[{time.monotonic() - self.started:5.1f} s] {text}")

    def quote(self, text: str, *, lines_max: int) -> None:
        """Print a longer text, indented and cut to `lines_max` lines."""
        flat = " / ".join(part.strip() for part in text.splitlines() if part.strip())
        rows = textwrap.wrap(flat, WIDTH - 4)[:lines_max]
        self.say("\n".join(f"    {row}" for row in rows))


def check(holds: bool, fact: str) -> None:
    """Fail the demo if a fact does not hold."""
    if not holds:
        raise DemoFailed(f"this should hold and does not: {fact}")
