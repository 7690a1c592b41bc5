"""When a record goes: how long deletions are remembered, and what lost, and expired leases.

Pure: of the records at a key, of what counts, and of the namespace's rules. What hides others
stays twice as long as what is hidden, so that nothing comes back from a replica that was away.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence

from crdt.entry import ADD, Record
from crdt.fold import stand
from crdt.namespace import Rules

NEVER = 2**63
SLACK = 1000  # outdated alarms that may be there, besides as many as there are keys


class Agenda:
    """When which key is to be looked at; of a key the earliest time stands."""

    def __init__(self) -> None:
        self._due: dict[str, int] = {}
        self._alarms: list[tuple[int, str]] = []  # a heap, with times that do not stand any more

    def put(self, key: str, due_ms: int) -> None:
        """Have a key looked at, at the latest then."""
        if due_ms >= self._due.get(key, NEVER):
            return
        self._due[key] = due_ms
        heapq.heappush(self._alarms, (due_ms, key))
        if len(self._alarms) > 2 * len(self._due) + SLACK:
            self._alarms = [(due, name) for name, due in self._due.items()]
            heapq.heapify(self._alarms)

    def cancel(self, key: str) -> None:
        """Have a key not looked at."""
        self._due.pop(key, None)

    def is_due(self, now_ms: int) -> bool:
        """True if a key may have to be looked at now."""
        return bool(self._alarms) and self._alarms[0][0] <= now_ms

    def pop_due(self, now_ms: int) -> Iterator[tuple[str, int]]:
        """Take out keys whose time has come, with that time."""
        while self._alarms and self._alarms[0][0] <= now_ms:
            due_ms, key = heapq.heappop(self._alarms)
            if self._due.get(key) == due_ms:
                del self._due[key]
                yield key, due_ms


def own_end(record: Record, rules: Rules) -> int:
    """Return when a record goes, in wall-clock milliseconds, whatever else there is."""
    if record.is_tombstone:
        is_added = record.kind == ADD  # an element of a set has no value
        return NEVER if is_added else record.wall_ms + rules.gc_ms
    return record.expires_ms + 2 * rules.max_skew_ms if record.expires_ms else NEVER


def loser_end(winner: Record, rules: Rules) -> int:
    """Return when what lost to a record goes; what lost to nothing but a proof: to itself."""
    return winner.wall_ms + rules.gc_ms // 2


def ends(
    records: Sequence[Record], counts: Callable[[Record], bool], rules: Rules, now_ms: int
) -> dict[bytes, int]:
    """Return when each record of a key goes, by stamp, as things stand. Cost: O(n log n)."""
    found = {record.stamp: own_end(record, rules) for record in records}
    counting: list[Record] = []
    for record in records:
        if not counts(record):
            found[record.stamp] = min(found[record.stamp], loser_end(record, rules))
        elif not is_expired(record, now_ms):
            counting.append(record)
    standing = stand(counting)
    if standing is None:
        return found
    for loser, winner in standing.lost:
        found[loser.stamp] = min(found[loser.stamp], loser_end(winner, rules))
    if standing.hidden is not None:
        stamp = standing.hidden.stamp
        as_tombstone = standing.hidden.wall_ms + rules.gc_ms
        found[stamp] = min(found[stamp], max(as_tombstone, loser_end(standing.latest, rules)))
    return found


def is_expired(record: Record, now_ms: int) -> bool:
    """True for a lease whose time is over."""
    return 0 < record.expires_ms <= now_ms
