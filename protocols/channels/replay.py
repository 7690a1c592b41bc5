"""Old messages that are sent again: their signature is good, so their number must tell.

Ours are numbered by the wall clock in nanoseconds, as go-libp2p's and py-libp2p's are; such a
number is too old or too new outside a window. js-libp2p draws random numbers: an author who has
used one that is no time is judged by memory alone. Within the window every number counts once.
Pure. The machine's own seen-cache is shorter and knows nothing of restarts.
"""

from collections import OrderedDict
from typing import TypeVar

T = TypeVar("T")

WINDOW_S = 600.0  # how wrong two clocks may be and a message still pass: users' machines are
REMEMBERED = 64 * 1024  # messages; 8 MB. Who floods more than that in the window hides replays
AUTHORS_MAX = 4096  # of whom more is known than the window says
_NS = 1_000_000_000
_PAST_NS, _FUTURE_NS = 2 * 365 * 86_400 * _NS, 30 * 86_400 * _NS  # what can be meant as a time


class Replays:
    """Tells whether a message of an author is fresh. Times are wall-clock nanoseconds."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._seen: OrderedDict[tuple[bytes, int], int] = OrderedDict()  # -> when it came
        self._floors: OrderedDict[bytes, int] = OrderedDict()  # numbers up to it are old
        self._randoms: OrderedDict[bytes, None] = OrderedDict()  # authors with numbers of no time

    def is_fresh(self, author: bytes, number: int, now_ns: int) -> bool:
        """Say whether a message may be new; it is not remembered yet."""
        if (author, number) in self._seen:
            return False
        if author in self._randoms or not is_time(number, now_ns):
            return True
        is_near = abs(number - now_ns) <= WINDOW_S * _NS
        return is_near and number > self._floors.get(author, 0)

    def remember(self, author: bytes, number: int, now_ns: int) -> None:
        """From now on this message is old. Call it for what its author has signed only."""
        self._seen[author, number] = now_ns
        if not is_time(number, now_ns):
            _put(self._randoms, author, None)
        oldest = next(iter(self._seen.values()))
        while self._seen and oldest < now_ns - 2 * WINDOW_S * _NS:
            self._seen.popitem(last=False)
            oldest = next(iter(self._seen.values()), now_ns)
        if len(self._seen) > self._remembered:  # forgotten too early: nothing before it passes
            (author, number), _ = self._seen.popitem(last=False)
            if is_time(number, now_ns):
                _put(self._floors, author, max(number, self._floors.get(author, 0)))


def age_fits(number: int, age_ms: int, now_ns: int) -> bool:
    """Tell whether a message can be so old: only if its number is a time, it must fit."""
    sent_ns = now_ns - age_ms * 1_000_000
    return not is_time(number, now_ns) or abs(number - sent_ns) <= WINDOW_S * _NS


def is_time(number: int, now_ns: int) -> bool:
    """Tell whether a number can be meant as a time of the wall clock."""
    return now_ns - _PAST_NS < number < now_ns + _FUTURE_NS


def _put(book: OrderedDict[bytes, T], author: bytes, value: T) -> None:
    book[author] = value
    book.move_to_end(author)
    if len(book) > AUTHORS_MAX:
        book.popitem(last=False)
