"""Which members we stay connected to, when there are more than we can: pure, time is passed in.

Leases cost nothing, so a swarm may be full of members that do not exist. Members that we have been
connected to go first; some places are always for the others, who get them in turns, chosen by
chance among those tried least. Who was not there in `TRIES_MAX` turns is left alone for a while.
Against real nodes of a stranger, which do connect, only those turns help.
"""

from dataclasses import dataclass, field
from random import Random

from wire.ids import PeerId

KEPT_MAX = 32  # members we stay connected to; beyond it the swarm is reached through the DHT
MET_MAX = 24  # of these, for members that we know to be there, while others wait for a turn
TURN_S = 30.0  # to be connected: an attempt takes 10 s at most, and two of them go in here
TRIES_MAX = 3  # turns
REST_S = 600.0  # after which a member that was not there is tried again


@dataclass
class _Try:
    turns: int = 0
    is_on: bool = False  # it is kept now
    since: float = 0.0  # this turn began, or the last one ended


@dataclass
class Kept:
    """Call `choose` now and then, and stay connected to `peers`."""

    rng: Random = field(default_factory=Random)
    peers: set[PeerId] = field(default_factory=set[PeerId])
    _met: set[PeerId] = field(default_factory=set[PeerId])
    _tries: dict[PeerId, _Try] = field(default_factory=dict[PeerId, _Try])

    def choose(
        self, members: list[PeerId], connected: set[PeerId], now: float
    ) -> tuple[set[PeerId], set[PeerId]]:
        """Return whom to keep from now on, and whom no longer. `members` have live leases.

        Who was here and has no lease now stays until its place is needed: it may come back after
        a cut that was longer than a lease.
        """
        known, before = set(members), self.peers
        self._met = (self._met | connected) & (known | before)
        self._tries = {peer: one for peer, one in self._tries.items() if peer in known - self._met}
        is_scarce = len(known) > KEPT_MAX
        if is_scarce:
            self._end_turns(now)
        strangers = [peer for peer in members if peer not in self._met and self._may_try(peer, now)]
        met = sorted(
            known & self._met, key=lambda peer: (peer not in connected, peer not in before)
        )
        met = met[: max(MET_MAX, KEPT_MAX - len(strangers))]
        chosen = {*met, *self._turns(strangers, KEPT_MAX - len(met), now)}
        absent = list((before - known) & self._met)[: max(0, KEPT_MAX - len(chosen))]
        self.peers = chosen | set(absent)
        return self.peers - before, before - self.peers

    def _end_turns(self, now: float) -> None:
        for one in self._tries.values():
            if one.is_on and now - one.since >= TURN_S:
                one.is_on, one.since = False, now

    def _may_try(self, peer: PeerId, now: float) -> bool:
        one = self._tries.get(peer)
        if one is None or one.is_on or one.turns < TRIES_MAX:
            return True
        if now - one.since < REST_S:
            return False
        del self._tries[peer]
        return True

    def _turns(self, strangers: list[PeerId], places: int, now: float) -> list[PeerId]:
        """Those whose turn it is stay; then come those with the fewest turns, by chance."""

        def order(peer: PeerId) -> tuple[bool, int, float]:
            one = self._tries.get(peer, _Try())
            return not one.is_on, one.turns, self.rng.random()

        chosen = sorted(strangers, key=order)[:places]
        for peer in chosen:
            one = self._tries.setdefault(peer, _Try())
            if not one.is_on:
                one.is_on, one.turns, one.since = True, one.turns + 1, now
        return chosen
