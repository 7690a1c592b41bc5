"""Syncs by script: any two sets converge, what it costs, what is refused, what gets lost."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.clock import stamp
from crdt.entry import Record
from crdt.replica import Replica
from tests.sim.crdt_pairs import NOW_MS, Side, history, replica_of, sync, unsigned

POOL = history(300, 7)
N = 20_000
FEW = history(N, 1)
MANY = history(N, 700, seed=2)


def holds(side: Side) -> set[bytes]:
    return set(side.replica.records)


def without(records: list[Record], skipped: set[int]) -> Replica:
    return replica_of(one for at, one in enumerate(records) if at not in skipped)


def subset(rng: random.Random) -> list[Record]:
    """Of the pool: any, with runs and holes."""
    share = rng.choice((0.0, 0.02, 0.5, 0.98, 1.0))
    low, high = sorted(rng.sample(range(len(POOL) + 1), 2))
    return [one for at, one in enumerate(POOL) if low <= at < high or rng.random() < share]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_any_two_sets_become_their_union_in_one_session(seed: int) -> None:
    rng = random.Random(seed)
    mine, theirs = Side(replica_of(subset(rng))), Side(replica_of(subset(rng)))
    union = holds(mine) | holds(theirs)
    lacking = len(union) - len(holds(mine)), len(union) - len(holds(theirs))
    report = sync(mine, theirs, nonce=rng.randbytes(8))
    assert holds(mine) == holds(theirs) == union
    assert (report.entries_in, report.entries_out) == lacking  # nothing travels in vain


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_with_any_refusals_a_session_ends_and_nothing_refused_comes_again(seed: int) -> None:
    rng = random.Random(seed)
    shares = rng.choice((0.05, 0.9)), rng.choice((0.0, 0.5))
    refused = [{one.stamp for one in POOL if rng.random() < share} for share in shares]
    mine = Side(replica_of(subset(rng)), lambda one: one.stamp in refused[0])
    theirs = Side(replica_of(subset(rng)), lambda one: one.stamp in refused[1])
    before = holds(mine), holds(theirs)
    sync(mine, theirs)
    assert holds(mine) == before[0] | (before[1] - refused[0])
    assert holds(theirs) == before[1] | (before[0] - refused[1])
    again = sync(mine, theirs)
    assert (again.entries_in, again.entries_out) == (0, 0)
    back = sync(theirs, mine)
    assert (back.entries_in, back.entries_out) == (0, 0)


def test_what_was_refused_is_asked_for_again_after_a_while() -> None:
    mine, theirs = Side(replica_of([]), lambda _: True), Side(replica_of(POOL))
    assert sync(mine, theirs).entries_in == len(POOL)
    assert sync(mine, theirs).entries_in == 0
    mine.holding.refusals.expire(19.0)
    assert sync(mine, theirs).entries_in == 0
    for now, wait_s in ((20.0, 40.0), (60.0, 80.0), (140.0, 160.0)):  # twice as long each time
        mine.now_ms = NOW_MS + round(now * 1000)
        mine.holding.refusals.expire(now)
        assert sync(mine, theirs).entries_in == len(POOL)
        mine.holding.refusals.expire(now + wait_s - 1)
        assert sync(mine, theirs).entries_in == 0
    mine.refuses = lambda _: False
    mine.holding.refusals.expire(1000.0)
    assert sync(mine, theirs).entries_in == len(POOL)
    assert holds(mine) == holds(theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_sessions_that_are_cut_go_on_where_they_were(seed: int) -> None:
    rng = random.Random(seed)
    mine, theirs = Side(replica_of(subset(rng))), Side(replica_of(subset(rng)))
    union = holds(mine) | holds(theirs)
    for _ in range(40):
        sides = rng.sample((mine, theirs), 2)
        sync(*sides, nonce=rng.randbytes(8), is_lost=lambda: rng.random() < 0.3)
    sync(mine, theirs)
    assert holds(mine) == holds(theirs) == union


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_versions_of_the_same_keys_settle_to_the_latest(seed: int) -> None:
    rng = random.Random(seed)
    versions = [
        unsigned(
            author,
            1,
            stamp(NOW_MS - 90_000 + rng.randrange(80_000)),
            key=f"k/{at % 20}",
            instance=at,
        )
        for author, at in itertools.product(range(3), range(40))
    ]
    sides = [Side(replica_of(rng.sample(versions, rng.randrange(100)))) for _ in range(2)]
    sync(*sides)
    sync(*sides)  # what fell off meanwhile may have held a place
    assert holds(sides[0]) == holds(sides[1])


@pytest.mark.parametrize("records", [FEW, MANY], ids=["one author", "many"])
def test_equal_replicas_are_done_after_one_round_trip(records: list[Record]) -> None:
    report = sync(Side(replica_of(records)), Side(replica_of(reversed(records))))
    assert report.round_trips == 1
    assert report.overhead <= 400


@pytest.mark.parametrize("records", [FEW, MANY], ids=["one author", "many"])
@pytest.mark.parametrize(("count", "budget"), [(10, 2_000), (100, 4_000)])
def test_recent_differences_cost_little(records: list[Record], count: int, budget: int) -> None:
    last = set(range(N - count, N))
    half = set(random.Random(count).sample(sorted(last), count // 2))
    for lacking in ((last, set[int]()), (set[int](), last), (half, last - half)):
        mine, theirs = (Side(without(records, skipped)) for skipped in lacking)
        report = sync(mine, theirs)
        assert holds(mine) == holds(theirs)
        assert report.entries_in + report.entries_out == count
        assert report.overhead <= budget
        assert report.round_trips - report.kinds.count("Push") <= 3


@pytest.mark.parametrize("records", [FEW, MANY], ids=["one author", "many"])
@pytest.mark.parametrize("seed", range(3))
def test_scattered_differences_take_three_round_trips(records: list[Record], seed: int) -> None:
    holes = set(random.Random(seed).sample(range(N), 100))
    half = set(sorted(holes)[::2])
    for lacking in ((holes, set[int]()), (set[int](), holes), (half, holes - half)):
        mine, theirs = (Side(without(records, skipped)) for skipped in lacking)
        report = sync(mine, theirs)
        assert holds(mine) == holds(theirs)
        assert report.overhead <= 60_000
        assert report.round_trips - report.kinds.count("Push") <= 3


def test_keys_overwritten_since_cost_like_what_is_new() -> None:
    """The entries that the new ones replace are scattered holes, but are not looked at."""
    over: list[Record] = []
    last = FEW[-1]
    for at in range(1, 101):
        last = unsigned(0, N + at, last.hlc + 1, key=FEW[at * 99].key, prev=last.link)
        over.append(last)
    mine, theirs = Side(replica_of(FEW)), Side(replica_of([*FEW, *over]))
    report = sync(mine, theirs)
    assert (report.entries_in, report.entries_out) == (100, 0)
    assert report.overhead <= 4_000
    assert holds(mine) == holds(theirs)


@pytest.mark.parametrize("is_leader_cold", [True, False])
def test_a_cold_sync_moves_chain_runs_and_little_else(is_leader_cold: bool) -> None:
    full, empty = Side(replica_of(MANY[:6000])), Side(replica_of(MANY[:100]))
    size = sum(one.size for one in MANY[:6000])
    report = sync(empty, full) if is_leader_cold else sync(full, empty)
    assert holds(full) == holds(empty)
    assert report.overhead < 0.1 * size
    assert report.entries_in + report.entries_out == 5900
    assert ("Pull" in report.kinds) == is_leader_cold


def test_large_entries_are_cut_into_messages() -> None:
    value = b"\xc5\x07\xd0" + bytes(2000)
    large = [
        unsigned(at, 1, stamp(NOW_MS - 9_000 + at), value=value, instance=at) for at in range(600)
    ]
    mine, theirs = Side(replica_of(large[::2])), Side(replica_of(large[1::2]))
    sync(mine, theirs)
    assert holds(mine) == holds(theirs) == {one.stamp for one in large}
