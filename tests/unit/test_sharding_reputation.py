"""What verdicts mean for routes: bans of our own, costs by others, disputes of neighbours."""

import math

from protocols.sharding.records import AuditRecord
from protocols.sharding.reputation import (
    AGREED_COST,
    BAN_DOUBLINGS_MAX,
    BAN_S,
    HALF_LIFE_S,
    Disputes,
    banned_until_ms,
    penalty,
)
from wire.ids import PeerId

A, B, C, D = map(PeerId, "abcd")
NOW = 1_800_000_000_000
FINE = AuditRecord(5, 0)


def failed(times: int = 1, *, ago_s: float = 0.0) -> AuditRecord:
    return AuditRecord(0, times, NOW - int(ago_s * 1000), "differs")


def test_our_own_failures_ban_for_an_hour_then_twice_as_long() -> None:
    assert banned_until_ms(None) == banned_until_ms(FINE) == 0
    assert banned_until_ms(failed()) == NOW + BAN_S * 1000
    assert banned_until_ms(failed(3)) == NOW + 4 * BAN_S * 1000
    longest = NOW + 2**BAN_DOUBLINGS_MAX * BAN_S * 1000
    assert banned_until_ms(failed(1 << 40)) == longest
    assert penalty(failed(ago_s=BAN_S - 1), {}, NOW) == math.inf
    assert 0 < penalty(failed(ago_s=BAN_S + 1), {}, NOW) <= 1


def test_others_cost_in_proportion_to_how_many_agree() -> None:
    assert penalty(None, {}, NOW) == penalty(None, {A: FINE}, NOW) == 0
    one = penalty(None, {A: failed(), B: FINE, C: FINE, D: FINE}, NOW)
    two = penalty(None, {A: failed(), B: failed(), C: FINE, D: FINE}, NOW)
    assert 0 < one < two < AGREED_COST
    assert two == 2 * one


def test_no_number_of_liars_bans_and_what_one_says_again_adds_nothing() -> None:
    liars = {PeerId(str(number)): failed(1000) for number in range(1000)}
    assert penalty(None, liars, NOW) < AGREED_COST
    assert penalty(None, {A: failed(1000)}, NOW) == penalty(None, {A: failed()}, NOW)


def test_failures_fade_and_one_in_the_future_is_one_of_now() -> None:
    fresh = penalty(None, {A: failed()}, NOW)
    assert penalty(None, {A: failed(ago_s=HALF_LIFE_S)}, NOW) == fresh / 2
    assert penalty(None, {A: failed(ago_s=-1e6)}, NOW) == fresh


def test_who_is_at_odds_with_two_neighbours_is_at_fault_and_they_are_cleared() -> None:
    disputes = Disputes()
    assert disputes.add(A, B) is None
    assert disputes.add(A, B) is None  # the same two again: still word against word
    assert disputes.involves(A)
    assert disputes.involves(B)
    assert disputes.add(B, C) == B
    assert not any(disputes.involves(peer) for peer in (A, B, C))


def test_disputes_are_bounded() -> None:
    disputes = Disputes()
    for number in range(1000):
        disputes.add(PeerId(f"x{number}"), PeerId(f"y{number}"))
    assert 0 < len(disputes) < 100
