"""Frames, codec, names: whatever a peer sends, the answer is a message or BadMessage."""

from typing import Annotated

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from wire import codec, frames
from wire.errors import BadMessage
from wire.ids import PeerId, Signer, peer_id_of, public_key_of, verify


class Ping(codec.Message, frozen=True, tag="ping"):
    nonce: Annotated[bytes, Meta(min_length=8, max_length=8)]
    load: Annotated[float, Meta(ge=0.0, le=1.0)]


decoder = msgspec.msgpack.Decoder(Ping)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_bad(frame: bytes) -> None:
    try:
        message = codec.decode(frame, decoder, 256)
    except BadMessage:
        return
    assert codec.decode(codec.encode(message), decoder, 256) == message


def test_an_independent_reader_understands_us() -> None:
    assert msgpack.unpackb(codec.encode(Ping(b"12345678", 0.5))) == ["ping", b"12345678", 0.5]


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        msgpack.packb(["ping", b"12345678", float("nan")]),
        msgpack.packb(["ping", b"1234567", 0.5]),
        msgpack.packb(["ping", b"12345678", 0.5, 1]),
        msgpack.packb(["pong", b"12345678", 0.5]),
    ],
)
def test_hostile_frames_are_refused(hostile: bytes) -> None:
    with pytest.raises(BadMessage):
        codec.decode(hostile, decoder, 1 << 20)


@given(st.lists(st.binary(max_size=300), max_size=10), st.integers(1, 7))
def test_frames_survive_any_cutting(bodies: list[bytes], step: int) -> None:
    data = b"".join(frames.pack(body) for body in bodies)
    parser, out = frames.FrameParser(300), list[bytes]()
    for start in range(0, len(data), step):
        out += map(bytes, parser.feed(data[start : start + step]))
    assert out == bodies
    assert parser.is_empty


def test_a_frame_over_the_limit_is_refused_before_it_arrives() -> None:
    parser = frames.FrameParser(10)
    with pytest.raises(BadMessage, match="11 B is over the limit of 10 B"):
        parser.feed(frames.pack(bytes(11))[:1])


def test_an_endless_length_is_refused() -> None:
    parser = frames.FrameParser(10)
    with pytest.raises(BadMessage):
        parser.feed(b"\xff\xff\xff\xff")


def test_a_peer_id_carries_its_key() -> None:
    signer = Signer(bytes(32))
    assert signer.peer.startswith("12D3Koo")
    assert peer_id_of(public_key_of(signer.peer)) == signer.peer
    assert verify(signer.peer, "tag/1", b"body", signer.sign("tag/1", b"body"))


@pytest.mark.parametrize(
    ("tag", "body", "flip"), [("tag/2", b"body", 0), ("tag/1", b"bod", 0), ("tag/1", b"body", 1)]
)
def test_a_signature_holds_for_its_tag_and_body_only(tag: str, body: bytes, flip: int) -> None:
    signer = Signer(bytes(32))
    signature = bytearray(signer.sign("tag/1", b"body"))
    signature[0] ^= flip
    assert not verify(signer.peer, tag, body, bytes(signature))


@given(st.text(max_size=80))
def test_any_text_is_a_peer_id_or_bad(text: str) -> None:
    try:
        key = public_key_of(PeerId(text))
    except BadMessage:
        return
    assert peer_id_of(key) == text
