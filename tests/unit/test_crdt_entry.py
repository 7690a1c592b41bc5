"""Entries: one form, one name, one author; and the clock that stamps them."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.clock import HLC_MAX, ClockError, HybridClock, is_future, stamp, wall_of
from crdt.entry import (
    ADD,
    BODY_MAX,
    COUNTER,
    GRANT,
    LEASE,
    MULTI,
    NO_LINK,
    REGISTER,
    REMOVE,
    REVOKE,
    TAG,
    BlobRef,
    Counted,
    Dot,
    Entry,
    Record,
    Signed,
    chain_of,
    is_signed,
    seal,
    unseal,
)
from crdt.fault import prev_of
from tests.unit.crdt_making import NOW_MS, OPEN, Chain, key_of, signer, unsigned
from wire import codec
from wire.errors import BadMessage, UsageError

ALICE, BOB = signer(1), signer(2)
DOTS = tuple(Dot(bytes((number,)) * 16, 2**32 - 1) for number in range(64))
BLOB = BlobRef("b" * 59, 5000)
VALUE = b"\x01"


def entry(**changed: object) -> Entry:
    fields: dict[str, object] = {
        "version": 1,
        "namespace": OPEN.id,
        "author": key_of(1),
        "instance": bytes(8),
        "seq": 1,
        "prev": NO_LINK,
        "hlc": NOW_MS << 16,
        "kind": REGISTER,
        "key": "run/a",
        "value": VALUE,
    }
    return Entry(**(fields | changed))  # type: ignore[arg-type]


def refused(reason: str, **changed: object) -> None:
    """Whoever writes it is told; whoever gets it refuses it, signed or not."""
    with pytest.raises(UsageError, match=reason):
        seal(entry(**changed), ALICE)
    body = codec.encode(entry(**changed))
    with pytest.raises(BadMessage, match=reason):
        unseal(Signed(body, ALICE.sign(TAG, body)))


def test_what_is_sealed_unseals_to_the_same_and_is_signed() -> None:
    one = seal(entry(), ALICE)
    again = unseal(one.signed)
    assert again.entry == one.entry == entry()
    assert (again.stamp, again.link, again.chain) == (one.stamp, one.link, one.chain)
    assert one.is_checked
    assert not again.is_checked
    assert is_signed(again)
    assert again.is_checked


def test_a_record_says_what_its_entry_says() -> None:
    one = seal(entry(kind=LEASE, expires_ms=NOW_MS + 5), ALICE)
    assert one.hlc == NOW_MS << 16
    assert one.wall_ms == NOW_MS
    assert one.stamp == one.hlc.to_bytes(8) + one.id
    assert (one.author, one.peer, one.namespace) == (key_of(1), ALICE.peer, OPEN.id)
    assert one.chain == chain_of(key_of(1), bytes(8))
    assert (one.seq, one.kind, one.key, one.expires_ms) == (1, LEASE, "run/a", NOW_MS + 5)
    assert one.size == len(one.signed.body) + 64
    assert not one.is_tombstone
    assert seal(entry(value=None), ALICE).is_tombstone


def test_msgpack_reads_an_entry_as_an_array_of_fifteen() -> None:
    one = seal(entry(kind=REMOVE, element=b"\x07", seen=DOTS[:1], value=None), ALICE)
    assert msgpack.unpackb(one.signed.body) == [
        1, OPEN.id, key_of(1), bytes(8), 1, NO_LINK, NOW_MS << 16, REMOVE, "run/a", b"\x07",
        [[bytes(16), 2**32 - 1]], None, None, 0, None,
    ]  # fmt: skip


def test_a_later_stamp_is_larger_as_bytes() -> None:
    chain = Chain()
    records = [chain.put("k", ms=ms) for ms in (0, 1, 255, 256, 70_000, 10**9)]
    assert [one.stamp for one in records] == sorted(one.stamp for one in records)


def test_a_change_of_any_byte_is_noticed() -> None:
    chain = Chain()
    chain.put("k")
    chain.seq = 300
    one = chain.remove("k", 1, [Dot(chain.id, 1)])
    for position in range(len(one.signed.body)):
        for flip in (0x01, 0x80):
            body = bytearray(one.signed.body)
            body[position] ^= flip
            try:
                changed = unseal(Signed(bytes(body), one.signed.signature))
            except BadMessage:
                continue
            assert not is_signed(changed)
    for position in range(64):
        signature = bytearray(one.signed.signature)
        signature[position] ^= 1
        assert not is_signed(unseal(Signed(one.signed.body, bytes(signature))))


def test_a_signature_for_another_domain_does_not_pass() -> None:
    body = codec.encode(entry())
    assert not is_signed(unseal(Signed(body, ALICE.sign("dht/peer/1", body))))
    assert not is_signed(unseal(Signed(body, BOB.sign(TAG, body))))
    assert is_signed(unseal(Signed(body, ALICE.sign(TAG, body))))


def test_bytes_that_are_not_canonical_are_refused() -> None:
    body = codec.encode(entry())
    assert body[0] == 0x9F
    forms = {
        "a longer head of the array": b"\xdc\x00\x0f" + body[1:],
        "a longer integer": body[:80] + b"\xcc\x01" + body[81:],
        "a longer length of bytes": body[:2] + b"\xc5\x00\x20" + body[4:],
        "bytes after the end": body + b"\xc0",
        "a field less": b"\x9e" + body[1:-1],
        "a field more": b"\xdc\x00\x10" + body[1:] + b"\xc0",
        "a float": body[:80] + b"\xca\x3f\x80\x00\x00" + body[81:],
        "text for bytes": body[:2] + b"\xd9" + body[3:],
    }
    for form, changed in forms.items():
        with pytest.raises(BadMessage):
            unseal(Signed(changed, bytes(64)))
        assert changed != body, form
    unseal(Signed(body, bytes(64)))


@pytest.mark.parametrize("seq", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, HLC_MAX])
def test_the_predecessor_is_found_in_the_bytes(seq: int) -> None:
    prev = NO_LINK if seq == 1 else bytes(range(32))
    assert prev_of(seal(entry(seq=seq, prev=prev), ALICE)) == prev


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("predecessor", {"seq": 2}),
        ("predecessor", {"prev": bytes(31) + b"\x01"}),
        ("kind 7 is unknown", {"kind": 7}),
        ("expires", {"kind": LEASE}),
        ("expires", {"expires_ms": NOW_MS}),
        ("only sets", {"element": b"\x01"}),
        ("only sets", {"kind": COUNTER, "element": b"\x01", "value": codec.encode(Counted(1, 0))}),
        ("have seen", {"seen": DOTS[:1]}),
        ("have seen", {"kind": ADD, "seen": DOTS[:1]}),
        ("both a value and a blob", {"blob": BLOB}),
        ("no value", {"kind": LEASE, "expires_ms": 1, "value": None}),
        ("no value", {"kind": COUNTER, "value": None}),
        ("no value", {"kind": GRANT, "value": None}),
        ("no value", {"kind": REVOKE, "value": None}),
        ("a blob where none belongs", {"kind": COUNTER, "value": None, "blob": BLOB}),
        ("a blob where none belongs", {"kind": GRANT, "value": None, "blob": BLOB}),
        ("a remove names", {"kind": REMOVE, "seen": DOTS[:1]}),
        ("a remove names", {"kind": REMOVE, "value": None}),
        ("a blob where none belongs", {"kind": REMOVE, "value": None, "blob": BLOB}),
        ("below its base", {"kind": COUNTER, "value": codec.encode(Counted(1, 0, 2, 0))}),
        ("below its base", {"kind": COUNTER, "value": codec.encode(Counted(0, 1, 0, 2))}),
        ("may not write", {"key": f"member/@{BOB.peer}"}),
        ("may not write", {"key": f"@{BOB.peer}"}),
        ("may not write", {"key": f"run/@{ALICE.peer}/@{BOB.peer}/y"}),
    ],
)
def test_an_entry_has_the_shape_of_its_kind(reason: str, changed: dict[str, object]) -> None:
    refused(reason, **changed)


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x92\x01\xff", b"\x94\x01\x00\x00\xcb"])
def test_a_counter_holds_counts(value: bytes) -> None:
    body = codec.encode(entry(kind=COUNTER, value=value))
    with pytest.raises(BadMessage):
        unseal(Signed(body, bytes(64)))


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"namespace": bytes(31)},
        {"author": bytes(33)},
        {"instance": bytes(7)},
        {"seq": 0},
        {"seq": -1},
        {"hlc": -1},
        {"hlc": 2**63},
        {"kind": 0},
        {"kind": 18},
        {"key": ""},
        {"key": "a b"},
        {"key": "ä"},
        {"key": "a\n"},
        {"key": "x" * 257},
        {"kind": ADD, "element": bytes(257)},
        {"kind": MULTI, "seen": (*DOTS, DOTS[0])},
        {"value": bytes(2049)},
        {"value": None, "blob": BlobRef("", 1)},
        {"value": None, "blob": BlobRef("b/c", 1)},
        {"value": None, "blob": BlobRef("b", -1)},
        {"expires_ms": -1, "kind": LEASE},
        {"grant": bytes(31)},
    ],
)
def test_every_field_has_its_bounds(changed: dict[str, object]) -> None:
    body = codec.encode(entry(**changed))
    with pytest.raises(BadMessage):
        unseal(Signed(body, ALICE.sign(TAG, body)))


def test_the_author_writes_its_own_keys_and_keys_of_nobody() -> None:
    for key in (f"member/@{ALICE.peer}", f"@{ALICE.peer}/x", "mail/me@home", "a@b/c"):
        assert seal(entry(key=key), ALICE).key == key


def test_the_largest_entry_of_each_kind_fits() -> None:
    largest: dict[str, object] = {
        "seq": HLC_MAX, "prev": bytes(31) + b"\x01", "hlc": HLC_MAX, "key": "k" * 256,
        "grant": bytes(32),
    }  # fmt: skip
    multi = entry(**largest, kind=MULTI, value=bytes(2048), seen=DOTS)
    added = entry(**largest, kind=ADD, value=bytes(2048), element=bytes(256))
    for one in (multi, added):
        record = seal(one, ALICE)
        assert len(record.signed.body) <= BODY_MAX
        assert unseal(record.signed).entry == one


@given(st.binary(max_size=300))
def test_any_bytes_as_an_entry(body: bytes) -> None:
    try:
        one = unseal(Signed(body, bytes(64)))
    except BadMessage:
        return
    assert codec.encode(one.entry) == body


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_an_entry_with_any_bytes_put_in(position: int, inserted: bytes) -> None:
    one = Chain().add("k", "element", "value")
    body = one.signed.body[:position] + inserted + one.signed.body[position:]
    try:
        changed = unseal(Signed(body, one.signed.signature))
    except BadMessage:
        return
    assert not is_signed(changed)


def test_records_are_cheap_to_hold() -> None:
    one, two = Chain().put("a"), unsigned(Chain().put("a"))
    assert one.author is two.author
    assert one.namespace is two.namespace
    assert not hasattr(one, "__dict__")
    assert issubclass(Record, msgspec.Struct)


def test_stamps_grow_even_when_the_clock_stands_or_goes_back() -> None:
    clock = HybridClock()
    stamps = [clock.tick(now_ms) for now_ms in (1000, 1000, 999, 1001)]
    assert stamps == sorted(set(stamps))
    assert wall_of(stamps[-1]) == 1001


def test_stamps_follow_what_was_seen_but_not_a_liar() -> None:
    clock = HybridClock(max_skew_ms=20_000)
    clock.observe(stamp(NOW_MS + 10_000), NOW_MS)
    assert clock.tick(NOW_MS) == stamp(NOW_MS + 10_000) + 1
    clock.observe(stamp(NOW_MS + 20_000), NOW_MS)
    assert wall_of(clock.tick(NOW_MS)) == NOW_MS + 10_000


def test_a_key_stamped_at_the_bound_can_be_overwritten_without_moving_the_clock() -> None:
    clock = HybridClock()
    liar = stamp(NOW_MS + clock.max_skew_ms)
    assert clock.tick(NOW_MS, after=liar) > liar
    assert wall_of(clock.tick(NOW_MS)) == NOW_MS


def test_a_clock_that_went_back_too_far_does_not_write() -> None:
    clock = HybridClock(last=stamp(NOW_MS))
    with pytest.raises(ClockError, match=r"ahead of this clock"):
        clock.tick(NOW_MS - clock.max_skew_ms - 1)


def test_only_stamps_beyond_the_bound_are_future() -> None:
    assert not is_future(stamp(NOW_MS + 30_000), NOW_MS)
    assert is_future(stamp(NOW_MS + 30_001), NOW_MS)
    assert is_future(stamp(NOW_MS + 1001), NOW_MS, 1000)
