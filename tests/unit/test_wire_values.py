"""Free-form values: what is let through, what is refused, and that refusing costs nothing."""

import time
import tracemalloc

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import BadMessage
from wire.values import DEPTH_MAX, ELEMENTS_MAX, check

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=80)
    | st.binary(max_size=300)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=60,
)


@given(values)
def test_every_plain_value_passes_in_both_libraries_bytes(value: object) -> None:
    check(msgspec.msgpack.encode(value))
    check(msgpack.packb(value))


@given(values)
def test_no_cut_and_no_addition_passes(value: object) -> None:
    whole = msgspec.msgpack.encode(value)
    for end in range(len(whole)):
        with pytest.raises(BadMessage):
            check(whole[:end])
    with pytest.raises(BadMessage, match="1 bytes follow"):
        check(whole + b"\xc0")


@given(st.binary(max_size=200))
def test_what_passes_can_be_decoded(body: bytes) -> None:
    try:
        check(body)
    except BadMessage:
        return
    msgspec.msgpack.decode(body)
    msgpack.unpackb(body)


def test_depth_and_number_of_elements_are_bounded() -> None:
    check(b"\x91" * DEPTH_MAX + b"\xc0")
    with pytest.raises(BadMessage, match="levels"):
        check(b"\x91" * (DEPTH_MAX + 1) + b"\xc0")
    check(msgpack.packb([0] * ELEMENTS_MAX))
    with pytest.raises(BadMessage, match="elements"):
        check(msgpack.packb([0] * (ELEMENTS_MAX + 1)))
    with pytest.raises(BadMessage, match="elements"):
        check(msgpack.packb([{"a": 0}] * (ELEMENTS_MAX // 2)))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\x00\xff\xff\xff" + b"\x90" * 0xFFFFFF,
        b"\xdd\x00\x01\x86\x9f" + b"\xdd\x00\x01\x86\x9f" * 1000,
    ],
    ids=["nesting", "array32", "map32", "str32", "bin32", "empty arrays", "arrays of arrays"],
)
def test_a_bomb_is_refused_at_once_and_takes_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(BadMessage):
        check(bomb)
    spent_s, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spent_s < 1.0
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xc1", "extension"),
        (b"\xd4\x01\x00", "extension"),
        (msgspec.msgpack.encode({1: 2}), "keys"),
        (b"\xa2\xff\xfe", "UTF-8"),
        (b"", "too soon"),
    ],
)
def test_what_is_no_plain_value_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(BadMessage, match=says):
        check(body)
