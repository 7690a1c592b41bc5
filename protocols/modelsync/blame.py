"""Whom the next attempt leaves out, from what members say of each other. Pure, deterministic."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wire.ids import PeerId

CERTAIN = frozenset({"lost", "silent", "bad"})  # the rest may be the echo of another fault


@dataclass(frozen=True)
class Accusation:
    """One member says that it cannot go on because of another.

    Reasons: lost (the proposer's own stream to it), silent, bad, broken, aborted. The last two may
    be the echo of another fault: a stream breaks when either end gives up.
    """

    accuser: PeerId
    accused: PeerId
    reason: str


def blame(accusations: Sequence[Accusation]) -> set[PeerId]:
    """Decide whom the next attempt leaves out. Echoes count only if there is nothing better."""
    certain = [a for a in accusations if a.reason in CERTAIN]
    return excluded_by((a.accuser, a.accused) for a in certain or accusations)


def excluded_by(accusations: Iterable[tuple[PeerId, PeerId]]) -> set[PeerId]:
    """Decide whom the next attempt leaves out, from (accuser, accused) pairs.

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


def outvoted(shards: Mapping[PeerId, Sequence[bytes]], *, owners: Sequence[PeerId]) -> set[PeerId]:
    """Return who is at fault where members do not report the same hash of a shard.

    Who differs from more than half of all; without such a majority, the owner, who told them
    different things. `shards`: each member's hashes, in the order of `owners`.
    """
    out: set[PeerId] = set()
    for index, owner in enumerate(owners):
        votes = Counter(hashes[index] for hashes in shards.values())
        ((most, count),) = votes.most_common(1)
        if 2 * count > len(shards):
            out |= {member for member, hashes in shards.items() if hashes[index] != most}
        else:
            out.add(owner)
    return out
