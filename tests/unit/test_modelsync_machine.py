"""The rounds of a run as scripts: whose turn, which quorum, who is left out."""

import math

import msgspec
import pytest

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.ballots import order_of as full_order_of
from protocols.modelsync.machine import TURN_S, Behind, Diverged, Propose, Rounds
from protocols.modelsync.roster import STRIKES_MAX
from protocols.modelsync.wire import (
    ATTEMPTS_MAX,
    MEMBERS_MAX,
    Ballot,
    Certificate,
    Prepare,
    Ready,
)
from wire.ids import PeerId

A, B, C, D, E = (PeerId(name) for name in "ABCDE")
ROOT = b"s" * 32


def ready(round_: int = 0, *, root: bytes = ROOT, weight: float = 1.0, elements: int = 10) -> Ready:
    return Ready("run", round_, root, weight, elements, "float32")


def machine(me: PeerId, *, members: str = "", min_members: int = 2, round_: int = 0) -> Rounds:
    rounds = Rounds("run", me, Electorate(min_members), patience_s=10.0)
    if members:
        rounds.adopt(certificate(members, round_ - 1))
    return rounds


def certificate(members: str, round_: int) -> Certificate:
    names = [PeerId(name) for name in members]
    return Certificate(
        "run", round_, 0, names[0], names, names, [1.0] * len(names), "float32", ROOT, bytes(32)
    )


def order(round_: int, attempt: int, peers: str) -> list[PeerId]:
    names = [PeerId(name) for name in peers]
    return sorted(names, key=lambda peer: full_order_of("run", 0, round_, attempt, peer))


def proposal(rounds: Rounds, now: float) -> Prepare:
    (effect,) = rounds.tick(now)
    assert isinstance(effect, Propose)
    return effect.prepare


def test_the_first_round_waits_for_min_members() -> None:
    first = order(0, 0, "AB")[0]
    rounds = machine(first)
    rounds.submit(ready())
    assert rounds.tick(0.0) == []
    other = A if first == B else B
    rounds.hear(other, ready())
    prepare = proposal(rounds, 1.0)
    assert prepare.members == [A, B]
    assert prepare.weights == [1.0, 1.0]
    assert sum(prepare.shards) == 10


def test_the_first_in_order_proposes_and_the_next_only_after_its_turn() -> None:
    first, second, third = order(0, 0, "ABC")
    rounds = machine(third, min_members=3)
    rounds.submit(ready())
    rounds.hear(first, ready())
    rounds.hear(second, ready())
    assert rounds.tick(5.0) == []
    assert rounds.deadline == 5.0 + 2 * TURN_S
    assert rounds.tick(4.9 + 2 * TURN_S) == []
    assert proposal(rounds, 5.0 + 2 * TURN_S).proposer == third


def test_the_proposer_rotates_from_round_to_round() -> None:
    assert len({order(round_, 0, "ABCD")[0] for round_ in range(40)}) == 4


def test_an_expected_member_is_waited_for_until_patience_ends() -> None:
    rounds = machine(A, members="ABC", round_=1)
    rounds.see(live=[A, B, C], left={})
    rounds.submit(ready(1))
    rounds.hear(B, ready(1))
    assert rounds.tick(0.0) == []
    assert rounds.waiting_for() == [C]
    assert rounds.deadline == 10.0
    assert rounds.tick(9.9) == []
    turn = 10.0 + TURN_S * order(1, 0, "AB").index(A)
    rounds.tick(10.0)
    if rounds.ballot is None:
        rounds.tick(turn)
    assert rounds.ballot is not None
    assert rounds.waiting_for() == []


def test_an_unreachable_member_is_not_waited_for_until_it_answers_again() -> None:
    rounds = machine(A, members="ABC", round_=1)
    rounds.see(live=[A, B, C], left={})
    rounds.submit(ready(1))
    rounds.hear(B, ready(1))
    rounds.roster.lose(C)
    assert rounds.waiting_for() == []
    rounds.roster.meet(C)
    assert rounds.waiting_for() == [C]


def test_a_member_left_out_of_an_attempt_is_waited_for_only_once_it_is_ready_again() -> None:
    first = order(1, 0, "ABC")[0]
    rounds = machine(first, members="ABC", round_=1)
    others = [peer for peer in (A, B, C) if peer != first]
    rounds.see(live=[A, B, C], left={})
    rounds.submit(ready(1))
    for peer in others:
        rounds.hear(peer, ready(1))
    prepare = proposal(rounds, 0.0)
    rounds.failed(prepare.ballot, [others[0]])
    rounds.roster.meet(others[0])
    assert rounds.waiting_for() == []
    assert rounds.attempt == 1
    later = proposal(rounds, 0.0) if order(1, 1, first + others[1])[0] == first else None
    assert later is None or others[0] not in later.members


