"""The histories of all sessions, within one budget of bytes. No I/O.

Sessions that have ended keep theirs for a while, for audits; parked ones until they go.
Over the budget the oldest session's rows go first. What has not been sent yet stays: without it the
answer would end, while a loss behind forgotten rows is only replayed from one hop further back.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from protocols.sharding.history import History
from protocols.sharding.wire import RECORD_S
from wire.ids import PeerId

RECORDS_MAX = 512  # sessions that have ended, of which we keep the rows

Name = tuple[bytes, int]  # session and start layer


@dataclass
class Record:
    """The rows of a session that has ended, for its entry alone."""

    entry: PeerId
    history: History
    until: float


class Shelf:
    """Counts what all histories take, and makes room."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = 0
        # Each with the position before which it may be forgotten; oldest first.
        self._histories = OrderedDict[int, tuple[History, Callable[[], int], int]]()
        self._records = OrderedDict[Name, Record]()

    def add(self, history: History, sent: Callable[[], int]) -> None:
        """Count a history in. `sent`: the position before which it may be forgotten."""
        _, _, users = self._histories.get(id(history), (history, sent, 0))
        if not users:
            self.size_bytes += history.size_bytes
        self._histories[id(history)] = history, sent, users + 1
        self.grow(0)

    def remove(self, history: History) -> None:
        """One who has added it needs it no more."""
        _, sent, users = self._histories[id(history)]
        self._histories[id(history)] = history, sent, users - 1
        if users == 1:
            del self._histories[id(history)]
            self.size_bytes -= history.size_bytes

    def grow(self, size_bytes: int) -> None:
        """A history that is counted has grown by so much, or has shrunk."""
        self.size_bytes += size_bytes
        if self.size_bytes <= self.budget_bytes:
            return
        for history, sent, _ in self._histories.values():
            before = history.size_bytes
            history.forget(sent())
            self.size_bytes -= before - history.size_bytes
            if self.size_bytes <= self.budget_bytes:
                return

    def record(self, name: Name, entry: PeerId, history: History, now: float) -> None:
        """Keep the rows of a session that has ended, for `RECORD_S`."""
        self.expire(now)
        self._drop(name)
        while len(self._records) >= RECORDS_MAX:
            self._drop(next(iter(self._records)))
        self.add(history, lambda: history.position)
        self._records[name] = Record(entry, history, now + RECORD_S)

    def recorded(self, name: Name, entry: PeerId, now: float) -> History | None:
        """Return the rows of a session of this entry that has ended lately."""
        self.expire(now)
        record = self._records.get(name)
        return record.history if record is not None and record.entry == entry else None

    def expire(self, now: float) -> None:
        """Drop what was kept long enough."""
        while self._records and next(iter(self._records.values())).until <= now:
            self._drop(next(iter(self._records)))

    def _drop(self, name: Name) -> None:
        record = self._records.pop(name, None)
        if record is not None:
            self.remove(record.history)
