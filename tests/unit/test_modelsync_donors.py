"""Which state a joiner loads, from what members claim; and certificates in the store."""

import msgspec
import pytest

from protocols.modelsync import wire
from protocols.modelsync.donors import Offer, offers
from protocols.modelsync.latest_wire import Latest
from protocols.modelsync.wire import Certificate
from wire.ids import PeerId, Signer

SIGNERS = sorted((Signer(bytes([n + 1]) * 32) for n in range(64)), key=lambda s: s.peer)
A, B, C, D, E = (signer.peer for signer in SIGNERS[:5])
ROOT, OTHER = b"s" * 32, b"x" * 32


def certificate(count: int, round_: int, *, start: int = 0, run: str = "run") -> Certificate:
    signers = SIGNERS[start : start + count]
    members = [signer.peer for signer in signers]
    unsigned = Certificate(
        run, round_, 0, members[0], members, members, [1.0] * count, "int8", ROOT, bytes(32)
    )
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, unsigned.body()) for s in signers)
    return msgspec.structs.replace(unsigned, signatures=signatures)


def choose(claims: dict[PeerId, Latest], *, known: int = 0) -> list[Offer]:
    return offers(
        claims, run="run", lane=0, elements=10, is_quorum=lambda members: len(members) > known
    )


def test_the_state_that_most_members_of_its_certificate_claim_comes_first() -> None:
    good, lie = certificate(3, 4), certificate(1, 999, start=3)
    claims = dict.fromkeys((A, B), Latest(5, ROOT, 10, good))
    claims[C] = Latest(5, OTHER, 10, good)
    claims[D] = Latest(1000, OTHER, 10, lie)
    first, *_ = choose(claims)
    assert (first.round, first.root, first.donors) == (5, ROOT, [A, B])


def test_who_claims_a_state_under_another_certificate_does_not_share_its_credit() -> None:
    good, lie = certificate(2, 4, start=1), certificate(1, 4)
    claims = dict.fromkeys((B, C), Latest(5, ROOT, 10, good))
    claims[A] = Latest(5, ROOT, 10, lie)
    assert [offer.certificate for offer in choose(claims)] == [good, lie]


def test_the_later_of_two_states_with_equal_claims_comes_first() -> None:
    claims = {A: Latest(5, ROOT, 10, certificate(2, 4)), B: Latest(6, OTHER, 10, certificate(2, 5))}
    assert [offer.round for offer in choose(claims)] == [6, 5]


def test_what_continues_the_run_that_we_know_comes_before_all_else() -> None:
    claims = dict.fromkeys((D, E), Latest(9, OTHER, 10, certificate(2, 8, start=3)))
    claims[A] = Latest(5, ROOT, 10, certificate(3, 4))
    assert [offer.round for offer in choose(claims, known=2)] == [5, 9]


@pytest.mark.parametrize(
    "latest",
    [
        Latest(5, ROOT, 10, None),
        Latest(5, ROOT, 11, certificate(2, 4)),
        Latest(5, ROOT, 10, certificate(2, 5)),
        Latest(5, ROOT, 10, certificate(2, 4, run="other")),
        Latest(5, ROOT, 10, msgspec.structs.replace(certificate(2, 4), result=OTHER)),
        Latest(0, ROOT, 10, certificate(2, 4)),
    ],
)
def test_a_claim_without_the_certificate_of_the_round_before_is_no_offer(latest: Latest) -> None:
    assert choose({A: latest}) == []


def test_before_the_first_round_the_state_of_most_is_offered_first() -> None:
    claims = dict.fromkeys((B, C), Latest(0, ROOT, 10)) | {A: Latest(0, OTHER, 10)}
    assert [offer.root for offer in choose(claims)] == [ROOT, OTHER]