@pytest.mark.parametrize(
    ("members", "present", "is_quorum"),
    [
        ("ABCD", "ABC", True),
        ("ABCD", "AB", False),
        ("ABCDE", "ABC", True),
        ("ABC", "AB", True),
        ("AB", "A", False),
        ("A", "A", True),
        ("ABC", "ADE", False),
    ],
)
def test_a_quorum_is_more_than_half_of_the_previous_members(
    members: str, present: str, is_quorum: bool
) -> None:
    rounds = machine(A, members=members, round_=1)
    assert rounds.electorate.is_quorum([PeerId(p) for p in present]) == is_quorum


def test_those_who_said_goodbye_are_not_needed_for_a_quorum() -> None:
    rounds = machine(A, members="AB", round_=1)
    assert not rounds.electorate.is_quorum([A])
    rounds.see(live=[A], left={B: 1})
    assert rounds.electorate.is_quorum([A])


def test_those_who_left_after_a_later_round_are_asked_for_its_state() -> None:
    rounds = machine(A, members="ABC", round_=1)
    rounds.see(live=[A], left={B: 2, C: 1})
    assert not rounds.electorate.is_quorum([A])
    rounds.submit(ready(1))
    assert rounds.tick(0.0) == [Behind(2)]


def test_a_round_that_half_of_its_voters_have_passed_is_given_up() -> None:
    rounds = machine(A, members="ABC", round_=1)
    rounds.see(live=[A, B, C], left={})
    rounds.submit(ready(1))
    rounds.hear(B, ready(7))
    assert rounds.tick(0.0) == []
    rounds.hear(D, ready(7))
    assert rounds.tick(0.0) == [], "no voter"
    rounds.hear(C, ready(3))
    assert rounds.tick(0.0) == [Behind(2)]
    rounds.see(live=[A], left={B: 9})
    assert rounds.tick(0.0) == [Behind(2)], "left, and in a later round"


def test_a_lie_about_a_later_round_does_not_stop_a_quorum() -> None:
    rounds = machine(A, members="ABCD", round_=1)
    rounds.see(live=[A, B, C], left={D: 1_000_000})
    rounds.submit(ready(1))
    for peer in (B, C):
        rounds.hear(peer, ready(1))
    rounds.tick(0.0)
    rounds.tick(3 * TURN_S)
    assert rounds.ballot is not None


def test_two_halves_never_both_have_a_quorum() -> None:
    for size in range(1, 8):
        names = "ABCDEFGH"[:size]
        rounds = machine(A, members=names, round_=1)
        for mask in range(2**size):
            some = [PeerId(n) for i, n in enumerate(names) if mask >> i & 1]
            rest = [PeerId(n) for i, n in enumerate(names) if not mask >> i & 1]
            assert not (rounds.electorate.is_quorum(some) and rounds.electorate.is_quorum(rest))


def test_a_minority_with_another_state_is_told_to_fetch_and_the_majority_waits_for_it() -> None:
    odd = machine(A, members="ABC", round_=1)
    odd.submit(ready(1, root=b"x" * 32))
    odd.hear(B, ready(1))
    odd.hear(C, ready(1))
    assert odd.tick(0.0) == [Diverged(ROOT)]
    first = order(1, 0, "BC")[0]
    rounds = machine(first, members="ABC", round_=1)
    rounds.submit(ready(1))
    rounds.hear(B if first == C else C, ready(1))
    rounds.hear(A, ready(1, root=b"x" * 32))
    assert rounds.tick(0.0) == []
    assert rounds.deadline == 10.0
    rounds.hear(A, ready(1, weight=0.0))
    at = TURN_S * order(1, 0, "ABC").index(first)
    rounds.tick(0.0)
    prepare = proposal(rounds, at) if rounds.ballot is None else None
    assert rounds.ballot is not None
    assert prepare is None or prepare.weights[0] == 0.0


def test_newcomers_have_no_vote_on_the_state_to_start_from() -> None:
    rounds = machine(A, members="AB", round_=1)
    rounds.submit(ready(1))
    rounds.hear(B, ready(1))
    for peer in (C, D, E):
        rounds.hear(peer, ready(1, root=b"x" * 32, weight=0.0))
    assert rounds.tick(0.0) == []
    assert rounds.deadline == 10.0, "they may fetch the state and take part"


def test_before_any_certificate_those_with_a_lease_vote() -> None:
    rounds = machine(A)
    rounds.see(live=[A, B], left={})
    rounds.submit(ready())
    rounds.hear(B, ready())
    for peer in (C, D, E):
        rounds.hear(peer, ready(root=b"x" * 32))
    assert not any(isinstance(effect, Diverged) for effect in rounds.tick(0.0))
    rounds.see(live=[A, B, C, D, E], left={})
    assert rounds.tick(0.0) == [Diverged(b"x" * 32)]


def test_strangers_do_not_keep_members_out_of_the_table() -> None:
    rounds = machine(A, members="AB", round_=1)
    rounds.see(live=[A, B, C], left={})
    rounds.submit(ready(1))
    for number in range(200):
        rounds.hear(PeerId(f"stranger {number}"), ready(1))
    rounds.hear(C, ready(1))
    rounds.hear(B, ready(1))
    assert rounds.waiting_for() == []
    assert len(rounds.roster.readies) < MEMBERS_MAX


