"""Every codec: what is decoded is bounded, alike however it was cut, and close to what was sent."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync.blockwise import INT4, INT8
from protocols.modelsync.codecs import CODECS, codec_named, decode_contribution, most_compact
from protocols.modelsync.fedzip import FEDZIP
from protocols.modelsync.floats import BFLOAT16, FLOAT16, FLOAT32
from protocols.modelsync.sparse import KEPT, TOPK, encode_mean
from protocols.modelsync.vectors import (
    BLOCK,
    CONTRIBUTION_MAX,
    MEAN_MAX,
    VALUE_MAX,
    Codec,
    Vector,
    is_within,
)
from wire.errors import BadMessage

SIZES = st.sampled_from([1, 2, 63, 64, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7])
SCALES = st.sampled_from([0.0, 1e-44, 1e-38, 1e-3, 1.0, 1e4, 1e26])
EVERY_CODEC = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


@st.composite
def vectors(draw: st.DrawFn) -> Vector:
    """Normal values of some scale, some of them zero."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.standard_normal(draw(SIZES), dtype=np.float32)
    values[generator.random(len(values)) < draw(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    return np.multiply(values, np.float32(draw(SCALES)))


def square(vector: Vector) -> float:
    return float(np.sum(vector.astype(np.float64) ** 2))


@EVERY_CODEC
@given(vector=vectors())
def test_what_any_codec_gives_back_is_no_farther_than_nothing_at_all(
    codec: Codec, vector: Vector
) -> None:
    for encode in (codec.encode, codec.encode_mean):
        back = codec.decode(encode(vector), len(vector))
        assert back.dtype == np.float32
        assert square(back - vector) <= square(vector) * 1.000001 + 1e-70


@EVERY_CODEC
@given(vector=vectors(), cut=st.integers(0, 4))
def test_chunks_cut_at_a_multiple_of_the_block_decode_to_the_same_bits(
    codec: Codec, vector: Vector, cut: int
) -> None:
    parts = [vector[: cut * BLOCK], vector[cut * BLOCK :]]
    for encode in (codec.encode, codec.encode_mean):
        whole = codec.decode(encode(vector), len(vector))
        pieces = [codec.decode(encode(part), len(part)) for part in parts]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


def decodes_to_bounded_values(codec: Codec, data: bytes, elements: int, limit: float) -> None:
    try:
        values = codec.decode(data, elements, limit)
    except BadMessage:
        return
    assert values.shape == (elements,)
    assert is_within(values, limit * 1.000001)


@EVERY_CODEC
@given(data=st.binary(max_size=400), elements=st.integers(1, 120))
def test_any_bytes_are_bounded_values_or_refused(codec: Codec, data: bytes, elements: int) -> None:
    decodes_to_bounded_values(codec, data, elements, MEAN_MAX)


@EVERY_CODEC
@given(
    vector=vectors(),
    is_mean=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 255)), max_size=6),
    length=st.integers(-3, 3),
)
def test_changed_bytes_are_bounded_values_or_refused(
    codec: Codec,
    vector: Vector,
    is_mean: bool,
    changes: list[tuple[int, int]],
    length: int,
) -> None:
    data = bytearray((codec.encode_mean if is_mean else codec.encode)(vector))
    for at, flip in changes:
        # The head, where scales, counts and centroids lie, is hit as often as the rest.
        data[at % len(data) if at % 2 else at // 2 % min(len(data), 80)] ^= flip
    data = data[:length] if length < 0 else data + bytes(length)
    decodes_to_bounded_values(codec, bytes(data), len(vector), VALUE_MAX)


@EVERY_CODEC
def test_the_largest_contributions_can_be_averaged_and_sent_again(codec: Codec) -> None:
    vector = np.full(BLOCK + 3, -CONTRIBUTION_MAX, dtype=np.float32)
    mean = decode_contribution(codec, codec.encode(vector), len(vector))
    again = codec.decode(codec.encode_mean(mean), len(mean))
    assert is_within(again, VALUE_MAX)


@EVERY_CODEC
def test_a_contribution_beyond_its_bound_is_refused(codec: Codec) -> None:
    if codec is FLOAT16:
        return  # it cannot say such a number
    vector = np.full(BLOCK, 1.5 * VALUE_MAX, dtype=np.float32)
    codec.decode(codec.encode(vector), len(vector))
    with pytest.raises(BadMessage):
        decode_contribution(codec, codec.encode(vector), len(vector))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", [FLOAT32, BFLOAT16], ids=lambda codec: codec.name)
def test_values_that_are_not_numbers_never_pass(codec: Codec, value: float) -> None:
    with pytest.raises(BadMessage):
        codec.decode(codec.encode(np.full(5, value, dtype=np.float32)), 5)
    with pytest.raises(BadMessage):
        FLOAT16.decode(np.full(5, value, dtype="<f2").tobytes(), 5)


@pytest.mark.parametrize("codec", [INT8, INT4, TOPK, FEDZIP], ids=lambda codec: codec.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e31])
def test_scales_that_are_not_numbers_never_pass(codec: Codec, value: float) -> None:
    at = 1 if codec in {TOPK, FEDZIP} else 0
    for encode in (codec.encode, codec.encode_mean):
        data = bytearray(encode(np.ones(BLOCK, dtype=np.float32)))
        data[at : at + 4] = np.float32(value).tobytes()
        with pytest.raises(BadMessage):
            codec.decode(bytes(data), BLOCK)


