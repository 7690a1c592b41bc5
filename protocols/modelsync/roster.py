"""Who is ready for a round of a lane, and who is not to be waited for. No I/O, no clock."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.wire import MEMBERS_MAX, Bound, Ready
from wire.ids import PeerId

STRIKES_MAX = 2  # attempts of a round that a member may spoil or refuse: one is bad luck


@dataclass
class Roster:
    """The members of a lane as one node sees them, itself included."""

    me: PeerId
    electorate: Electorate
    readies: dict[PeerId, Ready] = field(default_factory=dict[PeerId, Ready])
    left_out: Counter[PeerId] = field(default_factory=Counter[PeerId])  # attempts without it
    _unreachable: set[PeerId] = field(default_factory=set[PeerId])
    _suspects: set[PeerId] = field(default_factory=set[PeerId])  # until it is ready again
    _barred: set[PeerId] = field(default_factory=set[PeerId])  # until the round is over
    _banned: set[PeerId] = field(default_factory=set[PeerId])  # for good
    _strikes: Counter[PeerId] = field(default_factory=Counter[PeerId])

    # -- what we are told --------------------------------------------------------------------

    def hear(self, peer: PeerId, ready: Ready) -> None:
        """Another member is ready. One that says so is not suspect any more."""
        if peer == self.me or peer in self._banned:
            return
        if peer not in self.readies and not self._make_room(peer):
            return
        self._suspects.discard(peer)
        self._unreachable.discard(peer)
        self.readies[peer] = ready

    def meet(self, peer: PeerId) -> None:
        """A peer answers: worth waiting for, unless it is suspect of something else."""
        self._unreachable.discard(peer)

    def lose(self, peer: PeerId) -> None:
        """We cannot reach a peer: do not wait for it until it answers again."""
        if peer != self.me:
            self._unreachable.add(peer)
            self.readies.pop(peer, None)

    def strike(self, peer: PeerId, *, is_suspect: bool) -> None:
        """A member has refused an attempt or spoilt it. It will say again that it is ready."""
        if peer == self.me:
            return
        self.readies.pop(peer, None)
        if is_suspect:
            self._suspects.add(peer)
            self.left_out[peer] += 1
        self._strikes[peer] += 1

    def bar(self, peer: PeerId) -> None:
        """We saw a peer break this round by its own doing: whoever can goes on without it."""
        if peer != self.me:
            self._barred.add(peer)

    def ban(self, peer: PeerId) -> None:
        """A peer was found guilty: it takes part in nothing any more."""
        if peer != self.me:
            self._banned.add(peer)
            self.readies.pop(peer, None)

    def suspect(self, peers: Collection[PeerId]) -> None:
        """Do not wait for these until they say that they are ready."""
        self._suspects |= set(peers)

    def bind(self, peer: PeerId, bound: Bound) -> None:
        """A member turned out to be bound to a result."""
        if peer in self.readies:
            self.readies[peer] = msgspec.structs.replace(self.readies[peer], bound=bound)

    def start_round(self, round_: int) -> None:
        """Forget what was about earlier rounds, but who has spoilt the last one."""
        self._barred.clear()
        for peer in self._strikes:  # one more bars it again
            self._strikes[peer] = min(self._strikes[peer], STRIKES_MAX - 1)
        self.readies = {p: r for p, r in self.readies.items() if r.round >= round_}

    def committed(self, members: Collection[PeerId]) -> None:
        """These have made a round; whom it left out we do not wait for until we hear of it."""
        missed = self.expected() - set(members)
        self._suspects |= missed
        self.left_out.update(missed)
        for peer in members:
            del self._strikes[peer]

    # -- what we make of it ------------------------------------------------------------------

    def expected(self) -> frozenset[PeerId]:
        """Others, by lease, that are worth waiting for."""
        absent = self._suspects | self._unreachable | self._avoided() | self._banned
        return self.electorate.live - self.electorate.left.keys() - absent - {self.me}

    def is_unwanted(self, peer: PeerId, mine: Ready) -> bool:
        """True if we do not follow that proposer: the round can do without it."""
        return peer in self._banned or (peer in self._barred and peer not in self.ready(mine))

    def are_banned(self, members: Collection[PeerId]) -> bool:
        """True if one of them is."""
        return not self._banned.isdisjoint(members)

    def ready(self, mine: Ready) -> list[PeerId]:
        """Who could take part; who has spoilt the round only where there is no quorum without."""
        of = (mine.round, mine.shape, mine.topology)
        ready = [p for p, r in self.readies.items() if (r.round, r.shape, r.topology) == of]
        avoided = self._avoided()
        allowed = [peer for peer in ready if peer not in avoided]
        return allowed if self.is_quorum(allowed) else ready

    def new(self, peers: Collection[PeerId]) -> set[PeerId]:
        """Those of these ready ones that joined at this round."""
        return {peer for peer in peers if self.readies[peer].is_new}

    def is_quorum(self, ready: Collection[PeerId]) -> bool:
        """True if these ready ones could decide the round."""
        if self.electorate.sample:  # more may be ready than take part
            ready = list(ready)[: self.electorate.sample]
        return self.electorate.is_quorum(ready, self.new(ready))

    def _avoided(self) -> set[PeerId]:
        """Those that have spoilt this round, or that often that we do not wait for them."""
        return self._barred | {p for p, count in self._strikes.items() if count >= STRIKES_MAX}

    def _make_room(self, peer: PeerId) -> bool:
        """True if one more may be ready: voters and lease holders take the places of others."""
        if len(self.readies) < MEMBERS_MAX - 1:
            return True
        first, second = self.electorate.voters() | {self.me}, self.electorate.live
        rank = {p: (p in first) * 2 + (p in second) for p in [*self.readies, peer]}
        last = min(self.readies, key=lambda p: rank[p])
        if rank[last] >= rank[peer]:
            return False
        del self.readies[last]
        return True
