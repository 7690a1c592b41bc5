"""What comes from peers, before it may touch a replica: proven, gated, or kept for later."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from crdt.entry import Record, Signed, is_signed, unseal
from crdt.fault import prev_of
from wire.errors import BadMessage

DEFERRED_MAX = 1000  # entries from the future, or whose grant is not here yet; 4 MB at most
DEFERRED_AUTHOR_MAX = 100  # of one author, so that nobody fills the list for the others
DEFERRED_MS = 3_600_000  # after an hour a sync may bring it again
LATER = ("future", "no_grant")  # refusals that time or news may lift


def proven(signed: list[Signed]) -> list[Record]:
    """Decode entries and check them; those of a chain that follow each other cost one signature.

    Blocking: about 4 us an entry and 50 us a signature. Raises BadMessage if any is not proven:
    whoever passes it on should have known.
    """
    records = [unseal(one) for one in signed]
    after: Record | None = None
    for record in reversed(records):
        is_linked = after is not None and follows(after, record)
        if not is_linked and not is_signed(record):
            raise BadMessage(f"a wrong signature under {record.key!r} of {record.peer}")
        after = record
    return records


def follows(after: Record, before: Record) -> bool:
    """True if an entry names the other as the one before it in its chain."""
    return (
        after.chain == before.chain
        and after.seq == before.seq + 1
        and after.namespace == before.namespace
        and prev_of(after) == before.link
    )


@dataclass
class Deferred:
    """Entries that may become acceptable; when full, the one that has waited longest goes."""

    _held: dict[bytes, tuple[Record, str, int]] = field(
        default_factory=dict[bytes, tuple[Record, str, int]]
    )
    _of_author: Counter[bytes] = field(default_factory=Counter[bytes])

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, record: Record, reason: str, now_ms: int) -> None:
        """Keep an entry for later."""
        if record.stamp in self._held or self._of_author[record.author] >= DEFERRED_AUTHOR_MAX:
            return
        if len(self._held) >= DEFERRED_MAX:
            self._drop(next(iter(self._held)))
        self._held[record.stamp] = record, reason, now_ms
        self._of_author[record.author] += 1

    def due(self, now_ms: int, skew_ms: Callable[[bytes], int]) -> list[Record]:
        """Take out those from the future whose time has come, and forget what is too old.

        skew_ms: how far ahead of now a namespace lets an entry be.
        """
        found: list[Record] = []
        for record, reason, since_ms in list(self._held.values()):
            is_time = record.wall_ms <= now_ms + skew_ms(record.namespace)
            if reason == "future" and is_time:
                found.append(record)
            if (reason == "future" and is_time) or since_ms + DEFERRED_MS < now_ms:
                self._drop(record.stamp)
        return found

    def granted(self, namespace: bytes) -> list[Record]:
        """Take out those of a namespace that waited for a grant: there are new ones."""
        found = [
            record
            for record, reason, _ in self._held.values()
            if reason == "no_grant" and record.namespace == namespace
        ]
        for record in found:
            self._drop(record.stamp)
        return found

    def _drop(self, stamp: bytes) -> None:
        record, _, _ = self._held.pop(stamp)
        self._of_author[record.author] -= 1
        if not self._of_author[record.author]:
            del self._of_author[record.author]