def test_later_codecs_are_more_compact_and_as_compact_as_they_say() -> None:
    vector = np.random.default_rng(0).standard_normal(16 * BLOCK, dtype=np.float32)
    sizes = [len(codec.encode(vector)) / len(vector) for codec in CODECS]
    assert sizes == sorted(sizes, reverse=True)
    for codec, size in zip(CODECS, sizes, strict=True):
        assert size == pytest.approx(codec.bytes_per_element, rel=0.1)
    assert most_compact(["int8", "topk", "float32"]) == "topk"
    assert most_compact([]) == "float32"
    assert all(codec_named(codec.name) is codec for codec in CODECS)


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    ulp = 2.0**-7
    vector = np.array([1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.51 * ulp, -3.14159, 1e-40], np.float32)
    back = BFLOAT16.decode(BFLOAT16.encode(vector), len(vector))
    assert back[:3].tolist() == [1.0, 1 + 2 * ulp, 1 + ulp]
    np.testing.assert_allclose(back[3], vector[3], rtol=2.0**-8)


def test_float16_keeps_to_the_largest_number_that_it_has() -> None:
    vector = np.array([1e6, -1e30, 65519, 1.0], dtype=np.float32)
    assert FLOAT16.decode(FLOAT16.encode(vector), 4).tolist() == [65504, -65504, 65504, 1.0]


@pytest.mark.parametrize(("members", "rms"), [(2, 0.75 * 0.011), (4, 0.75 * 0.0165)])
def test_int8_averages_three_quarters_as_far_off_as_the_best_other(
    members: int, rms: float
) -> None:
    generator = np.random.default_rng(1)
    brought = [generator.standard_normal(64 * BLOCK, dtype=np.float32) for _ in range(members)]
    mean = np.mean([INT8.decode(INT8.encode(v), len(v)) for v in brought], axis=0)
    back = INT8.decode(INT8.encode_mean(mean), len(mean))
    exact = np.mean(brought, axis=0, dtype=np.float64)
    found = float(np.sqrt(np.mean((back - exact) ** 2)))
    assert found <= max(rms, 0.0088)


@given(vectors())
def test_int4_is_no_farther_off_than_with_the_scale_of_the_largest(vector: Vector) -> None:
    back = INT4.decode(INT4.encode(vector), len(vector)).astype(np.float64)
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK].astype(np.float64)
        scale = np.abs(block).max() / 7 or 1.0
        plain = np.rint(block / scale) * scale
        error = np.sum((back[start : start + BLOCK] - block) ** 2)
        assert error <= np.sum((plain - block) ** 2) * 1.0001 + 1e-13 * square(vector) + 1e-70


def test_topk_keeps_the_largest_of_each_block_with_their_signs() -> None:
    vector = np.random.default_rng(2).standard_normal(2 * BLOCK + 100, dtype=np.float32)
    back = TOPK.decode(TOPK.encode(vector), len(vector))
    for start in range(0, len(vector), BLOCK):
        block, kept = vector[start : start + BLOCK], back[start : start + BLOCK]
        largest = np.sort(np.argsort(-np.abs(block))[:KEPT])
        assert np.flatnonzero(kept).tolist() == largest.tolist()
        assert (np.sign(kept[largest]) == np.sign(block[largest])).all()
        assert len(np.unique(np.abs(kept[largest]))) == 2
        assert square(kept[largest] - block[largest]) < 0.05 * square(block[largest])


@given(vectors())
def test_a_mean_of_sparse_vectors_keeps_every_place(vector: Vector) -> None:
    data = encode_mean(vector)
    assert len(data) <= 2 + 1.125 * len(vector) + 4 * -(-len(vector) // BLOCK)
    back = TOPK.decode(data, len(vector))
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK]
        level = np.abs(block).max() / 127
        assert np.abs(block - back[start : start + BLOCK]).max() <= 0.5001 * level + 2e-36


def test_the_mean_of_four_sparse_contributions_stays_small() -> None:
    generator = np.random.default_rng(3)
    brought = [generator.standard_normal(16 * BLOCK, dtype=np.float32) for _ in range(4)]
    mean = np.mean([TOPK.decode(TOPK.encode(v), len(v)) for v in brought], axis=0)
    assert len(TOPK.encode_mean(mean)) < 0.16 * len(mean)


@pytest.mark.parametrize("swap", [True, False])
def test_positions_out_of_order_are_refused(swap: bool) -> None:
    data = bytearray(TOPK.encode(np.ones(BLOCK, dtype=np.float32)))
    first = 1 + 8
    if swap:
        data[first : first + 3], data[first + 3 : first + 6] = data[9 + 3 : 9 + 6], data[9:12]
    else:
        data[first : first + 3] = bytes(3)  # the same position twice
    with pytest.raises(BadMessage):
        TOPK.decode(bytes(data), BLOCK)


def test_a_bomb_is_refused_without_being_opened() -> None:
    head = FEDZIP.encode(np.zeros(BLOCK, dtype=np.float32))[: 1 + 60]
    bomb = zlib.compress(bytes(1 << 24))
    with pytest.raises(BadMessage):
        FEDZIP.decode(head + bomb, BLOCK)
    whole = FEDZIP.encode(np.zeros(BLOCK, dtype=np.float32))
    for wrong in (whole[:-1], whole + b"\0", whole[:-1] + b"\xff"):
        with pytest.raises(BadMessage):
            FEDZIP.decode(wrong, BLOCK)
