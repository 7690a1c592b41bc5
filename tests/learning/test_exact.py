"""Sums, mixes and roots that are alike on every machine."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.modelsync import neighbours, sampling, state
from protocols.modelsync.wire import Prepare
from shoal.learn import exact
from wire.ids import PeerId

PEERS = [f"peer-{n}" for n in range(9)]


def vector(seed: int, size: int) -> exact.Vector:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@settings(deadline=None)  # other load must not fail it
@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_a_fold_adds_up(size: int, seed: int) -> None:
    values = vector(seed, size)
    assert float(exact.fold_sum(values)) == pytest.approx(math.fsum(values), abs=1e-4)


def test_a_fold_has_an_order_of_its_own_whatever_the_memory_looks_like() -> None:
    rows = vector(1, 35 * 129).reshape(35, 129)
    by_row = [exact.fold_sum(row.copy()) for row in rows]
    assert exact.fold_sum(rows).tobytes() == np.array(by_row).tobytes()
    assert exact.fold_sum(np.asfortranarray(rows)).tobytes() == np.array(by_row).tobytes()
    # ((a + c) + e) + (b + d), not (((a + b) + c) + d) + e, which would be 0
    large = np.array([1e8, 1, -1e8, 1, 0], np.float32)
    assert exact.fold_sum(large) == 2


def test_variance_is_the_textbook_one() -> None:
    values = vector(2, 1000) + np.float32(3)
    assert exact.variance(values) == pytest.approx(float(np.var(values)), rel=1e-5)
    assert exact.variance(values[:0]) == 0


@settings(deadline=None)  # other load must not fail it
@given(
    st.sampled_from(["ring", "exponential", "complete", "pairs"]),
    st.integers(1, 9),
    st.integers(0, 40),
)
def test_weights_of_a_mix_are_doubly_stochastic(topology: str, count: int, round_: int) -> None:
    matrix = np.zeros((count, count))
    for index in range(count):
        row = exact.mix_row(topology, PEERS[:count], index, run="r", lane=0, round_=round_)
        assert list(row) == sorted(row)
        assert index in row
        for other, weight in row.items():
            matrix[index, other] = weight
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_two_members_of_a_ring_take_half_each() -> None:
    assert exact.mix_row("ring", PEERS[:2], 1, run="r", lane=0, round_=0) == {0: 0.5, 1: 0.5}


def test_the_exponential_graph_mixes_exactly_after_log2_n_rounds() -> None:
    values = [np.array([float(n)], np.float32) for n in range(8)]
    for round_ in range(3):
        rows = [
            exact.mix_row("exponential", PEERS[:8], i, run="r", lane=0, round_=round_)
            for i in range(8)
        ]
        values = [exact.mix(values, [1.0] * 8, row) for row in rows]
    assert [float(value[0]) for value in values] == [3.5] * 8


def test_pairs_are_mutual_and_change_with_run_lane_and_round() -> None:
    def partners(run: str, lane: int, round_: int) -> list[tuple[int, ...]]:
        return [
            tuple(exact.mix_row("pairs", PEERS[:8], i, run=run, lane=lane, round_=round_))
            for i in range(8)
        ]

    first = partners("r", 0, 0)
    assert all(len(pair) == 2 and first[pair[0]] == first[pair[1]] for pair in first)
    assert (
        len({str(partners(*w)) for w in [("r", 0, 0), ("s", 0, 0), ("r", 1, 0), ("r", 0, 1)]}) == 4
    )


def test_who_brings_nothing_is_left_out_of_a_mix() -> None:
    vectors = [np.array([value], np.float32) for value in (1.0, np.nan, 5.0)]
    row = exact.mix_row("complete", PEERS[:3], 0, run="r", lane=0, round_=0)
    assert exact.mix(vectors, [2.0, 0.0, 7.0], row).tolist() == [3.0]  # not weighted by 2 and 7


def test_samples_follow_a_seed_and_take_turns() -> None:
    samples = [exact.sample_of(PEERS, 3, run="r", lane=0, round_=k) for k in range(40)]
    assert all(len(sample) == 3 and sample == sorted(sample) for sample in samples)
    assert {peer for sample in samples for peer in sample} == set(PEERS)
    assert exact.sample_of(PEERS[::-1], 3, run="r", lane=0, round_=7) == samples[7]
    assert exact.sample_of(PEERS, 0, run="r", lane=0, round_=0) == PEERS


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1, 3 << 18])
def test_the_root_is_the_daemons(size: int) -> None:
    values = vector(size, size)
    assert exact.state_root(values) == state.state_root(values)


def test_any_changed_bit_changes_the_root() -> None:
    values = vector(3, (1 << 18) + 7)
    root = exact.state_root(values)
    values[-1] = np.nextafter(values[-1], np.float32(9))
    assert exact.state_root(values) != root


@settings(deadline=None)  # other load must not fail it
@given(
    st.sampled_from(["ring", "exponential", "complete", "pairs"]),
    st.integers(1, 9),
    st.integers(0, 40),
)
def test_daemons_mix_with_the_same_neighbours(topology: str, count: int, round_: int) -> None:
    prepare = Prepare(
        run="r",
        round=round_,
        attempt=0,
        proposer=PeerId(PEERS[0]),
        members=[PeerId(peer) for peer in PEERS[:count]],
        weights=[1.0] * count,
        shards=[1] * count,
        codec="float32",
        base_root=bytes(32),
        elements=count,
        lane=3,
        topology=topology,
    )
    for index in range(count):
        row = exact.mix_row(topology, PEERS[:count], index, run="r", lane=3, round_=round_)
        assert neighbours.sources(prepare, index) == row


def test_daemons_draw_the_same_sample() -> None:
    for round_ in range(20):
        drawn = sampling.sample_order("r", 2, round_, [PeerId(peer) for peer in PEERS])[:4]
        assert exact.sample_of(PEERS, 4, run="r", lane=2, round_=round_) == sorted(drawn)
