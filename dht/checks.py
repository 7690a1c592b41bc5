"""Who is to be asked whether it is there: strangers before they come into the table, and entries
that a full bucket doubts. Pure.

Bounded, since strangers decide how many there are: a few at a time, a short queue, and who did not
answer is not asked again for a while, however often it knocks.
"""

from dht.messages import Contact
from wire.ids import PeerId

IN_FLIGHT_MAX = 8  # as many as a lookup has: checks must not slow what people wait for
WAITING_MAX = 64  # when full, newcomers are dropped: they will knock again
AGAIN_S = 60.0  # until a stranger that did not answer is asked again
SILENT_MAX = 256  # strangers remembered as silent, the oldest forgotten


class Checks:
    """The queue. A peer is in it once."""

    __slots__ = ("_flying", "_silent", "_waiting")

    def __init__(self) -> None:
        """Nobody waits."""
        self._waiting: dict[PeerId, tuple[Contact, bool]] = {}
        self._flying: set[PeerId] = set()
        self._silent: dict[PeerId, float] = {}

    def offer(self, contact: Contact, now_s: float, *, is_stranger: bool) -> None:
        """Line up. A stranger has to answer at an address that it claims; an entry did before."""
        peer = contact.peer
        if peer in self._waiting or peer in self._flying or len(self._waiting) >= WAITING_MAX:
            return
        if is_stranger and now_s < self._silent.get(peer, 0.0):
            return
        self._waiting[peer] = contact, is_stranger

    def next(self) -> tuple[Contact, bool] | None:
        """Return whom to ask now, and whether it is a stranger; None: nobody, or enough fly."""
        if not self._waiting or len(self._flying) >= IN_FLIGHT_MAX:
            return None
        peer = next(iter(self._waiting))
        self._flying.add(peer)
        return self._waiting.pop(peer)

    def answered(self, peer: PeerId) -> None:
        """It is there."""
        self._flying.discard(peer)
        self._silent.pop(peer, None)

    def failed(self, peer: PeerId, now_s: float) -> None:
        """It is not, or not where it says."""
        self._flying.discard(peer)
        self._silent.pop(peer, None)  # to the end of the line
        self._silent[peer] = now_s + AGAIN_S
        if len(self._silent) > SILENT_MAX:
            del self._silent[next(iter(self._silent))]
