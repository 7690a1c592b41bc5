"""The rounds of one lane, as one node sees them: who is ready, whose turn it is to propose, which
attempt we are in, and when the next goes on without whom. No I/O, no clock.

Safety is in ballots.py and tally.py: an attempt commits only when every member of it signed, its
members are a quorum, and none of them was bound to anything else. Views of who is alive may
differ: they cost time (two proposers, one wins), never agreement.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from protocols.modelsync.ballots import Electorate, order_of, rank_of, to_adopt
from protocols.modelsync.codecs import CODECS, most_compact
from protocols.modelsync.roster import Roster
from protocols.modelsync.shards import weighted_shards
from protocols.modelsync.wire import (
    ATTEMPTS_MAX,
    MEMBERS_MAX,
    Ballot,
    Bound,
    Certificate,
    Nack,
    Prepare,
    Ready,
)
from wire.ids import PeerId

JUMP_MAX = 8  # attempts that a member may be ahead of us; more is a lie to use the numbers up
TURN_S = 0.5  # the next in the proposers' order steps in after this long without a PREPARE

_CODEC_NAMES = frozenset(codec.name for codec in CODECS)


@dataclass(frozen=True)
class Propose:
    """It is our turn: lead this attempt."""

    prepare: Prepare


@dataclass(frozen=True)
class Diverged:
    """Most of the run starts from another state: fetch the one with this hash first."""

    root: bytes


@dataclass(frozen=True)
class Behind:
    """Most members are in a later round than ours, or left after one: fetch a state of it."""

    at_least: int


Effect = Propose | Diverged | Behind


@dataclass
class Rounds:
    """The state of one lane at one node. Times are in seconds of the caller's clock."""

    run: str
    me: PeerId
    electorate: Electorate
    patience_s: float
    lane: int = 0
    replicas_differ: bool = False  # roots are not compared
    is_verified: bool = False  # all rounds are sealed, not only mixes
    mine: Ready | None = None
    bound: Bound | None = None  # what we signed in this round
    ballot: Ballot | None = None  # the attempt that we are in
    attempt: int = 0  # the lowest attempt that we would take part in
    deadline: float = math.inf
    roster: Roster = field(init=False)
    _round: int = -1  # that our promises are about
    _quorum_since: float | None = None
    _turn_since: float | None = None

    def __post_init__(self) -> None:
        """Nobody is ready yet."""
        self.roster = Roster(self.me, self.electorate)

    # -- what we are told --------------------------------------------------------------------

    @property
    def certificate(self) -> Certificate | None:
        """That of the last round that we know of: its members are the electorate."""
        return self.electorate.certificate

    def submit(self, ready: Ready) -> None:
        """Our trainer has its contribution; the same round again replaces it, not our promises."""
        self._start_round(ready.round)
        self.mine = msgspec.structs.replace(ready, bound=self.bound)
        self.roster.readies[self.me] = self.mine

    def hold(self, bound: Bound) -> None:
        """We have signed a result and do not know if it was committed."""
        self.bound = bound
        if self.mine is not None:
            self.submit(self.mine)

    def withdraw(self) -> None:
        """Our trainer is gone, or must fetch a state first. What we promised stays."""
        if self.ballot is not None:  # if we come back to this round, it has a ballot of ours
            self.attempt = min(ATTEMPTS_MAX, self.ballot.attempt + 1)
        self.mine = None
        self.ballot = None
        self.roster.readies.pop(self.me, None)

    def adopt(self, certificate: Certificate | None) -> None:
        """Take over the electorate that came with a downloaded state, or with a checkpoint."""
        self.electorate.certificate = certificate

    def hear(self, peer: PeerId, ready: Ready) -> None:
        """Another member is ready: believed, unless it claims to be bound to no possible result."""
        if self._is_sound(ready):
            self.roster.hear(peer, ready)

    def see(self, *, live: Collection[PeerId], left: Mapping[PeerId, int]) -> None:
        """Members by lease, and those that said goodbye, each with the round it would have had
        next. Who left before our round is no longer asked for a quorum; who left after it knows
        a later state.
        """
        self.electorate.live = frozenset(live) | {self.me}
        self.electorate.left = dict(left)

    # -- proposing ---------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Return what is to be done now, and set `deadline` for the next tick."""
        self.deadline = math.inf
        mine = self.mine
        if mine is None or self.ballot is not None:
            return []
        ready = self.roster.ready(mine)
        if not self.roster.is_quorum(ready):
            self._quorum_since = self._turn_since = None
            passed = [p for p, r in self.roster.readies.items() if r.round > mine.round]
            is_over = self.electorate.is_over(passed, self.roster.new(ready))
            return [Behind(mine.round + 1)] if is_over else []
        self._quorum_since = now if self._quorum_since is None else self._quorum_since
        root = mine.root if self.replicas_differ else self._reference_root(mine.round, ready)
        same = {p for p in ready if self.replicas_differ or self.roster.readies[p].root == root}
        if self.me not in same:
            return [Diverged(root)]
        if not self._is_complete(same, ready, now):
            self._turn_since = None
            return []
        self._turn_since = now if self._turn_since is None else self._turn_since
        order = sorted(same, key=lambda peer: self._order(mine.round, self.attempt, peer))
        turn = self._turn_since + TURN_S * order.index(self.me)
        if now < turn:
            self.deadline = turn
            return []
        return [self._propose(mine, self._chosen(mine.round, same))]

    def waiting_for(self) -> list[PeerId]:
        """Members by lease that are expected and not ready yet."""
        ready = set(self.roster.ready(self.mine)) if self.mine is not None else set[PeerId]()
        return sorted(self.roster.expected() - ready)

    # -- taking part -------------------------------------------------------------------------

    def offered(self, prepare: Prepare) -> str:
        """Decide on a PREPARE; "" accepts (and leaves any worse attempt), else a reason."""
        mine = self.mine
        if mine is None or mine.round > prepare.round:
            return "not_ready"
        if self.roster.is_unwanted(prepare.proposer, mine):
            return "barred"
        if mine.round < prepare.round:
            return "behind"
        if prepare.base_root != mine.root and not self.replicas_differ:
            return "diverged"
        if not self._fits(prepare, mine):
            return "schema"
        if not self._is_well_formed(prepare, mine):
            return "invalid"
        if not self.electorate.is_quorum(prepare.members, prepare.newcomers):
            return "invalid"
        if prepare.attempt < self.attempt:
            return "old"
        if self.ballot is not None and self._rank(prepare.ballot) <= self._rank(self.ballot):
            return "busy"
        self.ballot, self.attempt = prepare.ballot, prepare.attempt
        return ""

    def refusal(self, prepare: Prepare, reason: str) -> Nack:
        """What the proposer is told that we do not follow."""
        return Nack(reason, self.attempt, self.ending(prepare.round))

    def ending(self, round_: int) -> Certificate | None:
        """What ended a round, or a later one, if we know."""
        known = self.certificate
        return known if known is not None and known.round >= round_ else None

    def failed(
        self,
        ballot: Ballot,
        excluded: Collection[PeerId],
        *,
        stale: Collection[PeerId] = (),
        attempt: int = 0,
        bounds: Mapping[PeerId, Bound] | None = None,
        is_void: bool = False,
    ) -> None:
        """An attempt of ours failed; go on to the next one without `excluded`.

        `stale` refused it; `attempt` is the one that others say they are in, `bounds` are what
        they are bound to; `is_void`: there is no certificate of it, so we are not bound by it.
        """
        bound = self.bound
        if is_void and bound and (self._round, bound.attempt, bound.proposer) == ballot:
            self.bound = None
            if self.mine is not None:
                self.submit(self.mine)
        for peer, bound in (bounds or {}).items():
            self.roster.bind(peer, bound)
        for peer in set(stale) - set(excluded):
            self.roster.strike(peer, is_suspect=False)
        if self.ballot != ballot:
            return  # we have left it for a better one
        following = ballot.attempt + 1
        if attempt <= following + JUMP_MAX:
            following = max(following, attempt)
        self.attempt = min(ATTEMPTS_MAX, following)
        self.ballot = None
        self._turn_since = None
        for peer in excluded:
            self.roster.strike(peer, is_suspect=True)

    def committed(self, certificate: Certificate) -> None:
        """The round is over for us; the certificate's members are the next electorate."""
        self.roster.committed(certificate.members)
        self.electorate.certificate = certificate
        self._start_round(certificate.round + 1)
        self.mine = None

    # -- inside ------------------------------------------------------------------------------

    def _order(self, round_: int, attempt: int, peer: PeerId) -> bytes:
        return order_of(self.run, self.lane, round_, attempt, peer)

    def _rank(self, ballot: Ballot) -> tuple[int, bytes]:
        return rank_of(self.run, self.lane, ballot)

    def _start_round(self, round_: int) -> None:
        if round_ == self._round:
            return
        self._round, self.bound = round_, None
        self.ballot, self.attempt = None, 0
        self._quorum_since = self._turn_since = None
        self.roster.start_round(round_)

    def _reference_root(self, round_: int, ready: Collection[PeerId]) -> bytes:
        """The state that most ready voters start from; ties go to the first proposer.

        Newcomers have no vote: names cost nothing, and they bring no state that we need.
        """
        voters = self.electorate.voters() if not self.electorate.sample else frozenset(ready)
        voting = [peer for peer in ready if peer in voters] or list(ready)
        votes = Counter(self.roster.readies[peer].root for peer in voting)
        most = max(votes.values())
        first = min(
            (peer for peer in voting if votes[self.roster.readies[peer].root] == most),
            key=lambda peer: self._order(round_, 0, peer),
        )
        return self.roster.readies[first].root

    def _is_complete(self, same: set[PeerId], ready: Collection[PeerId], now: float) -> bool:
        """True if nobody is worth waiting for, or the patience for slow members is over."""
        if not self.roster.is_quorum(same):
            return False
        assert self._quorum_since is not None
        missing = (self.roster.expected() | set(ready)) - same
        patience_over = self._quorum_since + self.patience_s
        if not missing or now >= patience_over:
            self.roster.suspect(missing)  # not waited for again until it is heard
            return True
        self.deadline = patience_over
        return False

    def _chosen(self, round_: int, same: set[PeerId]) -> list[PeerId]:
        """Members of the attempt, in member order: we, voters first if there are too many."""
        most, voters = self.electorate.sample or MEMBERS_MAX, self.electorate.voters()
        places = sorted(
            same, key=lambda p: (p != self.me, p not in voters, self._order(round_, 0, p))
        )
        return sorted(places[:most])

    def _propose(self, mine: Ready, members: list[PeerId]) -> Propose:
        readies = [self.roster.readies[peer] for peer in members]
        adopt = to_adopt(self.run, self.lane, mine.round, (ready.bound for ready in readies))
        wishes = [ready.wish_codec for ready in readies if ready.wish_codec in _CODEC_NAMES]
        rates = [ready.rate for ready in readies]
        owns = [ready.owns and not ready.is_new for ready in readies]
        prepare = Prepare(
            run=self.run,
            round=mine.round,
            attempt=self.attempt,
            proposer=self.me,
            members=members,
            weights=[ready.weight for ready in readies],
            shards=weighted_shards(mine.elements, rates, owns),
            codec=most_compact(wishes) if mine.codec == "auto" else mine.codec,
            base_root=mine.root,
            elements=mine.elements,
            lane=mine.lane,
            topology=mine.topology,
            every=max(ready.wish_every for ready in readies) if mine.codec == "auto" else 0,
            is_sealed=self._is_sealed(mine),
            newcomers=tuple(sorted(self.roster.new(members))),
            adopt=adopt,
        )
        self.ballot = prepare.ballot
        return Propose(prepare)

    def _is_sealed(self, mine: Ready) -> bool:
        return self.is_verified or mine.topology != "all"

    def _is_sound(self, ready: Ready) -> bool:
        """False for a member that claims to be bound to what cannot be a result of its lane."""
        bound = ready.bound
        if bound is None:
            return True
        return sum(bound.shards) == ready.elements and _is_pace_of(ready, bound)

    def _fits(self, prepare: Prepare, mine: Ready) -> bool:
        ours = (mine.elements, mine.topology, self._is_sealed(mine))
        if (prepare.elements, prepare.topology, prepare.is_sealed) != ours:
            return False
        return _is_pace_of(mine, prepare)

    def _is_well_formed(self, prepare: Prepare, mine: Ready) -> bool:
        members, adopt = prepare.members, prepare.adopt
        if len({len(members), len(prepare.weights), len(prepare.shards)}) != 1:
            return False
        if len(set(members)) != len(members) or sum(prepare.shards) != prepare.elements:
            return False
        if prepare.proposer not in members or self.me not in members:
            return False
        if not set(prepare.newcomers) <= set(members) or self.roster.are_banned(members):
            return False
        if mine.is_new != (self.me in prepare.newcomers):
            return False
        if adopt is not None and not self._is_sound(msgspec.structs.replace(mine, bound=adopt)):
            return False
        return prepare.weights[members.index(self.me)] == mine.weight


def _is_pace_of(ready: Ready, of: Prepare | Bound) -> bool:
    """True if a run with this readiness may have a round on that wire, and that pause after it."""
    return (
        of.codec in _CODEC_NAMES
        if ready.codec == "auto"
        else (of.codec, of.every) == (ready.codec, 0)
    )
