"""Rows in every codec: their size, what is lost, what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.sharding.codecs import decode, encode
from protocols.sharding.rows import ids_to_rows, row_bytes, rows_to_ids
from protocols.sharding.wire import CODECS
from wire.errors import BadMessage

SIZES = [1, 3, 4, 32, 63, 64, 65, 100, 576]
# Of the largest element of a row: half a step of int8 in a block, or of the mantissa.
LOSS = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 1 / 127}


def rows_like_a_model(count: int, size: int) -> torch.Tensor:
    """Normal values, a few large ones, and in the first row an attention sink."""
    torch.manual_seed(size)
    hidden = torch.randn(count, size)
    hidden[:, 0] *= 60
    hidden[0, size // 2] = 23_294.0
    return hidden


def test_a_row_in_int8_is_610_bytes_at_hidden_576() -> None:
    assert row_bytes("int8", 576) == 610
    assert row_bytes("int8", 576) <= 0.27 * row_bytes("float32", 576)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_rows_come_back_as_close_as_the_codec_says(codec: str, size: int) -> None:
    hidden = rows_like_a_model(5, size)
    rows = encode(codec, hidden)
    assert len(rows) == 5 * row_bytes(codec, size)
    found = decode(codec, rows, size)
    assert found.dtype == torch.float32
    assert found.shape == hidden.shape
    largest = hidden.abs().amax(dim=1, keepdim=True)
    assert float(((found - hidden).abs() / largest).max()) <= LOSS[codec]


@pytest.mark.parametrize("codec", CODECS)
def test_a_row_does_not_depend_on_those_beside_it(codec: str) -> None:
    hidden = rows_like_a_model(4, 100)
    alone = b"".join(encode(codec, row.unsqueeze(0)) for row in hidden)
    assert encode(codec, hidden) == alone


def test_int8_keeps_outliers_apart_so_the_rest_stays_fine() -> None:
    hidden = rows_like_a_model(8, 576)
    found = decode("int8", encode("int8", hidden), 576)
    largest = hidden.abs().topk(4, dim=1).indices
    exact = found.gather(1, largest) / hidden.gather(1, largest) - 1
    assert float(exact.abs().max()) < 2**-10
    rest = (found - hidden).scatter(1, largest, 0.0).abs()
    assert float(rest.max()) < 4.0 / 127  # a block's own largest is below 4, the sink is 23,294


@pytest.mark.parametrize("largest", [65_504.0, 1e6, 3e38])
def test_no_value_is_too_large_for_int8_and_none_becomes_infinite(largest: float) -> None:
    hidden = torch.full((1, 64), 0.5)
    hidden[0, 7] = largest
    for codec in CODECS:
        found = decode(codec, encode(codec, hidden), 64)
        expected = min(largest, 65_504.0) if codec == "float16" else largest
        assert float(found[0, 7]) == pytest.approx(expected, rel=2**-8)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_neither_sent_nor_taken(codec: str, value: float) -> None:
    hidden = torch.zeros(2, 64)
    hidden[1, 3] = value
    with pytest.raises(BadMessage):
        encode(codec, hidden)
    if codec != "int8":
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        rows = hidden.to(dtype[codec]).view(torch.uint8).numpy().tobytes()
        with pytest.raises(BadMessage):
            decode(codec, rows, 64)


def test_outliers_of_a_row_are_rising_and_within_it() -> None:
    rows = bytearray(encode("int8", rows_like_a_model(1, 64)))
    indices = slice(2, 10)
    for bad in ([0, 0, 1, 2], [3, 2, 1, 0], [1, 2, 3, 64], [1, 2, 3, 65_535]):
        rows[indices] = b"".join(index.to_bytes(2, "little") for index in bad)
        with pytest.raises(BadMessage):
            decode("int8", bytes(rows), 64)


@given(st.sampled_from([*CODECS, "ids", "picks", "zip"]), st.sampled_from(SIZES), st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_rows_or_refused(codec: str, size: int, data: st.DataObject) -> None:
    try:
        one = row_bytes(codec, size)
    except BadMessage:
        one = 8
    length = data.draw(st.sampled_from([0, 1, one - 1, one, 2 * one]))
    rows = data.draw(st.binary(min_size=length, max_size=length))
    try:
        hidden = decode(codec, rows, size)
    except BadMessage:
        return
    assert hidden.shape == (length // one, size)
    assert bool(torch.isfinite(hidden).all())


def test_ids_are_rows_of_four_bytes() -> None:
    ids = [0, 1, 49_151, (1 << 24)]
    assert rows_to_ids(ids_to_rows(ids)) == ids
    assert ids_to_rows([258]) == b"\x02\x01\x00\x00"
    with pytest.raises(BadMessage):
        rows_to_ids(b"\x00" * 5)
