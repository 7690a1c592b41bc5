"""Who owns how much: shards by bandwidth."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync.shards import (
    FAST,
    SHARD_STEP,
    SPREAD,
    chunks,
    shard_range,
    weighted_shards,
)

MILLION = 1_000_000
members = st.lists(
    st.tuples(st.sampled_from([0, 1e5, 1e6, 1.2e6, 1e7, 1e9]), st.booleans()),
    min_size=1,
    max_size=64,
)


def slowest(elements: int, shards: list[int], rates: list[float]) -> float:
    n = len(shards)
    return max(
        (elements + max(n - 2, 0) * shard) / rate for shard, rate in zip(shards, rates, strict=True)
    )


@given(elements=st.integers(1, 50 * MILLION), swarm=members)
def test_shards_cover_everything_in_steps(elements: int, swarm: list[tuple[float, bool]]) -> None:
    shards = weighted_shards(elements, [rate for rate, _ in swarm], [owns for _, owns in swarm])
    assert len(shards) == len(swarm)
    assert sum(shards) == elements
    assert min(shards) >= 0
    owned = [shard for shard in shards if shard]
    assert all(shard % SHARD_STEP == 0 for shard in owned[:-1])
    if any(owns for _, owns in swarm):
        assert all(owns for shard, (_, owns) in zip(shards, swarm, strict=True) if shard)


@given(
    rates=st.lists(st.floats(1e5, FAST), min_size=3, max_size=12),
    cuts=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_no_other_cut_is_faster(rates: list[float], cuts: list[float]) -> None:
    """Against any other cut, the slowest member is as fast, but for rounding (or rates so near
    each other that shards are equal).
    """
    elements, n = 50 * MILLION, len(rates)
    shares = [cut + 1e-9 for cut in cuts[:n]]
    other = [int(elements * share / sum(shares)) for share in shares]
    ours = weighted_shards(elements, rates, [True] * n)
    rounding_s = (n - 2) * SHARD_STEP / min(rates)
    slack = 1.0 if max(rates) > SPREAD * min(rates) else SPREAD
    assert slowest(elements, ours, rates) <= slack * slowest(elements, other, rates) + rounding_s


@pytest.mark.parametrize(
    "rates", [[0, 0, 0, 0], [10, 14, 12, 0], [0, 0, 5, 0], [FAST, 9 * FAST, 2 * FAST, 0]]
)
def test_what_is_not_measured_or_nearly_alike_or_fast_is_equal(rates: list[float]) -> None:
    shards = weighted_shards(4 * SHARD_STEP * 10, rates, [True] * 4)
    assert shards == [SHARD_STEP * 10] * 4


def test_a_slow_member_owns_less_and_a_very_slow_one_nothing() -> None:
    fast, slow, crawling = weighted_shards(10 * MILLION, [10e6, 6e6, 1e6], [True] * 3)
    assert fast > slow > 0
    assert crawling == 0


def test_two_members_share_alike_whatever_their_rates() -> None:
    assert weighted_shards(8 * SHARD_STEP, [1e6, 1e9], [True, True]) == [4 * SHARD_STEP] * 2


def test_if_nobody_can_own_a_shard_all_do() -> None:
    assert weighted_shards(2 * SHARD_STEP, [0, 0], [False, False]) == [SHARD_STEP] * 2


def test_ranges_and_chunks_cover_a_shard() -> None:
    shards = weighted_shards(3 * MILLION, [0, 0], [True, True])
    start, stop = shard_range(shards, 1)
    parts = list(chunks(start, stop))
    assert (parts[0][0], parts[-1][1]) == (shards[0], 3 * MILLION)
    assert all(before[1] == after[0] for before, after in pairwise(parts))
