"""Values: who may write under which name, and which of two is the newer one."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.messages import Value
from dht.records import DATA_MAX, NAME_MAX, STAMP_MAX, seal
from dht.values import (
    PUBLIC_KEY_MAX,
    VALUE_TAG,
    ValueBody,
    check_name,
    head_name,
    is_newer,
    merge,
    multi_name,
    open_value,
    pk_name,
    pk_value,
    public_key_bytes,
    seal_head,
    seal_multi,
)
from tests.sim.replicas import signer
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId

NOW_MS = 1_800_000_000_000
ALICE, BOB = signer(1), signer(2)
RSA = b"\x08\x00\x12\xa6\x02" + random.Random(1).randbytes(294)  # a key that is too long to inline


def value_of(name: bytes, data: bytes = b"data", author: PeerId = ALICE.peer) -> bytes:
    """An envelope that Alice signed, whatever it says."""
    return seal(ALICE, VALUE_TAG, ValueBody(name, author, 1, NOW_MS, data))


def test_a_head_is_its_peers_to_write() -> None:
    value = seal_head(ALICE, "models/latest", b"cid", seq=7, expires_ms=NOW_MS)
    assert value.name == f"/shoal/head/{ALICE.peer}/models/latest".encode()
    assert open_value(value.name, value.sealed) == value
    assert value == Value(value.name, ALICE.peer, 7, NOW_MS, b"cid", value.sealed)
    bobs = head_name(BOB.peer, "models/latest")
    with pytest.raises(BadMessage, match=f"not {ALICE.peer}'s to write"):
        open_value(bobs, value_of(bobs))


def test_everybody_has_one_value_under_a_multi_name() -> None:
    values = [seal_multi(it, "run", b"me", seq=1, expires_ms=NOW_MS) for it in (ALICE, BOB)]
    assert {it.name for it in values} == {b"/shoal/multi/run"}
    assert [open_value(it.name, it.sealed).author for it in values] == [ALICE.peer, BOB.peer]


def test_a_value_that_another_signed_does_not_pass() -> None:
    name = multi_name("run")
    with pytest.raises(BadMessage, match="did not sign"):
        open_value(name, value_of(name, author=BOB.peer))
    unsigned = seal_multi(ALICE, "run", b"", seq=1, expires_ms=NOW_MS).sealed[:-64] + bytes(64)
    with pytest.raises(BadMessage, match="did not sign"):
        open_value(name, unsigned)


def test_a_value_cannot_be_replayed_under_another_name() -> None:
    value = seal_multi(ALICE, "run", b"", seq=1, expires_ms=NOW_MS)
    with pytest.raises(BadMessage, match="does not fit the name"):
        open_value(multi_name("ruin"), value.sealed)


@pytest.mark.parametrize("key", [public_key_bytes(ALICE.peer), RSA])
def test_a_public_key_is_named_by_its_hash(key: bytes) -> None:
    value = pk_value(key)
    assert value == Value(pk_name(key), None, 0, STAMP_MAX, key, key)
    digest = b"\x00" + bytes((len(key),)) + key if len(key) <= 42 else b"\x12\x20"
    assert value.name.startswith(b"/pk/" + digest)
    with pytest.raises(BadMessage, match="does not fit its name"):
        open_value(value.name, key[:-1] + b"x")
    by_hash = b"/pk/\x12\x20" + hashlib.sha256(key).digest()
    assert open_value(by_hash, key).data == key


def test_pk_holds_public_keys_only() -> None:
    for data in (b"a file", b"\x08\x01\x12\x21" + bytes(32), b"\x08\x04\x12\x20" + bytes(32)):
        with pytest.raises(BadMessage, match="not a libp2p public key"):
            pk_value(data)
    with pytest.raises(BadMessage, match="over the limit"):
        pk_value(b"\x08\x00\x12" + bytes(PUBLIC_KEY_MAX))


@pytest.mark.parametrize(
    "multihash",
    [b"", b"\x00", b"\x00\x00", b"\x00\x05four", b"\x12\x20short", b"\x13\x20" + bytes(32), b"Qm"],
)
def test_a_pk_name_is_an_identity_or_sha256_multihash(multihash: bytes) -> None:
    with pytest.raises(BadMessage, match="multihash"):
        check_name(b"/pk/" + multihash)
    with pytest.raises(BadMessage, match="multihash"):
        check_name(b"/pk/\x00\x2b" + bytes(43))  # libp2p names longer keys by their hash


@pytest.mark.parametrize(
    "name", [b"", b"/", b"key", b"/ipns/x", b"/shoal/", b"/shoal/heads/x", b"/PK/x"]
)
def test_unknown_namespaces_are_refused(name: bytes) -> None:
    with pytest.raises(BadMessage, match="unknown namespace"):
        open_value(name, value_of(name or b"x"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"/shoal/multi/", "too early"),
        (b"/shoal/head/" + ALICE.peer.encode(), "too early"),
        (b"/shoal/head/" + ALICE.peer.encode() + b"/", "too early"),
        (b"/shoal/head/somebody/x", "peer ID"),
        (b"/shoal/head//x", "peer ID"),
        (b"/shoal/multi/\xff", "UTF-8"),
        (b"/shoal/multi/\x1b[2J", "control"),
        (b"/shoal/multi/" + b"n" * NAME_MAX, "at most 256"),
    ],
)
def test_names_that_do_not_fit_their_namespace_are_refused(name: bytes, why: str) -> None:
    with pytest.raises(BadMessage, match=why):
        check_name(name)


def test_what_we_write_ourselves_is_bounded_with_a_hint() -> None:
    largest = seal_multi(ALICE, "n" * 243, bytes(DATA_MAX), seq=STAMP_MAX, expires_ms=STAMP_MAX)
    assert open_value(largest.name, largest.sealed) == largest
    with pytest.raises(UsageError, match="over the limit") as error:
        seal_head(ALICE, "x", bytes(DATA_MAX + 1), seq=1, expires_ms=NOW_MS)
    assert "blob" in error.value.hint
    for name in ("", "n" * 244, "line\n"):
        with pytest.raises(UsageError):
            seal_multi(ALICE, name, b"", seq=1, expires_ms=NOW_MS)


def test_oversized_data_is_refused() -> None:
    name = multi_name("big")
    with pytest.raises(BadMessage):
        open_value(name, value_of(name, bytes(DATA_MAX + 1)))
    with pytest.raises(BadMessage, match="over the limit"):
        open_value(name, value_of(name, bytes(DATA_MAX * 2)))


def made(
    author: str, seq: int, data: bytes = b"", expires_ms: int = 1, name: bytes = b"n"
) -> Value:
    return Value(name, PeerId(author), seq, expires_ms, data, b"%d %d" % (seq, expires_ms) + data)


def test_the_larger_seq_wins_then_the_smaller_data_then_the_later_expiry() -> None:
    order = [
        made("a", 1, b"z", 9),
        made("a", 2, b"b", 5),
        made("a", 2, b"a", 1),
        made("a", 2, b"a", 2),
    ]
    for i, one in enumerate(order):
        assert [is_newer(one, other) for other in order] == [i > j for j in range(len(order))]


def test_one_value_of_each_author_and_name_is_left() -> None:
    values = [made("b", 1), made("a", 1), made("a", 2), made("b", 3, name=b"m"), made("a", 2)]
    assert merge(values) == (values[3], values[2], values[0])
    key = pk_value(RSA)
    assert merge([key, key]) == (key,)
    assert merge([]) == ()


versions = st.builds(
    made, st.sampled_from("abc"), st.integers(1, 3), st.sampled_from([b"", b"x"]), st.integers(1, 3)
)


@given(st.lists(versions), st.lists(versions), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order_or_on_repetition(
    some: list[Value], others: list[Value], rng: random.Random
) -> None:
    shuffled = [*some, *others, *some]
    rng.shuffle(shuffled)
    assert merge(shuffled) == merge([*merge(some), *merge(others)])


@given(st.binary(max_size=300), st.sampled_from([multi_name("x"), head_name(ALICE.peer, "x"), b""]))
def test_any_bytes(frame: bytes, name: bytes) -> None:
    with pytest.raises(BadMessage):
        open_value(name, frame)
    for prefix in (b"/pk/", b"/shoal/head/", b"/shoal/multi/"):
        try:
            check_name(prefix + frame)
        except BadMessage:
            continue
        assert prefix == b"/shoal/multi/" or frame.startswith((b"\0", b"\x12"))
