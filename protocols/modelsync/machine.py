"""The rounds of one run, as one node sees them: who is ready, whose turn it is to propose, which
attempt we are in, and when the next goes on without whom. No I/O, no clock.

Safety: an attempt commits only when every member of it signed, its members are more than half of
the previous certificate's, and a member takes part in one attempt at a time, the best it knows.
Views of who is alive may differ: they cost time (two proposers, one wins), never agreement.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from protocols.modelsync.shards import equal_shards
from protocols.modelsync.wire import (
    ATTEMPTS_MAX,
    MEMBERS_MAX,
    Ballot,
    Bound,
    Certificate,
    Prepare,
    Ready,
)
from wire.ids import PeerId

REFUSALS_MAX = 2  # attempts of ours in one round that a member may refuse: one is bad luck
JUMP_MAX = 8  # attempts that a member may be ahead of us; more is a lie to use the numbers up
TURN_S = 1.0  # the next in the proposers' order steps in after this long without a PREPARE


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
    """Members left the run after a later round than ours: fetch a state of at least theirs."""

    at_least: int


Effect = Propose | Diverged | Behind


def order_of(run: str, round_: int, attempt: int, peer: PeerId) -> bytes:
    """Rank of a proposer: lowest SHA-256(run, round, attempt, peer) is first. Rotates by itself."""
    return hashlib.sha256(f"{run}\0{round_}\0{attempt}\0{peer}".encode()).digest()


def is_better(run: str, new: Ballot, old: Ballot) -> bool:
    """A later attempt beats an earlier one; within an attempt, the first in order wins."""
    if new.attempt != old.attempt:
        return new.attempt > old.attempt
    ranks = [order_of(run, new.round, new.attempt, ballot.proposer) for ballot in (new, old)]
    return ranks[0] < ranks[1]


@dataclass(frozen=True)
class Accusation:
    """One member says that it cannot go on because of another.

    Reasons: lost (the proposer's own stream to it), silent, bad, broken, aborted. The last two may
    be the echo of another fault: a stream breaks when either end gives up.
    """

    accuser: PeerId
    accused: PeerId
    reason: str


def blame(accusations: list[Accusation]) -> set[PeerId]:
    """Decide whom the next attempt leaves out. Echoes count only if there is nothing better."""
    certain = [a for a in accusations if a.reason in ("lost", "silent", "bad")]
    return excluded_by((a.accuser, a.accused) for a in certain or accusations)


def excluded_by(accusations: Iterable[tuple[PeerId, PeerId]]) -> set[PeerId]:
    """Decide whom the next attempt leaves out, from (accuser, accused) pairs, deterministically.

    An accuser that is itself out is not believed, so of two that cannot reach each other only
    one is left out. The most accused go first.
    """
    pairs = set(accusations)
    votes = Counter(accused for _, accused in pairs)
    out: set[PeerId] = set()
    for accuser, accused in sorted(pairs, key=lambda pair: (-votes[pair[1]], pair[1], pair[0])):
        if accuser not in out:
            out.add(accused)
    return out


@dataclass
class Rounds:
    """The state of one run at one node. Times are in seconds of the caller's clock."""

    run: str
    me: PeerId
    min_members: int
    patience_s: float
    certificate: Certificate | None = None  # of the round before ours: the electorate
    mine: Ready | None = None
    ballot: Ballot | None = None  # the attempt that we are in
    attempt: int = 0  # the lowest attempt that we would take part in
    deadline: float = math.inf
    _readies: dict[PeerId, Ready] = field(default_factory=dict[PeerId, Ready])
    _live: frozenset[PeerId] = frozenset()
    _left: Mapping[PeerId, int] = field(default_factory=dict[PeerId, int])
    _unreachable: set[PeerId] = field(default_factory=set[PeerId])
    _suspects: set[PeerId] = field(default_factory=set[PeerId])  # until it is ready again
    _barred: set[PeerId] = field(default_factory=set[PeerId])  # until the round is over
    _refusals: Counter[PeerId] = field(default_factory=Counter[PeerId])  # of this round
    _quorum_since: float | None = None
    _turn_since: float | None = None

    # -- what we are told --------------------------------------------------------------------

    def submit(self, ready: Ready) -> None:
        """Our trainer has its contribution; the same round again replaces it."""
        if self.mine is None or self.mine.round != ready.round:
            self._start_round(ready.round)
        self.mine = ready
        self._readies[self.me] = ready

    def hold(self, bound: Bound) -> None:
        """We signed an attempt of this round and do not know if it was committed."""
        if self.mine is not None:
            self.submit(msgspec.structs.replace(self.mine, bound=bound))

    def withdraw(self) -> None:
        """Our trainer is gone, or must fetch a state first."""
        self.mine = None
        self.ballot = None
        self._readies.pop(self.me, None)

    def adopt(self, certificate: Certificate | None) -> None:
        """Take over the electorate that came with a downloaded state."""
        self.certificate = certificate

    def hear(self, peer: PeerId, ready: Ready) -> None:
        """Another member is ready. One that says so is not suspect any more."""
        if peer not in self._readies and not self._make_room(peer):
            return
        self._suspects.discard(peer)
        self._unreachable.discard(peer)
        self._readies[peer] = ready

    def meet(self, peer: PeerId) -> None:
        """A peer answers: worth waiting for, unless it is suspect of something else."""
        self._unreachable.discard(peer)

    def lose(self, peer: PeerId) -> None:
        """We cannot reach a peer: do not wait for it until it answers again."""
        if peer != self.me:
            self._unreachable.add(peer)
            self._readies.pop(peer, None)

    def refused(self, peer: PeerId) -> None:
        """A member did not take part in our attempt. It will say again that it is ready."""
        if peer != self.me:
            self._readies.pop(peer, None)
            self._refusals[peer] += 1
            if self._refusals[peer] >= REFUSALS_MAX:
                self.bar(peer)

    def bar(self, peer: PeerId) -> None:
        """A peer has broken this round by its own doing: go on without it, whoever else can."""
        if peer != self.me:
            self._barred.add(peer)

    def see(self, *, live: Collection[PeerId], left: Mapping[PeerId, int]) -> None:
        """Members by lease, and those that said goodbye, each with the round it would have had
        next. Who left before our round is no longer asked for a quorum; who left after it knows
        a later state.
        """
        self._live, self._left = frozenset(live), dict(left)

    # -- proposing ---------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Return what is to be done now, and set `deadline` for the next tick."""
        self.deadline = math.inf
        mine = self.mine
        if mine is None or self.ballot is not None:
            return []
        ready = self._ready_peers(mine)
        if not self.is_quorum(ready):
            self._quorum_since = self._turn_since = None
            later = self._later_farewell(mine.round)
            return [] if later is None else [Behind(later)]
        self._quorum_since = now if self._quorum_since is None else self._quorum_since
        root = self._reference_root(ready)
        same = {peer for peer in ready if self._readies[peer].root == root}
        if self.me not in same:
            return [Diverged(root)]
        if not self._is_complete(same, now):
            self._turn_since = None
            return []
        self._turn_since = now if self._turn_since is None else self._turn_since
        order = sorted(same, key=lambda peer: order_of(self.run, mine.round, self.attempt, peer))
        turn = self._turn_since + TURN_S * order.index(self.me)
        if now < turn:
            self.deadline = turn
            return []
        return [self._propose(mine, sorted(same))]

    def is_quorum(self, members: Collection[PeerId]) -> bool:
        """More than half of the previous members that have not left; at first, `min_members`."""
        if not members:
            return False
        if self.certificate is None:
            return len(members) >= self.min_members
        round_ = self.certificate.round + 1
        gone = {peer for peer, left_at in self._left.items() if left_at <= round_}
        electorate = set(self.certificate.members) - gone
        return not electorate or 2 * len(electorate & set(members)) > len(electorate)

    def waiting_for(self) -> list[PeerId]:
        """Members by lease that are expected and not ready yet."""
        ready = set(self._ready_peers(self.mine)) if self.mine is not None else set[PeerId]()
        return sorted(self._expected() - ready)

    # -- taking part -------------------------------------------------------------------------

    def offered(self, prepare: Prepare) -> str:
        """Decide on a PREPARE; "" accepts (and leaves any worse attempt), else a reason."""
        mine = self.mine
        if mine is None or mine.round > prepare.round:
            return "not_ready"
        if prepare.proposer in self._barred:
            return "barred"
        if mine.round < prepare.round:
            return "behind"
        if prepare.base_root != mine.root:
            return "diverged"
        if (prepare.elements, prepare.codec) != (mine.elements, mine.codec):
            return "schema"
        if not self._is_well_formed(prepare, mine) or not self.is_quorum(prepare.members):
            return "invalid"
        if prepare.attempt < self.attempt:
            return "old"
        if self.ballot is not None and not is_better(self.run, prepare.ballot, self.ballot):
            return "busy"
        self.ballot, self.attempt = prepare.ballot, prepare.attempt
        return ""

    def failed(self, ballot: Ballot, excluded: Collection[PeerId], *, attempt: int = 0) -> None:
        """An attempt of ours failed; go on to the next one without `excluded`.

        `attempt`: the attempt that others say they are in.
        """
        if self.ballot != ballot:
            return  # we have left it for a better one
        following = ballot.attempt + 1
        if attempt <= following + JUMP_MAX:
            following = max(following, attempt)
        self.attempt = min(ATTEMPTS_MAX, following)
        self.ballot = None
        self._turn_since = None
        for peer in set(excluded) - {self.me}:
            self._suspects.add(peer)
            self._readies.pop(peer, None)

    def committed(self, certificate: Certificate) -> None:
        """The round is over for us; the certificate's members are the next electorate.

        Whom it left out we do not wait for either until we hear of it: its proposer has waited.
        """
        self._suspects |= self._expected() - set(certificate.members)
        self.certificate = certificate
        self._start_round(certificate.round + 1)
        self.mine = None

    # -- inside ------------------------------------------------------------------------------

    def _expected(self) -> frozenset[PeerId]:
        absent = self._left.keys() | self._suspects | self._unreachable | self._barred
        return frozenset(self._live - absent - {self.me})

    def _later_farewell(self, round_: int) -> int | None:
        """The latest round that a voter of ours has left with, if it is later than ours."""
        voters = self.certificate.members if self.certificate is not None else self._left
        later = max((self._left.get(peer, 0) for peer in voters), default=0)
        return later if later > round_ else None

    def _start_round(self, round_: int) -> None:
        self.ballot = None
        self.attempt = 0
        self._quorum_since = self._turn_since = None
        self._barred.clear()
        self._refusals.clear()
        self._readies = {p: r for p, r in self._readies.items() if r.round >= round_}

    def _ready_peers(self, mine: Ready) -> list[PeerId]:
        """Who could take part; those that are barred only where there is no quorum without."""
        ready = [
            peer
            for peer, ready in self._readies.items()
            if (ready.round, ready.shape) == (mine.round, mine.shape)
        ]
        allowed = [peer for peer in ready if peer not in self._barred]
        return allowed if self.is_quorum(allowed) else ready

    def _voters(self) -> frozenset[PeerId]:
        """Members of the last certificate; before any, those with a lease, and we."""
        if self.certificate is not None:
            return frozenset(self.certificate.members)
        return self._live | {self.me}

    def _make_room(self, peer: PeerId) -> bool:
        """True if one more may be ready: voters and lease holders take the places of others."""
        if len(self._readies) < MEMBERS_MAX - 1:
            return True
        first, second = self._voters() | {self.me}, self._live
        rank = {p: (p in first) * 2 + (p in second) for p in [*self._readies, peer]}
        last = min(self._readies, key=lambda p: rank[p])
        if rank[last] >= rank[peer]:
            return False
        del self._readies[last]
        return True

    def _reference_root(self, ready: Collection[PeerId]) -> bytes:
        """The state that most ready voters start from; ties go to the first proposer.

        Newcomers have no vote: names cost nothing, and they bring no state that we need.
        """
        voters = [peer for peer in ready if peer in self._voters()] or ready
        votes = Counter(self._readies[peer].root for peer in voters)
        most = max(votes.values())
        round_ = self._readies[next(iter(voters))].round
        first = min(
            (peer for peer in voters if votes[self._readies[peer].root] == most),
            key=lambda peer: order_of(self.run, round_, 0, peer),
        )
        return self._readies[first].root

    def _is_complete(self, same: set[PeerId], now: float) -> bool:
        """True if nobody is worth waiting for, or the patience for slow members is over."""
        if not self.is_quorum(same):
            return False
        assert self._quorum_since is not None
        missing = self._expected() - same
        missing |= {p for p in self._ready_peers(self._readies[self.me]) if p not in same}
        patience_over = self._quorum_since + self.patience_s
        if not missing or now >= patience_over:
            self._suspects |= missing  # not waited for again until it is heard
            return True
        self.deadline = patience_over
        return False

    def _propose(self, mine: Ready, members: list[PeerId]) -> Propose:
        members = members[:MEMBERS_MAX]
        prepare = Prepare(
            run=self.run,
            round=mine.round,
            attempt=self.attempt,
            proposer=self.me,
            members=members,
            weights=[self._readies[peer].weight for peer in members],
            shards=equal_shards(mine.elements, len(members)),
            codec=mine.codec,
            base_root=mine.root,
            elements=mine.elements,
            lane=mine.lane,
            topology=mine.topology,
        )
        self.ballot = prepare.ballot
        return Propose(prepare)

    def _is_well_formed(self, prepare: Prepare, mine: Ready) -> bool:
        members = prepare.members
        if len({len(members), len(prepare.weights), len(prepare.shards)}) != 1:
            return False
        if len(set(members)) != len(members) or sum(prepare.shards) != prepare.elements:
            return False
        if prepare.proposer not in members or self.me not in members:
            return False
        return prepare.weights[members.index(self.me)] == mine.weight
