"""Entries: canonical bytes, signatures, the owner rule, time."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.clock import FUTURE_MAX_MS, ClockError, HybridClock, is_future, stamp, wall_of
from crdt.entry import REGISTER, Entry, Record, Signed, is_signed, seal, unseal
from crdt.wire import (
    FRAME_MAX,
    Push,
    answer_decoder,
    fitting,
    push_decoder,
    request_decoder,
)
from tests.sim.replicas import signer
from wire import codec
from wire.errors import BadMessage, UsageError

NOW_MS = 1_800_000_000_000
ALICE, BOB = signer(1), signer(2)


def record(
    key: str = "run/a", value: bytes | None = b"\x01", hlc: int = stamp(NOW_MS), expires_ms: int = 0
) -> Record:
    return seal(Entry(1, "runs", key, ALICE.peer, hlc, REGISTER, value, expires_ms), ALICE)


def test_what_is_sealed_unseals_to_the_same_record_and_is_signed() -> None:
    one = record()
    again = unseal(one.signed)
    assert again == one
    assert is_signed(again)


def test_msgpack_reads_an_entry_as_an_array_of_eight() -> None:
    body = record(expires_ms=7).signed.body
    assert msgpack.unpackb(body) == [
        1, "runs", "run/a", ALICE.peer, stamp(NOW_MS), 1, b"\x01", 7,
    ]  # fmt: skip


def test_a_changed_byte_or_a_strange_signature_is_noticed() -> None:
    one = record()
    for position in range(len(one.signed.body)):
        body = bytearray(one.signed.body)
        body[position] ^= 1
        try:
            changed = unseal(Signed(bytes(body), one.signed.signature))
        except BadMessage:
            continue
        assert not is_signed(changed)
    assert not is_signed(Record(one.entry, Signed(one.signed.body, bytes(64))))


def test_a_signature_for_another_domain_does_not_pass() -> None:
    one = record()
    other = Signed(one.signed.body, ALICE.sign("dht/peer/1", one.signed.body))
    assert not is_signed(unseal(other))


def test_bytes_that_are_not_canonical_are_refused() -> None:
    fields = msgpack.unpackb(record().signed.body)
    wide = msgpack.packb(fields[:1]).replace(b"\x91", b"\x98") + b"".join(
        b"\xcf" + (1).to_bytes(8) if index == 4 else msgpack.packb(field)
        for index, field in enumerate(fields[1:], 1)
    )  # the version and kind stay minimal, kind 1 takes nine bytes
    wide = wide.replace(msgpack.packb(fields[4]) + b"\x01", msgpack.packb(fields[4]) + b"\xcc\x01")
    with pytest.raises(BadMessage):
        unseal(Signed(wide, bytes(64)))
    array16 = b"\xdc\x00\x08" + record().signed.body[1:]
    with pytest.raises(BadMessage, match="canonical"):
        unseal(Signed(array16, bytes(64)))


def test_only_the_owner_writes_a_key_with_its_name_in_it() -> None:
    assert record(f"member/@{ALICE.peer}").entry.author == ALICE.peer
    for key in (f"member/@{BOB.peer}", f"run/x/@{BOB.peer}/y", f"@{BOB.peer}", "member/@"):
        with pytest.raises(UsageError, match="may not write"):
            record(key)
    assert record("mail/me@home").entry.key == "mail/me@home"


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "x" * 257])
def test_keys_are_short_printable_ascii(key: str) -> None:
    with pytest.raises(UsageError):
        record(key)


def test_the_largest_entry_fits_its_bound() -> None:
    one = seal(
        Entry(1, "n" * 32, "k" * 256, ALICE.peer, 2**63 - 1, REGISTER, bytes(2048), 2**63 - 1),
        ALICE,
    )
    assert unseal(one.signed) == one


def test_a_lease_is_live_until_it_expires_and_dead_a_minute_later() -> None:
    lease = record(expires_ms=NOW_MS + 1000)
    assert lease.is_live(NOW_MS + 999)
    assert not lease.is_live(NOW_MS + 1000)
    assert not lease.is_dead(NOW_MS + 60_999)
    assert lease.is_dead(NOW_MS + 61_000)
    tombstone = record(value=None)
    week_ms = 7 * 24 * 3600 * 1000
    assert not tombstone.is_dead(NOW_MS + week_ms - 1)
    assert tombstone.is_dead(NOW_MS + week_ms)
    assert not record().is_dead(2**60)


@given(st.binary(max_size=300))
def test_any_bytes_as_an_entry(body: bytes) -> None:
    try:
        one = unseal(Signed(body, bytes(64)))
    except BadMessage:
        return
    assert codec.encode(one.entry) == body


@given(st.binary(max_size=300))
def test_any_bytes_as_a_message(frame: bytes) -> None:
    decoders: list[msgspec.msgpack.Decoder[object]] = [
        request_decoder, answer_decoder, push_decoder,
    ]  # type: ignore[list-item]  # fmt: skip
    for decoder in decoders:
        try:
            message = codec.decode(frame, decoder, FRAME_MAX)
        except BadMessage:
            continue
        assert codec.decode(codec.encode(message), decoder, FRAME_MAX) == message


def test_messages_are_filled_up_to_a_frame_and_no_further() -> None:
    large = [record(f"k/{index}", bytes(2048)).signed for index in range(40)]
    count = fitting(large)
    assert 20 < count < 40
    assert len(codec.encode(Push(large[:count]))) <= FRAME_MAX
    assert fitting([]) == 0


def test_stamps_grow_even_when_the_clock_stands_or_goes_back() -> None:
    clock = HybridClock()
    stamps = [clock.tick(now_ms) for now_ms in (1000, 1000, 999, 1001)]
    assert stamps == sorted(set(stamps))
    assert wall_of(stamps[-1]) == 1001


def test_stamps_follow_what_was_seen_but_not_a_liar() -> None:
    clock = HybridClock()
    clock.observe(stamp(NOW_MS + 10_000), NOW_MS)
    assert clock.tick(NOW_MS) == stamp(NOW_MS + 10_000) + 1
    clock.observe(stamp(NOW_MS + FUTURE_MAX_MS), NOW_MS)
    assert wall_of(clock.tick(NOW_MS)) == NOW_MS + 10_000


def test_a_key_stamped_at_the_bound_can_still_be_overwritten_without_moving_the_clock() -> None:
    clock = HybridClock()
    liar = stamp(NOW_MS + FUTURE_MAX_MS)
    assert clock.tick(NOW_MS, after=liar) > liar
    assert wall_of(clock.tick(NOW_MS)) == NOW_MS


def test_a_clock_that_went_back_too_far_does_not_write() -> None:
    clock = HybridClock(last=stamp(NOW_MS))
    with pytest.raises(ClockError, match=r"ahead of this clock"):
        clock.tick(NOW_MS - FUTURE_MAX_MS - 1)


def test_only_stamps_beyond_the_bound_are_future() -> None:
    assert not is_future(stamp(NOW_MS + FUTURE_MAX_MS), NOW_MS)
    assert is_future(stamp(NOW_MS + FUTURE_MAX_MS + 1), NOW_MS)
