"""Which state a joiner loads, from what members claim."""

import msgspec
import pytest

from protocols.modelsync import wire
from protocols.modelsync.donors import Offer, donors_of, offers
from protocols.modelsync.state_wire import Holding, Past
from protocols.modelsync.wire import Certificate
from wire.ids import PeerId, Signer

SIGNERS = sorted((Signer(bytes([n + 1]) * 32) for n in range(64)), key=lambda s: s.peer)
A, B, C, D, E = MEMBERS = [signer.peer for signer in SIGNERS[:5]]
ME = SIGNERS[5].peer
ROOT, OTHER = b"s" * 32, b"x" * 32


def certificate(count: int, round_: int, *, start: int = 0, run: str = "run") -> Certificate:
    signers = SIGNERS[start : start + count]
    members = [signer.peer for signer in signers]
    unsigned = Certificate(
        run, round_, 0, members[0], members, members, [1.0] * count, "int8", ROOT, bytes(32)
    )
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, unsigned.body()) for s in signers)
    return msgspec.structs.replace(unsigned, signatures=signatures)


def choose(claims: dict[PeerId, Holding], *, known: int = 0) -> list[Offer]:
    return offers(
        claims,
        me=ME,
        run="run",
        lane=0,
        elements=10,
        members=MEMBERS,
        is_quorum=lambda members: len(members) > known,
    )


def test_the_state_that_most_members_of_its_certificate_claim_comes_first() -> None:
    good, lie = certificate(3, 4), certificate(1, 999, start=3)
    claims = dict.fromkeys((A, B), Holding(5, ROOT, 10, good))
    claims[C] = Holding(5, OTHER, 10, good)
    claims[D] = Holding(1000, OTHER, 10, lie)
    first, *_ = choose(claims)
    assert (first.round, first.root, first.donors) == (5, ROOT, (A, B))


def test_who_claims_a_state_under_another_certificate_does_not_share_its_credit() -> None:
    good, lie = certificate(2, 4, start=1), certificate(1, 4)
    claims = dict.fromkeys((B, C), Holding(5, ROOT, 10, good))
    claims[A] = Holding(5, ROOT, 10, lie)
    assert [offer.certificate for offer in choose(claims)] == [good, lie]


def test_the_later_of_two_states_with_equal_claims_comes_first() -> None:
    claims = {
        A: Holding(5, ROOT, 10, certificate(2, 4)),
        B: Holding(6, OTHER, 10, certificate(2, 5)),
    }
    assert [offer.round for offer in choose(claims)] == [6, 5]


def test_what_continues_the_run_that_we_know_comes_before_all_else() -> None:
    claims = dict.fromkeys((D, E), Holding(9, OTHER, 10, certificate(2, 8, start=3)))
    claims[A] = Holding(5, ROOT, 10, certificate(3, 4))
    assert [offer.round for offer in choose(claims, known=2)] == [5, 9]


@pytest.mark.parametrize(
    "latest",
    [
        Holding(5, ROOT, 10, None),
        Holding(5, ROOT, 11, certificate(2, 4)),
        Holding(5, ROOT, 10, certificate(2, 5)),
        Holding(5, ROOT, 10, certificate(2, 4, run="other")),
        Holding(5, ROOT, 10, msgspec.structs.replace(certificate(2, 4), result=OTHER)),
        Holding(0, ROOT, 10, certificate(2, 4)),
    ],
)
def test_a_claim_without_the_certificate_of_the_round_before_is_no_offer(latest: Holding) -> None:
    assert choose({A: latest}) == []


def test_before_the_first_round_the_state_of_most_is_offered_first() -> None:
    claims = dict.fromkeys((B, C), Holding(0, ROOT, 10)) | {A: Holding(0, OTHER, 10)}
    assert [offer.root for offer in choose(claims)] == [ROOT, OTHER]


def test_a_state_is_sure_if_more_than_half_of_the_others_in_its_certificate_claim_it() -> None:
    three = certificate(3, 4)
    assert choose(dict.fromkeys((A, B), Holding(5, ROOT, 10, three)))[0].is_sure
    assert not choose({A: Holding(5, ROOT, 10, three)})[0].is_sure
    with_me = certificate(3, 4, start=4)  # of E, us, and one more: we cannot say anything new
    assert not choose({E: Holding(5, ROOT, 10, with_me)})[0].is_sure
    assert choose({E: Holding(5, ROOT, 10, certificate(2, 4, start=4))})[0].is_sure


def test_before_the_first_round_most_of_the_members_by_lease_must_claim_a_state() -> None:
    claims = dict.fromkeys((A, B, C), Holding(0, ROOT, 10))
    assert choose(claims)[0].is_sure
    assert not choose(dict.fromkeys((A, B), Holding(0, ROOT, 10)))[0].is_sure


def test_who_has_gone_on_still_vouches_for_the_state_before() -> None:
    old, new = certificate(3, 4), certificate(3, 5)
    claims = dict.fromkeys((A, B), Holding(5, ROOT, 10, old))
    claims[C] = Holding(6, OTHER, 10, new, past=(Past(5, ROOT, True),))
    first, second = choose(claims)
    assert (first.round, first.claimed, first.donors) == (5, {A, B, C}, (A, B, C))
    assert (second.round, second.is_sure) == (6, False)


def test_what_most_of_those_who_vouch_for_it_have_left_behind_is_no_offer() -> None:
    old, new = certificate(3, 4), certificate(3, 5)
    claims = dict.fromkeys((A, B), Holding(6, OTHER, 10, new, past=(Past(5, ROOT, False),)))
    claims[C] = Holding(5, ROOT, 10, old)
    assert [offer.round for offer in choose(claims)] == [6]


def test_a_later_round_that_only_strangers_claim_leaves_nothing_behind() -> None:
    claims = dict.fromkeys((A, B, C), Holding(5, ROOT, 10, certificate(3, 4)))
    past = tuple(Past(round_, ROOT, True) for round_ in (5, 4))
    claims[D] = Holding(9, OTHER, 10, certificate(1, 8, start=3), past=past)
    assert choose(claims)[0].root == ROOT


def test_a_kept_copy_can_be_had_from_who_has_gone_on() -> None:
    claims = {
        A: Holding(5, ROOT, 10, certificate(2, 4)),
        B: Holding(6, OTHER, 10, certificate(2, 5), past=(Past(5, ROOT, True),)),
        C: Holding(6, OTHER, 10, certificate(2, 5), past=(Past(5, ROOT, False),)),
    }
    assert donors_of(claims, 5, ROOT) == [A, B]
    assert donors_of(claims, 6, OTHER) == [B, C]
