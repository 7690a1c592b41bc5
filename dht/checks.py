"""Who is to be asked whether it is there: strangers before they come into the table, and entries
that a full bucket doubts. Pure.

Bounded, since strangers decide how many there are: a few at a time, a short queue, and who did not
answer is not asked again for a while, however often it knocks.
"""

from dht.messages import Contact
from wire.ids import PeerId

IN_FLIGHT_MAX = 8  # as many as a lookup has: checks must not slow what people wait for
WAITING_MAX = 64  # when full, newcomers are dropped: they will knock again
KNOCKS_MAX = 32  # strangers far from us that are asked at once: a swarm that starts together
KNOCK_S = 120.0  # for each of them, in the long run: those who answer our lookups come in anyway
AGAIN_S = 60.0  # until a stranger that did not answer is asked again
SILENT_MAX = 256  # strangers remembered as silent, the oldest forgotten


class Checks:
    """The queue. A peer is in it once."""

    __slots__ = ("_flying", "_full_at", "_silent", "_waiting")

    def __init__(self) -> None:
        """Nobody waits."""
        self._waiting: dict[PeerId, tuple[Contact, bool]] = {}
        self._flying: set[PeerId] = set()
        self._silent: dict[PeerId, float] = {}
        self._full_at = 0.0  # when KNOCKS_MAX may be asked at once again

    def offer(self, contact: Contact, now_s: float, *, is_stranger: bool) -> None:
        """Line up. A stranger has to answer at an address that it claims; an entry did before."""
        peer = contact.peer
        if peer in self._waiting or peer in self._flying or len(self._waiting) >= WAITING_MAX:
            return
        if is_stranger and now_s < self._silent.get(peer, 0.0):
            return
        self._waiting[peer] = contact, is_stranger

    def knock(self, contact: Contact, now_s: float, *, is_near: bool) -> None:
        """A stranger that the table wants is there. Near ones are few, and always welcome.

        Of the others only so many are asked in, since they come with every request: a bucket that
        is needed is filled by looking into it.
        """
        if not is_near:
            full_at = max(self._full_at, now_s) + KNOCK_S
            if full_at - now_s > KNOCKS_MAX * KNOCK_S:
                return
            self._full_at = full_at
        self.offer(contact, now_s, is_stranger=True)

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
