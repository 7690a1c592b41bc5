"""Which state a joiner loads: from the members of the run, the one that most of them claim.

A certificate names who made a round, not the state that it led to (members sign before the outer
step). So a state counts as much as members of its own certificate say that they hold it. Names
cost nothing: more false members with leases than true ones can still deceive a joiner.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from protocols.modelsync.latest_wire import Latest
from protocols.modelsync.wire import Certificate
from wire.codec import encode
from wire.ids import PeerId


@dataclass(frozen=True)
class Offer:
    """A state that can be had, and who has it."""

    round: int
    root: bytes
    certificate: Certificate | None
    donors: list[PeerId]


def offers(
    claims: Mapping[PeerId, Latest],
    *,
    run: str,
    lane: int,
    elements: int,
    is_quorum: Callable[[Collection[PeerId]], bool],
) -> list[Offer]:
    """Return the states that are claimed, the most credible first. `claims` are of members only.

    A state before round 0 has no certificate; any other one has that of the round before, which
    every member of it signed. `is_quorum` says if peers speak for the members that we know.
    """
    signed: dict[bytes, bool] = {}
    found: dict[tuple[int, bytes, bytes], Offer] = {}
    for peer, latest in sorted(claims.items()):
        certificate, body = latest.certificate, b""
        if latest.elements != elements or (certificate is None) != (latest.round == 0):
            continue
        if certificate is not None:
            of = (certificate.run, certificate.lane, certificate.round)
            if of != (run, lane, latest.round - 1):
                continue
            body = encode(certificate)  # another electorate is another offer
            if body not in signed:
                signed[body] = certificate.is_signed()
            if not signed[body]:
                continue
        offer = Offer(latest.round, latest.root, certificate, [])
        found.setdefault((latest.round, latest.root, body), offer).donors.append(peer)
    return sorted(found.values(), key=lambda offer: _credit(offer, is_quorum), reverse=True)


def _credit(
    offer: Offer, is_quorum: Callable[[Collection[PeerId]], bool]
) -> tuple[bool, int, int, bytes]:
    """Rank an offer: continues the run that we know; most members claim it; it is the latest."""
    members = offer.certificate.members if offer.certificate is not None else offer.donors
    claimed = len(set(members) & set(offer.donors))
    return is_quorum(members), claimed, offer.round, offer.root
