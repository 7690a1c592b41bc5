"""Quorums, what must be adopted, blame by majority, samples."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync.ballots import Electorate, is_covered, order_of, rank_of, to_adopt
from protocols.modelsync.blame import Accusation, blame, excluded_by, outvoted
from protocols.modelsync.sampling import sample_order
from protocols.modelsync.wire import Ballot, Bound, Certificate
from wire.ids import PeerId

PEERS = [PeerId(name) for name in "ABCDE"]
A, B, C, D, E = PEERS
ROOT = b"s" * 32


def certificate(contributors: str, *, members: str = "", round_: int = 4) -> Certificate:
    names = [PeerId(name) for name in contributors]
    signed = [PeerId(name) for name in members or contributors]
    return Certificate(
        "run", round_, 0, signed[0], signed, names, [1.0] * len(names), "float32", ROOT, ROOT
    )


def electorate(voters: str, live: str = "", left: dict[PeerId, int] | None = None) -> Electorate:
    return Electorate(
        2,
        certificate=certificate(voters),
        live=frozenset(PeerId(name) for name in live or voters),
        left=left or {},
    )


def names(text: str) -> list[PeerId]:
    return [PeerId(name) for name in text]


@pytest.mark.parametrize(
    ("voters", "members", "new", "is_quorum"),
    [
        ("ABC", "AB", "", True),
        ("ABC", "AB", "A", False),
        ("ABCD", "ABC", "A", True),
        ("ABCD", "ABC", "AB", False),
        ("ABCD", "ABCD", "ABC", True),  # nobody else to ask
        ("AB", "AB", "A", True),
        ("AB", "AB", "AB", True),
        ("AB", "ABCDE", "CDE", True),
        ("AB", "ACDE", "", False),
        ("ABCDE", "ABC", "AB", False),
        ("ABCDE", "ABC", "ABC", False),
    ],
)
def test_a_quorum_is_most_of_the_voters_half_of_whom_remember(
    voters: str, members: str, new: str, is_quorum: bool
) -> None:
    assert electorate(voters).is_quorum(names(members), names(new)) is is_quorum


def test_those_without_a_lease_cannot_be_asked_what_they_remember() -> None:
    assert not electorate("ABCDE", live="ABCD").is_quorum(names("ABC"), names("AB"))
    assert electorate("ABCDE", live="ABC").is_quorum(names("ABC"), names("AB"))


def test_any_two_quorums_share_one_that_remembers() -> None:
    for size in range(1, 6):
        voters = PEERS[:size]
        known = electorate("ABCDE"[:size])
        subsets = [
            frozenset(some) for n in range(size + 1) for some in itertools.combinations(voters, n)
        ]
        for first, second, new in itertools.product(subsets, subsets, subsets):
            if second == set(voters) or not known.is_quorum(second, new):
                continue
            if known.is_quorum(first):
                assert first & (second - new), (first, second, new)


def test_voters_are_the_contributors_whoever_signed() -> None:
    known = Electorate(2, certificate=certificate("ABC", members="DE"))
    assert known.voters() == {A, B, C}
    assert known.next_round == 5


def test_who_left_before_this_round_is_no_voter_who_left_after_it_is() -> None:
    assert electorate("ABC", left={C: 5}).voters() == {A, B}
    later = electorate("ABC", left={C: 6})
    assert later.voters() == {A, B, C}
    assert not later.is_over([]), "one alone may lie"
    assert electorate("ABC", left={C: 6, B: 9}).is_over([])
    assert electorate("ABC", left={C: 6}).is_over([B])
    assert not electorate("ABC", left={C: 5, D: 9}).is_over([])
    assert not electorate("AB", left={A: 5, B: 5}).is_over([])


def test_before_the_first_certificate_leavers_of_later_rounds_count_beside_the_present() -> None:
    first = Electorate(2, live=frozenset(names("AB")), left={C: 3})
    assert not first.is_over([])
    assert Electorate(2, live=frozenset(names("A")), left={B: 3}).is_over([])


def test_the_first_round_needs_most_of_those_with_a_lease_and_min_members() -> None:
    first = Electorate(2, live=frozenset(names("ABCD")))
    assert not first.is_quorum(names("AB"))
    assert first.is_quorum(names("ABC"))
    assert not Electorate(4, live=frozenset(names("ABC"))).is_quorum(names("ABC"))
    assert Electorate(1).is_quorum(names("A"))
    assert not Electorate(0).is_quorum([])


def test_a_round_is_over_when_half_of_its_voters_are_in_later_ones() -> None:
    assert electorate("ABCD").is_over(names("AB"))
    assert not electorate("ABCD").is_over(names("AE"))
    assert not electorate("ABC").is_over(names("A"))
    assert not Electorate(1, sample=4, certificate=certificate("AB")).is_over(names("AB"))


def test_a_round_is_over_when_who_could_decide_it_has_forgotten() -> None:
    """All left; one came back first and went on alone; the others would wait for it for ever."""
    assert electorate("ABC").is_over(names("A"), new=names("BC"))
    assert electorate("ABC").is_over(names("A"), new=names("B"))
    assert not electorate("ABC", live="BC").is_over(names("A"), new=names("BC"))  # they may
    assert not electorate("ABCD").is_over(names("A"), new=names("B"))  # C and D remember
    assert not electorate("ABC").is_over(names("E"), new=names("BC"))


@pytest.mark.parametrize(("count", "is_quorum"), [(3, False), (4, True), (6, True), (7, False)])
def test_two_thirds_of_a_sample_are_enough_and_more_than_it_too_many(
    count: int, is_quorum: bool
) -> None:
    sampled = Electorate(1, sample=6, certificate=certificate("AB"))
    assert sampled.is_quorum([PeerId(str(n)) for n in range(count)]) is is_quorum


def bound(attempt: int, proposer: PeerId = A, result: bytes = ROOT) -> Bound:
    return Bound(attempt, proposer, result, [A, B], [1.0, 1.0], [2, 2], "float32")


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(PEERS)), max_size=6))
def test_what_is_adopted_covers_all_that_anybody_is_bound_to(
    ballots: list[tuple[int, PeerId]],
) -> None:
    bounds = [bound(attempt, proposer) for attempt, proposer in ballots]
    adopt = to_adopt("run", 0, 5, [None, *bounds])
    assert (adopt is None) == (not bounds)
    assert all(is_covered("run", 0, 5, each, adopt) for each in [None, *bounds])
    for each in bounds:
        assert not is_covered("run", 0, 5, each, None)
        ranks = [rank_of("run", 0, Ballot(5, b.attempt, b.proposer)) for b in (each, adopt) if b]
        assert is_covered("run", 0, 5, adopt, each) == (ranks[0] >= ranks[1])


def test_two_results_of_the_best_ballot_prove_that_nothing_was_committed() -> None:
    bounds = [bound(1), bound(1, result=b"z" * 32), bound(1), bound(0, result=b"0" * 32)]
    assert to_adopt("run", 0, 5, bounds) is None
    assert to_adopt("run", 0, 5, [*bounds, bound(2)]) == bound(2)


def test_the_order_of_proposers_differs_by_lane_round_and_attempt() -> None:
    orders = {
        order_of(run, lane, round_, attempt, A)
        for run, lane, round_, attempt in itertools.product(("r", "q"), (0, 1), (0, 1), (0, 1))
    }
    assert len(orders) == 16


def test_one_deviating_hash_is_the_fault_of_who_reports_it() -> None:
    same, other = [b"1", b"2", b"3"], [b"1", b"x", b"3"]
    assert outvoted({A: same, B: same, C: other}, owners=[A, B, C]) == {C}
    assert outvoted({A: same, B: other, C: same}, owners=[A, B, C]) == {B}
    assert outvoted({A: same, B: same, C: same}, owners=[A, B, C]) == set()


def test_where_members_differ_without_majority_the_owner_told_them_different_things() -> None:
    shards = {A: [b"1", b"2"], B: [b"1", b"x"]}
    assert outvoted(shards, owners=[A, B]) == {B}
    four = {A: [b"1"], B: [b"1"], C: [b"2"], D: [b"2"]}
    assert outvoted(four, owners=[C]) == {C}


def test_samples_rotate_and_do_not_depend_on_who_lists_them() -> None:
    orders = {tuple(sample_order("run", 0, round_, PEERS)) for round_ in range(20)}
    assert len(orders) > 10
    assert sample_order("run", 0, 3, PEERS) == sample_order("run", 0, 3, reversed(PEERS))
    assert sample_order("run", 0, 3, PEERS) != sample_order("run", 1, 3, PEERS)


def test_a_stream_that_broke_is_an_echo_where_somebody_fell_silent() -> None:
    echo, cause = Accusation(A, B, "broken"), Accusation(C, D, "silent")
    assert blame([echo, cause]) == {D}
    assert blame([echo]) == {B}
    assert blame([Accusation(A, B, "aborted"), Accusation(C, D, "lost")]) == {D}
    assert blame([]) == set()


def test_of_two_that_accuse_each_other_one_is_left_out() -> None:
    assert len(excluded_by([(A, B), (B, A)])) == 1


def test_the_most_accused_is_left_out_and_not_believed() -> None:
    assert excluded_by([(D, A), (A, D), (B, D), (C, D)]) == {D}


@given(st.lists(st.tuples(st.sampled_from("ABCDE"), st.sampled_from("ABCDE")), max_size=12))
def test_exclusion_does_not_depend_on_the_order_of_evidence(pairs: list[tuple[str, str]]) -> None:
    evidence = [(PeerId(a), PeerId(b)) for a, b in pairs if a != b]
    assert excluded_by(evidence) == excluded_by(reversed(evidence))


@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from("ABC"), st.sampled_from("ABC"))
def test_of_two_attempts_exactly_one_is_better(a: int, b: int, p: str, q: str) -> None:
    one, two = Ballot(0, a, PeerId(p)), Ballot(0, b, PeerId(q))
    if one == two:
        assert rank_of("run", 0, one) == rank_of("run", 0, two)
    else:
        assert rank_of("run", 0, one) != rank_of("run", 0, two)
        assert a == b or (rank_of("run", 0, one) > rank_of("run", 0, two)) == (a > b)
