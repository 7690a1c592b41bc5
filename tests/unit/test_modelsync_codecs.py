"""Codecs and the mean: what is encoded is what everybody decodes."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocols.modelsync.aggregate import weighted_mean
from protocols.modelsync.codecs import (
    BLOCK,
    CONTRIBUTION_MAX,
    FLOAT32,
    INT8,
    MEAN_MAX,
    Codec,
    Vector,
    codec_named,
)
from shoal.learn import exact
from wire.errors import BadMessage

VALUES = st.floats(width=32, allow_nan=False, min_value=-(2.0**66), max_value=2.0**66)
VECTORS = arrays(np.float32, st.integers(1, 3 * BLOCK // 2), elements=VALUES, fill=VALUES)


@given(VECTORS)
def test_float32_is_exact(vector: Vector) -> None:
    decoded = FLOAT32.decode(FLOAT32.encode(vector), len(vector))
    assert decoded.tobytes() == vector.tobytes()


@given(VECTORS)
@example(np.float32([2.3e-40]))  # too small for a scale: sent as zeros
def test_int8_is_within_half_a_level_of_each_block(vector: Vector) -> None:
    data = INT8.encode(vector)
    assert len(data) == len(vector) + 4 * -(-len(vector) // BLOCK)
    decoded = INT8.decode(data, len(vector))
    for start in range(0, len(vector), BLOCK):
        block, back = vector[start : start + BLOCK], decoded[start : start + BLOCK]
        level = np.abs(block).max() / 127
        assert np.abs(block - back).max() <= 0.5001 * level + 127 * 2.0**-126


@given(VECTORS)
def test_int8_encoding_again_what_was_decoded_changes_nothing(vector: Vector) -> None:
    once = INT8.decode(INT8.encode(vector), len(vector))
    again = INT8.decode(INT8.encode(once), len(vector))
    np.testing.assert_allclose(again, once, rtol=1e-6, atol=1e-40)


@given(st.sampled_from([FLOAT32, INT8]), st.binary(max_size=200), st.integers(1, 60))
def test_any_bytes(codec: Codec, data: bytes, elements: int) -> None:
    try:
        vector = codec.decode(data, elements)
    except BadMessage:
        return
    assert vector.dtype == np.float32
    assert vector.shape == (elements,)
    assert bool(np.isfinite(vector).all())


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 1e29])
def test_a_hostile_scale_is_refused(scale: float) -> None:
    data = np.float32(scale).tobytes() + bytes(8)
    with pytest.raises(BadMessage):
        INT8.decode(data, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2 * MEAN_MAX])
def test_hostile_float32_values_are_refused(value: float) -> None:
    with pytest.raises(BadMessage):
        FLOAT32.decode(np.float32([0, value]).tobytes(), 2)


def test_int8_survives_blocks_of_zeros_and_of_subnormals() -> None:
    vector = np.zeros(2 * BLOCK, dtype=np.float32)
    vector[BLOCK:] = 1e-45
    assert np.abs(INT8.decode(INT8.encode(vector), len(vector))).max() <= 2e-45


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(BadMessage):
        codec_named("gzip")


def test_the_mean_weighs_members_and_skips_those_of_weight_zero() -> None:
    vectors = [np.float32([1, 2]), np.float32([np.nan, np.nan]), np.float32([4, 8])]
    mean = weighted_mean(vectors, [1.0, 0.0, 2.0])
    np.testing.assert_array_equal(mean, np.float32([3, 6]))
    assert weighted_mean(vectors, [0.0, 0.0, 0.0]).tolist() == [0.0, 0.0]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), st.integers(1, 50))
def test_the_daemon_and_the_trainer_average_to_the_same_bits(seeds: list[int], size: int) -> None:
    vectors = [np.random.default_rng(s).standard_normal(size, dtype=np.float32) for s in seeds]
    weights = [index / 3 for index in range(len(seeds))]  # the first is 0: skipped by both
    assert exact.CONTRIBUTION_MAX == CONTRIBUTION_MAX
    ours, theirs = weighted_mean(vectors, weights), exact.weighted_mean(vectors, weights)
    assert ours.tobytes() == theirs.tobytes()


def test_nesterov_is_the_textbook_step() -> None:
    phi, m = exact.nesterov(
        np.float32([1.0]), np.float32([1.0]), np.float32([0.25]), lr=0.5, momentum=0.5
    )
    assert m.tolist() == [0.75]  # 0.5 * 1 + 0.25
    assert phi.tolist() == [0.6875]  # 1 - 0.5 * (0.25 + 0.5 * 0.75)
    assert phi.dtype == m.dtype == np.float32
