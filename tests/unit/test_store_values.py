"""Values of the store between people, JSON, and the entries that hold them."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.entry import VALUE_MAX
from node.cli.store import log_row, parse
from node.cli.store_text import brief, lines, printed, terminal_text, when, word
from node.control.store_values import SMALL_JSON, small, split
from shoal.errors import ClientError
from shoal.rpc_api import to_json
from shoal.store_api import StoreItem, StoreLine, with_base64, with_bytes
from shoal.store_asks import as_json, key_path, put, space_path
from wire.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet="abc"), inner),
    max_leaves=8,
)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(to_json(value)))


def item(kind: str, value: object) -> StoreItem:
    return StoreItem("kv", "key", kind, value, "12D3", "ann", 1, 1)


@given(VALUES)
def test_a_small_value_arrives_as_it_was(value: object) -> None:
    if len(msgspec.msgpack.encode(value)) <= VALUE_MAX:
        assert split(raw(value)) == (value, None)
    found = item("register", value)
    sent = msgspec.json.encode(with_base64(found))
    assert with_bytes(msgspec.json.decode(sent, type=StoreItem)) == found


@given(VALUES)
def test_json_that_is_typed_is_taken_as_json_and_printed_as_it(value: object) -> None:
    text = json.dumps(to_json(value))
    assert parse(text) == value
    if not isinstance(value, str):
        assert parse(word(value)) == value


@pytest.mark.parametrize("text", ["hello", "0x10", "NaN", "Infinity", "-", "{", "007", "[" * 5000])
def test_what_is_no_json_is_text(text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize(
    ("value", "blob"),
    [
        ("é" * 1100, ("é" * 1100).encode()),
        (bytes(3000), bytes(3000)),
        (bytes(3_000_000), bytes(3_000_000)),
        (["x" * 100] * 50, msgspec.json.encode(["x" * 100] * 50)),
        (["x" * 100] * 500, msgspec.json.encode(["x" * 100] * 500)),
    ],
)
def test_a_large_value_is_a_blob_of_its_bytes_its_text_or_its_json(
    value: object, blob: bytes
) -> None:
    assert split(raw(value)) == (None, blob)


def test_the_largest_value_that_fits_an_entry_is_none() -> None:
    fits = "\x01" * (VALUE_MAX - 3)  # MessagePack says its length in three bytes
    assert len(raw(fits)) < SMALL_JSON
    assert split(raw(fits)) == (fits, None)
    assert split(raw(fits + "x")) == (None, (fits + "x").encode())


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 40 + b"]" * 40,
        b"[" * 5000 + b"]" * 5000,
        b'{"$base64": "?"}',
        b'"\\ud800"',
        b"1" * 30,
        b'"' + b"x" * SMALL_JSON + b'"',
    ],
)
def test_an_element_out_of_bounds_is_the_callers_fault(text: bytes) -> None:
    with pytest.raises(UsageError, match="element: "):
        small(msgspec.Raw(text), "element")


def test_each_kind_is_printed_for_the_shell() -> None:
    assert printed(item("register", "two words")) == b"two words\n"
    assert printed(item("register", b"\x00\xff")) == b"\x00\xff"
    assert printed(item("register", {"b": 1})) == b'{"b":1}\n'
    assert printed(item("counter", -3)) == b"-3\n"
    assert lines(item("set", ["a", 1, b"\x00"])) == ["a", "1", '{"$base64":"AA=="}']
    assert printed(item("multi", ["mine", None])) == b"mine\nnull\n"
    assert printed(item("map", [["ada", {"gib": 24}], ["bob", None]])) == (
        b'ada\t{"gib":24}\nbob\tnull\n'
    )
    assert brief(item("map", [["ada", 1], ["bob", 2]])) == "ada=1 | bob=2"


def test_others_values_do_not_speak_to_the_terminal() -> None:
    assert terminal_text(b"a\x1b[2Jb\nc\x9b\n".replace(b"\x9b", b"\xc2\x9b")) == "a?[2Jb\nc?"
    assert brief(item("register", "x\x1b]0;evil\x07\ny")) == "x?]0;evil??y"
    with pytest.raises(ClientError, match="3 bytes of no text"):
        terminal_text(b"\x00\xff\xfe")


def test_what_a_log_shows_of_an_entry() -> None:
    def row(kind: str, value: object, **more: Any) -> tuple[str, ...]:
        line = StoreLine("00", "12D3", "ann", "00", 1, 1, 1, kind, "k", None, value, "", 0, 0,
                         True, 100)  # fmt: skip
        return log_row(msgspec.structs.replace(line, **more), now_ms=1000)[-2:]

    assert row("register", None) == ("-", "null")
    assert row("register", None, deleted=True) == ("deleted", "-")
    assert row("register", 1, counts=False) == ("does not count", "1")
    assert row("lease", "x", expires_ms=999) == ("expired", "x")
    assert row("lease", "x", expires_ms=1001) == ("-", "x")
    assert row("counter", [5, 3, 1, 0]) == ("-", "+4 -3")
    assert row("counter", [5, 3]) == ("-", "+5 -3")  # of somebody's who leaves out what is zero
    assert row("add", None, element="e") == ("-", "e")
    assert row("add", 0, element="e") == ("-", "e=0")
    assert row("remove", None, element=[1]) == ("-", "[1]")
    assert row("register", None, cid="bagaq", blob_bytes=10) == ("-", "<blob of 10 B, bagaq>")


@pytest.mark.parametrize("value", [math.inf, [math.nan], {"a": -math.inf}, {1: 2}, {3}, object()])
def test_what_would_arrive_as_something_else_is_not_sent(value: object) -> None:
    with pytest.raises(ClientError, match="cannot hold") as caught:
        put("kv", "key", value, None, multi=False)
    assert (caught.value.code, caught.value.exit_code) == ("usage", 2)


def test_a_tuple_is_a_list_and_its_bytes_are_bytes() -> None:
    assert as_json((1, (b"hi",))) == [1, [{"$base64": "aGk="}]]


@pytest.mark.parametrize("key", ["", "two words", "k" * 257, "ü", "\ud800", "k\n"])
def test_what_is_no_key_has_no_path(key: str) -> None:
    with pytest.raises(ClientError, match="is no key"):
        key_path("kv", key)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, math.inf, math.nan, 1e9])
def test_a_lease_ends(ttl_s: float) -> None:
    with pytest.raises(ClientError, match="a lease of"):
        put("kv", "key", 1, ttl_s, multi=False)


def test_an_authors_time_is_whatever_it_says() -> None:
    assert when(0).startswith(("1970", "1969"))
    assert when(2**63) == "far ahead"


def test_any_key_and_any_name_is_one_segment_of_a_path() -> None:
    assert key_path("kv", "a/@b?c#d%20", "proof") == "/v1/store/kv/keys/a%2F%40b%3Fc%23d%2520/proof"
    path = space_path("n@p", "log", prefix="a&b", limit=3)
    assert path == "/v1/store/n%40p/log?prefix=a%26b&limit=3"
