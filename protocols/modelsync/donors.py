"""Which state a joiner loads: one that more than half of the members claim, or the next best.

A certificate names who made a round, not the state that it led to (members sign before the outer
step). So a state counts as much as members of its own certificate say that they hold it, or held
it. Names cost nothing: more false members with leases than true ones can still deceive a joiner.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from protocols.modelsync.state_wire import Holding
from protocols.modelsync.wire import Certificate
from wire.codec import encode
from wire.ids import PeerId

Key = tuple[int, bytes]  # round, root


@dataclass(frozen=True)
class Offer:
    """A state that can be had, and who has it now.

    `electorate`: who was asked about it, the members of its certificate but for ourselves;
    `claimed` of them say that they hold it, or held it before.
    """

    round: int
    root: bytes
    certificate: Certificate | None
    donors: tuple[PeerId, ...]
    electorate: frozenset[PeerId]
    claimed: frozenset[PeerId]

    @property
    def is_sure(self) -> bool:
        """True if more than half of those who must know claim it."""
        return 2 * len(self.claimed) > len(self.electorate)


def offers(
    claims: Mapping[PeerId, Holding],
    *,
    me: PeerId,
    run: str,
    lane: int,
    elements: int,
    members: Collection[PeerId],
    is_quorum: Callable[[Collection[PeerId]], bool],
) -> list[Offer]:
    """Return the states that are claimed, the most credible first.

    A state before round 0 has no certificate, so it is the `members` (by lease) who vouch for it.
    Any other one has that of the round before, which every member of it signed. `is_quorum` says
    if peers speak for the members that we know. A state that most of those who vouch for it have
    left behind is no offer.
    """
    held, donors = _claimed(claims)
    signed: dict[bytes, bool] = {}
    found: dict[tuple[int, bytes, bytes], Offer] = {}
    for _, holding in sorted(claims.items()):
        certificate, body = holding.certificate, b""
        if holding.elements != elements or (certificate is None) != (holding.round == 0):
            continue
        if certificate is not None:
            named = (certificate.run, certificate.lane, certificate.round)
            if named != (run, lane, holding.round - 1):
                continue
            body = encode(certificate)  # another electorate is another offer
            if body not in signed:
                signed[body] = certificate.is_signed()
            if not signed[body]:
                continue
        key = (holding.round, holding.root)
        who = frozenset(members if certificate is None else certificate.members) - {me}
        offer = Offer(*key, certificate, tuple(sorted(donors[key])), who, who & held[key])
        found[(*key, body)] = offer
    kept = [offer for offer in found.values() if not _is_left_behind(offer, found.values())]
    return sorted(kept, key=lambda offer: _credit(offer, is_quorum), reverse=True)


def donors_of(claims: Mapping[PeerId, Holding], round_: int, root: bytes) -> list[PeerId]:
    """Return who can give a state, also those who have gone on and kept a copy of it."""
    return sorted(_claimed(claims)[1][round_, root])


def _claimed(
    claims: Mapping[PeerId, Holding],
) -> tuple[dict[Key, set[PeerId]], dict[Key, set[PeerId]]]:
    """Return who holds or held each state, and who can give it."""
    held: defaultdict[Key, set[PeerId]] = defaultdict(set)
    donors: defaultdict[Key, set[PeerId]] = defaultdict(set)
    for peer, holding in claims.items():
        held[holding.round, holding.root].add(peer)
        donors[holding.round, holding.root].add(peer)
        for past in holding.past:
            held[past.round, past.root].add(peer)
            if past.is_kept:
                donors[past.round, past.root].add(peer)
    return held, donors


def _is_left_behind(offer: Offer, others: Collection[Offer]) -> bool:
    return any(
        other.round > offer.round and 2 * len(offer.claimed & other.claimed) > len(offer.claimed)
        for other in others
    )


def _credit(
    offer: Offer, is_quorum: Callable[[Collection[PeerId]], bool]
) -> tuple[bool, bool, int, int, bytes]:
    """Rank an offer: continues the run that we know; most members claim it; it is the latest."""
    members = offer.certificate.members if offer.certificate is not None else offer.claimed
    return is_quorum(members), offer.is_sure, len(offer.claimed), offer.round, offer.root
