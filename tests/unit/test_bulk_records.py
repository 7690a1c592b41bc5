"""The encryption of lanes: only what the peer sealed, once, in order; and hellos for one use."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bulk.records import (
    RECORD_MAX,
    SEALED_HEADER_BYTES,
    TAG_BYTES,
    LaneKeys,
    Opener,
    Sealer,
    derive,
    is_proof,
)
from protocols.bulk.wire import (
    HELLO_BYTES,
    HELLO_MAGIC,
    PIECE_MAX,
    LaneOffer,
    ToReceiver,
    ToSender,
    hello,
    pack_header,
    parse_hello,
    unpack_header,
)
from wire.codec import decode, encode
from wire.errors import BadMessage
from wire.ids import PeerId

KEY = b"k" * 32
ALICE, BOB = PeerId("alice"), PeerId("bob")


def sealed(sealer: Sealer, body: bytes, offset: int = 0) -> bytes:
    return bytes(sealer.seal(7, offset, body, memoryview(bytearray(RECORD_MAX))))


def opened(opener: Opener, record: bytes) -> tuple[tuple[int, int, int], bytes]:
    header = opener.header(record[:SEALED_HEADER_BYTES])
    place = bytearray(header[2])
    opener.body(record[SEALED_HEADER_BYTES:], memoryview(place))
    return header, bytes(place)


def keys(**changed: object) -> LaneKeys:
    given: dict[str, object] = {
        "lane": b"l" * 16,
        "dialler": ALICE,
        "listener": BOB,
        "dialler_secret": b"a" * 32,
        "listener_secret": b"b" * 32,
    }
    return derive(**(given | changed))  # type: ignore[arg-type]  # pyright: ignore


def test_pieces_come_out_as_they_went_in() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    for number, body in enumerate([b"x", b"y" * PIECE_MAX, b"z" * 1000]):
        record = sealed(sealer, body, offset=number)
        assert len(record) == SEALED_HEADER_BYTES + len(body) + TAG_BYTES
        assert opened(opener, record) == ((7, number, len(body)), body)


@given(at=st.integers(0, SEALED_HEADER_BYTES + 50 + TAG_BYTES - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_noticed(at: int, bit: int) -> None:
    record = bytearray(sealed(Sealer(KEY), b"p" * 50))
    record[at] ^= 1 << bit
    with pytest.raises(BadMessage):
        opened(Opener(KEY), bytes(record))


def test_what_is_repeated_left_out_reordered_or_sent_back_is_noticed() -> None:
    sealer = Sealer(KEY)
    first, second = sealed(sealer, b"1" * 50), sealed(sealer, b"2" * 50)
    for before, bad in (([first], first), ([], second), ([first, second], first)):
        opener = Opener(KEY)
        for record in before:
            opened(opener, record)
        with pytest.raises(BadMessage):
            opened(opener, bad)
    with pytest.raises(BadMessage):  # reflected: the other direction has another key
        opened(Opener(keys().to_dialler), sealed(Sealer(keys().to_listener), b"1"))


def test_a_body_cannot_stand_for_a_header_nor_for_another_body() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    first = sealed(sealer, pack_header(7, 0, 5))
    with pytest.raises(BadMessage):
        Opener(KEY).header(first[SEALED_HEADER_BYTES:])
    second = sealed(sealer, pack_header(7, 0, 6))
    opener.header(first[:SEALED_HEADER_BYTES])
    with pytest.raises(BadMessage):
        opener.body(second[SEALED_HEADER_BYTES:], memoryview(bytearray(24)))


@pytest.mark.parametrize("length", [0, PIECE_MAX + 1, 2**32 - 1])
def test_a_length_that_no_piece_has_is_refused_before_it_is_used(length: int) -> None:
    with pytest.raises(BadMessage):
        unpack_header(pack_header(1, 0, length))


def test_keys_and_proofs_depend_on_everything_and_differ_from_each_other() -> None:
    base = keys()
    mine = {base.dialler_proof, base.listener_proof, base.to_listener, base.to_dialler}
    assert len(mine) == 4
    for changed in (
        {"lane": b"m" * 16},
        {"dialler": BOB, "listener": ALICE},
        {"dialler": PeerId("aliceb"), "listener": PeerId("ob")},
        {"dialler_secret": b"c" * 32},
        {"listener_secret": b"c" * 32},
    ):
        other = keys(**changed)
        assert mine.isdisjoint(
            {other.dialler_proof, other.listener_proof, other.to_listener, other.to_dialler}
        )
    assert is_proof(base.dialler_proof, keys().dialler_proof)
    assert not is_proof(b"", base.dialler_proof)


def test_a_hello_has_one_form() -> None:
    good = hello(b"l" * 16, b"p" * 32)
    assert len(good) == HELLO_BYTES
    assert parse_hello(good) == (b"l" * 16, b"p" * 32)
    for bad in (b"", good[:-1], good + b"x", b"\x13" + good[1:], HELLO_MAGIC):
        with pytest.raises(BadMessage):
            parse_hello(bad)


def test_a_lane_ends_before_its_key_is_worn_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.bulk.records.LANE_BYTES_MAX", 1000)
    sealer = Sealer(KEY)
    sealed(sealer, b"x" * 999)
    assert not sealer.is_spent
    sealed(sealer, b"x")
    assert sealer.is_spent


@pytest.mark.parametrize("kind", [ToReceiver, ToSender, LaneOffer])
@given(frame=st.binary(max_size=300))
def test_any_bytes(kind: type[msgspec.Struct], frame: bytes) -> None:
    decoder = msgspec.msgpack.Decoder(kind)
    try:
        message = decode(frame, decoder, 1000)
    except BadMessage:
        return
    assert decode(encode(message), decoder, 1000) == message