def test_others_with_another_schema_do_not_count() -> None:
    rounds = machine(A)
    rounds.submit(ready())
    rounds.hear(B, ready(elements=11))
    assert rounds.tick(0.0) == []


def offer(**changes: object) -> Prepare:
    base = Prepare("run", 1, 0, B, [A, B, C], [1.0, 1.0, 1.0], [4, 3, 3], "float32", ROOT, 10)
    return msgspec.structs.replace(base, **changes)


def member() -> Rounds:
    rounds = machine(A, members="ABC", round_=1)
    rounds.submit(ready(1))
    return rounds


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (offer(), ""),
        (offer(round=0), "not_ready"),
        (offer(round=2), "behind"),
        (offer(base_root=b"x" * 32), "diverged"),
        (offer(codec="int8"), "schema"),
        (offer(weights=[2.0, 1.0, 1.0]), "invalid"),
        (offer(shards=[4, 4, 3]), "invalid"),
        (offer(members=[B, C, D]), "invalid"),
        (offer(members=[A, A, B]), "invalid"),
        (offer(members=[A], weights=[1.0], shards=[10]), "invalid"),
        (offer(members=[A, D], weights=[1.0, 1.0], shards=[5, 5], proposer=D), "invalid"),
    ],
)
def test_a_prepare_is_accepted_only_if_it_fits(prepare: Prepare, reason: str) -> None:
    assert member().offered(prepare) == reason


def test_a_member_is_in_one_attempt_at_a_time_the_best_it_knows() -> None:
    first, second, third = order(1, 0, "ABC")
    rounds = machine(third, members="ABC", round_=1)
    rounds.submit(ready(1))
    assert rounds.offered(offer(proposer=second)) == ""
    assert rounds.offered(offer(proposer=first)) == ""
    assert rounds.offered(offer(proposer=second)) == "busy"
    assert rounds.offered(offer(proposer=second, attempt=1)) == ""
    assert rounds.offered(offer(proposer=first)) == "old"


def leader() -> Rounds:
    first = order(1, 0, "ABC")[0]
    rounds = machine(first, members="ABC", round_=1)
    rounds.submit(ready(1))
    for peer in {A, B, C} - {first}:
        rounds.hear(peer, ready(1))
    return rounds


def lead(rounds: Rounds) -> Prepare:
    for now in range(10):
        for effect in rounds.tick(float(now)):
            assert isinstance(effect, Propose)
            return effect.prepare
    raise AssertionError("it does not propose")


def test_who_refuses_twice_is_left_out_for_the_rest_of_the_round() -> None:
    rounds = leader()
    refuser, other = sorted({A, B, C} - {rounds.me})
    for _ in range(STRIKES_MAX):
        prepare = lead(rounds)
        assert refuser in prepare.members
        rounds.failed(prepare.ballot, [], stale=[refuser])
        rounds.hear(refuser, ready(1))  # and says again that it is ready
    assert lead(rounds).members == sorted([rounds.me, other])
    rounds.committed(certificate("ABC", 1))
    rounds.submit(ready(2))
    for peer in (refuser, other):
        rounds.hear(peer, ready(2))
    assert refuser in lead(rounds).members


def test_who_is_barred_takes_part_where_there_is_no_quorum_without_it() -> None:
    rounds = leader()
    for peer in {A, B, C} - {rounds.me}:
        rounds.roster.bar(peer)
    assert lead(rounds).members == [A, B, C]


def test_who_is_barred_leads_nothing() -> None:
    rounds = member()
    rounds.roster.bar(B)
    assert rounds.offered(offer()) == "barred"


def test_a_lie_about_the_attempt_does_not_use_the_numbers_up() -> None:
    rounds = leader()
    rounds.failed(lead(rounds).ballot, [], attempt=ATTEMPTS_MAX)
    assert rounds.attempt == 1
    rounds.failed(lead(rounds).ballot, [], attempt=5)
    assert rounds.attempt == 5


def test_the_end_of_a_worse_attempt_does_not_end_the_better_one() -> None:
    first, second, third = order(1, 0, "ABC")
    rounds = machine(third, members="ABC", round_=1)
    rounds.submit(ready(1))
    rounds.offered(offer(proposer=second))
    rounds.offered(offer(proposer=first))
    rounds.failed(Ballot(1, 0, second), [second])
    assert rounds.ballot == Ballot(1, 0, first)


def test_after_a_commit_the_next_round_begins_with_its_members_as_electorate() -> None:
    rounds = member()
    rounds.hear(B, ready(2))
    rounds.offered(offer())
    rounds.committed(certificate("ABC", 1))
    assert rounds.mine is None
    assert rounds.ballot is None
    assert rounds.tick(0.0) == []
    assert rounds.deadline == math.inf
    rounds.submit(ready(2))
    assert rounds.electorate.is_quorum([A, B])
