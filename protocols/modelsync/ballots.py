"""Which attempt beats which, who may decide a round, and what a proposer must adopt. Pure.

Single-decree Paxos (Lamport, "The Part-Time Parliament", 1998) for each round of a lane:
members are the acceptors, ACK is the promise, DONE the vote, and the mean of the first attempt that
could have been committed is the value. Quorums come from the contributors of the round before: they
are part of the value, where the members that signed it may differ from attempt to attempt.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from protocols.modelsync.wire import Ballot, Bound, Certificate
from wire.ids import PeerId

Rank = tuple[int, bytes]  # of an attempt; the greater one wins


def order_of(run: str, lane: int, round_: int, attempt: int, peer: PeerId) -> bytes:
    """Rank of a proposer: the lowest SHA-256 is first. Rotates by itself."""
    return hashlib.sha256(f"{run}\0{lane}\0{round_}\0{attempt}\0{peer}".encode()).digest()


def rank_of(run: str, lane: int, ballot: Ballot) -> Rank:
    """A later attempt beats an earlier one; within an attempt, the first in order wins."""
    order = order_of(run, lane, ballot.round, ballot.attempt, ballot.proposer)
    return ballot.attempt, bytes(255 - byte for byte in order)


def to_adopt(run: str, lane: int, round_: int, bounds: Iterable[Bound | None]) -> Bound | None:
    """Return what a proposer must adopt of what members are bound to: that of the best ballot.

    Two results of the best ballot mean that an owner lied in it: neither was committed, nor was
    anything before, or it would have been adopted there. Then nothing need be.
    """

    def rank(bound: Bound) -> Rank:
        return rank_of(run, lane, Ballot(round_, bound.attempt, bound.proposer))

    some = [bound for bound in bounds if bound is not None]
    if not some:
        return None
    best = max(map(rank, some))
    first, *others = [bound for bound in some if rank(bound) == best]
    return first if all(other.result == first.result for other in others) else None


def is_covered(run: str, lane: int, round_: int, bound: Bound | None, adopt: Bound | None) -> bool:
    """True if an attempt that adopts `adopt` may have a member that is bound to `bound`."""
    if bound is None:
        return True
    if adopt is None:
        return False
    theirs = rank_of(run, lane, Ballot(round_, bound.attempt, bound.proposer))
    return theirs <= rank_of(run, lane, Ballot(round_, adopt.attempt, adopt.proposer))


@dataclass
class Electorate:
    """Whose presence makes an attempt one that may be committed.

    `live` are members by lease; `left` those that said goodbye, with the round that each would
    have had next: who left before ours is no longer asked for.
    """

    min_members: int
    sample: int = 0
    certificate: Certificate | None = None  # of the round before ours
    live: frozenset[PeerId] = frozenset()
    left: Mapping[PeerId, int] = field(default_factory=dict[PeerId, int])

    @property
    def next_round(self) -> int:
        """The round that these are to decide."""
        return self.certificate.round + 1 if self.certificate is not None else 0

    def voters(self) -> frozenset[PeerId]:
        """Contributors of the last round that have not left; before any, those with a lease."""
        if self.certificate is None:
            return self.live
        gone = {peer for peer, left_at in self.left.items() if left_at <= self.next_round}
        return frozenset(self.certificate.contributors) - gone

    def is_quorum(self, members: Collection[PeerId], new: Collection[PeerId] = ()) -> bool:
        """True if these may decide the round: any two such sets share one that remembers.

        More than half of the voters, and those of them that are not new at least half. What new
        ones may have promised does not matter if there is nobody else to ask: if every voter that
        has a lease is here.
        """
        if self.sample:
            needed = -(-2 * self.sample // 3)
            return needed <= len(members) <= self.sample
        if self.certificate is None and len(members) < self.min_members:
            return False
        voters = self.voters()
        if not voters:
            return bool(members)
        here = voters & set(members)
        if 2 * len(here) <= len(voters):
            return False
        return 2 * len(here - set(new)) >= len(voters) or not (voters & self.live) - here

    def is_over(self, passed: Collection[PeerId], new: Collection[PeerId] = ()) -> bool:
        """True if so many voters are in later rounds, or left with one, that the rest cannot decide
        this one: too few, or too few that remember while one is there who does (`is_quorum`). One
        alone may lie; who is cut off learns the truth from the store.
        """
        voters = self.voters() if self.certificate is not None else self.live | self.left.keys()
        gone = {peer for peer, left_at in self.left.items() if left_at > self.next_round}
        left = voters - gone.union(passed)
        if left == voters or self.sample:
            return False
        remember = left - set(new)
        is_asked = bool(voters & self.live & set(passed))
        return 2 * len(left) <= len(voters) or (is_asked and 2 * len(remember) < len(voters))
