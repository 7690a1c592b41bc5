"""Aggregators: what a minority of liars can do to each of them, and what it cannot."""

import numpy as np
import pytest

from benchmarks.attacks import ATTACKS, sign_flip
from protocols.modelsync.aggregate import (
    aggregator_named,
    centered_clip,
    coordinate_median,
    flag,
    trimmed_mean,
    weighted_mean,
)
from protocols.modelsync.vectors import VALUE_MAX, Vector, is_within
from wire.errors import UsageError

ELEMENTS = 5000
ROBUST = ["median", "trimmed", "clip", "flag"]


def honest_ones(members: int, seed: int = 0) -> list[Vector]:
    """A direction that all share, and noise as long."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal(ELEMENTS, dtype=np.float32)
    return [shared + generator.standard_normal(ELEMENTS, dtype=np.float32) for _ in range(members)]


def cosine(one: Vector, two: Vector) -> float:
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize(("members", "liars"), [(4, 1), (7, 2), (16, 4)])
def test_a_minority_cannot_turn_or_blow_up_a_robust_aggregate(
    name: str, attack: str, members: int, liars: int
) -> None:
    honest = honest_ones(members - liars)
    mean = weighted_mean(honest, [1.0] * len(honest))
    lie = ATTACKS[attack](honest, liars)
    # Liars claim the greatest weight there is.
    weights = [1.0] * len(honest) + [1e6] * liars
    found = aggregator_named(name)([*honest, *[lie] * liars], weights)
    assert cosine(found, mean) > 0.75
    assert np.linalg.norm(found - mean) < 0.8 * np.linalg.norm(mean)


def test_one_liar_owns_the_mean() -> None:
    honest = honest_ones(3)
    mean = weighted_mean(honest, [1.0] * 3)
    found = aggregator_named("mean")([*honest, sign_flip(honest, 1)], [1.0] * 4)
    assert cosine(found, mean) < -0.99


@pytest.mark.parametrize("name", ["mean", *ROBUST])
def test_members_of_weight_zero_are_skipped(name: str) -> None:
    aggregate, honest = aggregator_named(name), honest_ones(3)
    noise = np.full(ELEMENTS, np.nan, dtype=np.float32)
    found = aggregate([honest[0], noise, *honest[1:]], [1.0, 0.0, 1.0, 1.0])
    assert found.tobytes() == aggregate(honest, [1.0] * 3).tobytes()
    assert not aggregate(honest, [0.0] * 3).any()


@pytest.mark.parametrize("name", ["mean", *ROBUST])
def test_of_one_vector_every_aggregate_is_that_vector(name: str) -> None:
    (vector,) = honest_ones(1)
    found = aggregator_named(name)([vector], [3.0])
    np.testing.assert_allclose(found, vector, rtol=1e-5)


@pytest.mark.parametrize("name", ["mean", *ROBUST])
def test_of_vectors_that_are_alike_or_zero_nothing_else_comes(name: str) -> None:
    (vector,) = honest_ones(1)
    same = aggregator_named(name)([vector] * 4, [1.0] * 4)
    np.testing.assert_allclose(same, vector, rtol=1e-5)
    assert not aggregator_named(name)([np.zeros_like(vector)] * 4, [1.0] * 4).any()


@pytest.mark.parametrize("name", ROBUST)
def test_the_largest_values_let_in_neither_overflow_nor_leave_the_range(name: str) -> None:
    huge = [np.full(ELEMENTS, sign * VALUE_MAX, dtype=np.float32) for sign in (1, -1, 1)]
    huge[2][1:] = 0
    assert is_within(aggregator_named(name)([*honest_ones(2), *huge], [1.0] * 5), VALUE_MAX)


@pytest.mark.parametrize("name", ["median", "trimmed:trim=0.3"])
def test_what_works_by_coordinates_may_be_cut_into_chunks(name: str) -> None:
    aggregate, vectors = aggregator_named(name), honest_ones(5)
    assert aggregate.is_chunked
    whole = aggregate(vectors, [1.0] * 5)
    halves = [aggregate([v[part] for v in vectors], [1.0] * 5) for part in
              (slice(0, 1234), slice(1234, None))]  # fmt: skip
    assert np.concatenate(halves).tobytes() == whole.tobytes()


def test_what_looks_at_lengths_sees_a_whole_shard() -> None:
    assert not any(aggregator_named(name).is_chunked for name in ("clip", "clip:tau=2", "flag"))


def test_median_and_trimmed_mean_are_those_of_the_textbook() -> None:
    for members in (1, 2, 3, 4, 7, 8):
        vectors = honest_ones(members)
        ordered = np.sort(np.stack(vectors), axis=0)
        np.testing.assert_allclose(
            coordinate_median(vectors), np.median(ordered, axis=0), rtol=1e-6, atol=1e-6
        )
        cut = min(-(-members // 4), (members - 1) // 2)
        expected = np.mean(ordered[cut : members - cut], axis=0)
        found = trimmed_mean(vectors, trim=0.25)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def clipped_step_by_step(vectors: list[Vector], tau: float | None) -> Vector:
    """Centered clipping as the paper writes it, vector by vector."""
    rows = np.stack(vectors).astype(np.float64)
    center = np.median(rows, axis=0)
    if tau is None:
        tau = float(np.sort(np.linalg.norm(rows - center, axis=1))[(len(rows) - 1) // 2])
    for _ in range(20):
        differences = rows - center
        lengths = np.linalg.norm(differences, axis=1, keepdims=True)
        center = center + np.mean(differences * np.minimum(1, tau / lengths), axis=0)
    return center.astype(np.float32)


@pytest.mark.parametrize("tau", [None, 10.0, 1e6])
@pytest.mark.parametrize("factor", [1.0, -1000.0, 1e20])
def test_clipping_over_dot_products_is_clipping_over_vectors(
    tau: float | None, factor: float
) -> None:
    honest = honest_ones(5)
    vectors = [*honest, np.multiply(honest[0], np.float32(factor))]
    expected = clipped_step_by_step(vectors, tau)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(centered_clip(vectors, tau=tau), expected, atol=1e-4 * scale)


def test_flag_ignores_how_long_vectors_are() -> None:
    honest = honest_ones(7)
    stretched = [np.multiply(v, np.float32(f)) for v, f in zip(honest, (9, *[1] * 6), strict=True)]
    assert cosine(flag(stretched), flag(honest)) > 0.9999


@pytest.mark.parametrize(
    "name", ["", "krum", "clip:=5", "clip:tau=-1", "clip:tau=nan", "trimmed:trim=0.5",
             "trimmed:tau=1", "mean:x=1", "median:", "flag:r=2"]
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        aggregator_named(name)


def test_a_mean_may_go_where_one_of_the_vectors_lies() -> None:
    """As in an exchange, which has no memory to spare for both."""
    random = np.random.default_rng(3)
    vectors = [random.standard_normal(70_000, dtype=np.float32) for _ in range(3)]
    expected = weighted_mean(vectors, [1.0, 2.0, 3.0])
    assert weighted_mean(vectors, [1.0, 2.0, 3.0], vectors[1]) is vectors[1]
    assert np.array_equal(vectors[1], expected)
