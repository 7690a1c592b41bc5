"""What a side of a sync sees of a namespace: what is held, and what is not wanted."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crdt.entry import GRANT, Record
from crdt.replica import Replica
from crdt.timeline import (
    END,
    PRINT_BYTES,
    START,
    Timeline,
    cut_by_age,
    cut_evenly,
    prints_of,
    short,
)
from crdt.wire import Range

REFUSED_MAX = 4096  # entries that are remembered as not wanted: 0.5 MB a namespace
REFUSED_FIRST_S = 20.0  # then a sync may bring one again: what hid it may have gone, there may be
# room, or a grant. Each time it is refused again it waits twice as long,
REFUSED_LAST_S = 640.0  # up to this
REFUSED_LOOK_S = 1.0  # between looks at all that are remembered, 1 ms for 4,096
RULE_KEYS = ("grant", "revoke")  # where grants and revocations stand
LEAF_MAX = 32  # entries of a range that are named one by one; of more, parts are compared
PART_ENTRIES = 10  # of a part, at the least: naming that many costs as much as 6 fingerprints
PARTS = 16  # of a range that is cut further
FIRST_PARTS = 40  # of a whole timeline, of one size; and those that get finer the newer it is,
NEWEST = 16  # down to so many entries: at n = 100k 48 ranges, 800 bytes


@dataclass
class Refusals:
    """Stamps of entries that a sync brought and the replica did not keep, for a while. When full,
    the oldest goes. `now` is in seconds, of a clock that never goes back.
    """

    stamps: Timeline = field(default_factory=Timeline)
    _waits: dict[bytes, tuple[float, float]] = field(
        default_factory=dict[bytes, tuple[float, float]]
    )  # until when, and how long that was
    _looked: float = -math.inf

    def __len__(self) -> int:
        return len(self._waits)

    def note(self, stamp: bytes, now: float) -> None:
        """Remember one."""
        until, wait_s = self._waits.get(stamp, (0.0, REFUSED_FIRST_S / 2))
        if stamp in self.stamps and now < until:
            return
        if stamp not in self._waits and len(self._waits) >= REFUSED_MAX:
            self.forget_oldest()
        wait_s = min(2 * wait_s, REFUSED_LAST_S)
        self._waits[stamp] = now + wait_s, wait_s
        self.stamps.add(stamp)

    def expire(self, now: float) -> None:
        """Let those come again whose time is over; how often they came is known a while longer."""
        if now < self._looked + REFUSED_LOOK_S:
            return
        self._looked = now
        for stamp, (until, _) in list(self._waits.items()):
            if until + REFUSED_LAST_S <= now:
                self._forget(stamp)
            elif until <= now and stamp in self.stamps:
                self.stamps.remove(stamp)

    def forget_oldest(self) -> None:
        """Let one come again: others need its room."""
        self._forget(next(iter(self._waits)))

    def _forget(self, stamp: bytes) -> None:
        del self._waits[stamp]
        if stamp in self.stamps:
            self.stamps.remove(stamp)


@dataclass
class Holding:
    """A replica, and what it refused lately. Fingerprints are over what it holds; counts and ids
    are also of what it refused, so that nobody sends that again.
    """

    replica: Replica
    refusals: Refusals = field(default_factory=Refusals)

    def seen(self, low: bytes, high: bytes) -> list[bytes]:
        """Return the stamps in [low, high) that are held or refused, in order."""
        held = self.replica.timeline.between(low, high)
        refused = self.refusals.stamps.between(low, high)
        return sorted({*held, *refused}) if refused else held

    def prints(self, nonce: bytes, bounds: Sequence[bytes]) -> bytes:
        """Fingerprint the ranges between neighbouring bounds."""
        return prints_of(nonce, self.replica.timeline, bounds)

    def print(self, nonce: bytes) -> bytes:
        """Fingerprint everything, with the proofs."""
        return hashlib.sha256(nonce + self.replica.fingerprint()).digest()[:PRINT_BYTES]

    def whole(self, nonce: bytes) -> Range:
        """Cut the whole timeline, finer the newer it is."""
        stamps = self.seen(START, END)
        if len(stamps) <= LEAF_MAX:
            return Range(0, len(stamps))
        bounds = cut_by_age(stamps, FIRST_PARTS, NEWEST)
        return Range(0, len(stamps), bounds, self.prints(nonce, [START, *bounds, END]))

    def range(self, nonce: bytes, index: int, low: bytes, high: bytes) -> Range:
        """Say what is there; of many entries, the fingerprints of parts."""
        stamps = self.seen(low, high)
        if len(stamps) <= LEAF_MAX:
            return Range(index, len(stamps))
        bounds = cut_evenly(stamps, parts_of(len(stamps)))
        return Range(index, len(stamps), bounds, self.prints(nonce, [low, *bounds, high]))

    def rules(self) -> list[Record]:
        """Return the grants and revocations that are held, the latest last."""
        if self.replica.genesis.write != "list":
            return []
        found = [record for key in RULE_KEYS for record in self.replica.at(key)]
        return sorted(
            (record for record in found if record.kind >= GRANT), key=lambda record: record.stamp
        )

    def law(self, nonce: bytes) -> bytes:
        """Fingerprint the proofs, grants and revocations."""
        digest = hashlib.sha256(nonce)
        for chain, proven in sorted(self.replica.faults.items()):
            digest.update(chain + proven.cut.to_bytes(8) + proven.digest)
        for record in self.rules():
            digest.update(record.stamp)
        return digest.digest()[:PRINT_BYTES]


def parts_of(count: int) -> int:
    """Into how many parts a range of so many entries is cut."""
    return min(PARTS, -(-count // PART_ENTRIES))


def shorts(nonce: bytes, stamps: Iterable[bytes]) -> bytes:
    """Name entries within a session; joined."""
    return b"".join(short(nonce, stamp) for stamp in stamps)


def in_chain_order(records: Iterable[Record]) -> list[Record]:
    """Sort what goes into one message: grants and revocations first, then chain by chain, so that
    one signature proves a run.
    """
    return sorted(records, key=lambda one: (one.kind < GRANT, one.chain, one.seq))
