"""Which peer may bring much: one at a time, as several mostly have the same for a newcomer."""

from dataclasses import dataclass

from crdt import wire
from crdt.entry import Signed
from wire.errors import Busy
from wire.ids import PeerId

LANE_BYTES = 128 * 1024  # of entries in one message: more will follow
LANE_S = 2.0  # without news from the peer in the lane: another may have it
LANE_MAX_S = 60.0  # then another may have it anyway, whatever its holder brings


@dataclass
class Lane:
    """Which peer brings much now. What several have for a newcomer is mostly the same, so the
    others are told to come again; with little they come in at any time.
    """

    _peer: PeerId | None = None
    _since: float = 0.0
    _until: float = 0.0

    def enter(self, peer: PeerId, entries: list[Signed], now: float) -> None:
        """Raise Busy if a peer brings much while another does."""
        if wire.net_size(entries) < LANE_BYTES or peer == self._peer:
            return
        if now < min(self._until, self._since + LANE_MAX_S):
            raise Busy("another peer brings much at the moment")
        self._peer, self._since, self._until = peer, now, now + LANE_S

    def renew(self, peer: PeerId, now: float) -> None:
        """Note that a peer has brought news: it keeps the lane a little longer."""
        if peer == self._peer:
            self._until = now + LANE_S
