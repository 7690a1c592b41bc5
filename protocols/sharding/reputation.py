"""What verdicts mean for routing: own ones ban, those of others cost. Pure.

An auditor's own failures ban a peer from its routes, an hour at first, twice as long each further
time. What others found adds to the time that a peer's stages count for, in proportion to how many
of the auditors agree; so no liar, nor a few of them, can put a peer out of the swarm's routes.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protocols.sharding.records import AuditRecord
from wire.ids import PeerId

BAN_S = 3600.0  # of the first failure that we found ourselves
BAN_DOUBLINGS_MAX = 8  # 10 days; a broken machine may be mended
HALF_LIFE_S = 24 * 3600.0  # after which a failure counts half
AGREED_COST = 3.0  # added to the factor of a peer's times if all auditors found it at fault
OWN_COST = 1.0  # the same for our own last failure, once the ban is over
DOUBT = 2  # auditors without a fault that are always counted: one voice alone weighs a third
DISPUTED_COST = 0.5  # added while a peer and its neighbour say different things: they get parted
PARTNERS = 2  # different neighbours with whom a peer must be at odds to be the one at fault
PARTNERS_MAX = 64  # peers whose disputes are remembered
AVOIDED_S = 30.0  # that who was lost from a route is left out of new ones; a worker is back by then
AVOIDED_DOUBLINGS_MAX = 7  # an hour: who says that it is ready and never answers
LOSSES_MAX = 1024  # peers whose losses are remembered
_MS = 1000


def banned_until_ms(mine: AuditRecord | None) -> int:
    """Return until when our own findings ban a peer, on the wall clock; 0 is not at all."""
    if mine is None or mine.failed == 0:
        return 0
    doublings = min(mine.failed - 1, BAN_DOUBLINGS_MAX)
    return mine.failed_ms + int(BAN_S * 2**doublings) * _MS


def penalty(mine: AuditRecord | None, others: Mapping[PeerId, AuditRecord], now_ms: int) -> float:
    """Return what to add to the factor 1 of a peer's times; infinite: not to be used.

    others: records of this peer by auditors that we have not banned ourselves, without the peer's
    own. Clocks of others are not trusted: a failure in the future counts as one of now.
    """
    if now_ms < banned_until_ms(mine):
        return math.inf
    agreed = sum(_weight(record, now_ms) for record in others.values() if record.failed)
    voices = sum(1 for record in others.values() if record.failed or record.passed)
    own = OWN_COST * _weight(mine, now_ms) if mine is not None and mine.failed else 0.0
    return own + AGREED_COST * agreed / (voices + DOUBT)


def _weight(record: AuditRecord, now_ms: int) -> float:
    """What a record's last failure counts still."""
    age_s = max(0, now_ms - record.failed_ms) / _MS
    return float(0.5 ** (age_s / HALF_LIFE_S))


@dataclass
class Disputes:
    """Links whose two ends claimed different rows, where neither could be shown to lie.

    Who is at odds with several neighbours, who are not among themselves, is at fault; then those
    are cleared. Both ends of an open dispute cost more, so that routes part them.
    """

    _partners: defaultdict[PeerId, set[PeerId]] = field(
        default_factory=lambda: defaultdict[PeerId, set[PeerId]](set)
    )

    def __len__(self) -> int:
        """How many peers are at odds with somebody."""
        return len(self._partners)

    def add(self, one: PeerId, other: PeerId) -> PeerId | None:
        """Note a dispute; return who is at fault, if that shows now."""
        if len(self._partners) >= PARTNERS_MAX:
            self._clear(next(iter(self._partners)))
        self._partners[one].add(other)
        self._partners[other].add(one)
        found = max((one, other), key=lambda peer: len(self._partners[peer]))
        if len(self._partners[found]) < PARTNERS:
            return None
        self._clear(found)
        return found

    def involves(self, peer: PeerId) -> bool:
        """Whether a dispute of a peer is open."""
        return bool(self._partners.get(peer))

    def _clear(self, peer: PeerId) -> None:
        for partner in self._partners.pop(peer, set()):
            self._partners[partner].discard(peer)
            if not self._partners[partner]:
                del self._partners[partner]


@dataclass
class Losses:
    """Who was lost from routes of ours lately: left out of new ones while others have the blocks.

    So who says that it is ready, and is not, is asked once, then rarely.
    """

    _known: dict[PeerId, tuple[int, float]] = field(  # how often in a row, and until when
        default_factory=dict[PeerId, tuple[int, float]]
    )

    def note(self, lost: Iterable[PeerId], kept: Iterable[PeerId], now: float) -> None:
        """Take who was lost in a session, and who was there at its end."""
        for peer in lost:
            times, _ = self._known.pop(peer, (0, 0.0))
            avoided_s = AVOIDED_S * 2 ** min(times, AVOIDED_DOUBLINGS_MAX)
            self._known[peer] = times + 1, now + avoided_s
        for peer in kept:
            self._known.pop(peer, None)
        while len(self._known) > LOSSES_MAX:
            del self._known[next(iter(self._known))]

    def avoided(self, now: float) -> set[PeerId]:
        """Return who is not to be asked now."""
        return {peer for peer, (_, until) in self._known.items() if now < until}
