"""Wire messages of modelsync: bounds hold, and a certificate proves what it says."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync import state_wire, wire
from protocols.modelsync.shards import equal_shards
from wire.codec import CHUNK_FRAME_MAX, decode, encode
from wire.errors import BadMessage
from wire.ids import Signer

MESSAGES = [
    wire.Ready,
    wire.Heard,
    wire.Order,
    wire.Answer,
    wire.Piece,
    wire.Ask,
    state_wire.Holding,
    state_wire.StateAsk,
    state_wire.StateAnswer,
    wire.Certificate,
]
SIGNERS = sorted((Signer(bytes([n]) * 32) for n in (1, 2, 3)), key=lambda s: s.peer)


def prepare() -> wire.Prepare:
    return wire.Prepare(
        run="test",
        round=3,
        attempt=1,
        proposer=SIGNERS[0].peer,
        members=[s.peer for s in SIGNERS],
        weights=[1.0, 0.0, 2.5],
        shards=equal_shards(10, 3),
        codec="int8",
        base_root=bytes(32),
        elements=10,
    )


def certificate() -> wire.Certificate:
    unsigned = prepare().certificate(b"r" * 32)
    body = unsigned.body()
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, body) for s in SIGNERS)
    return msgspec.structs.replace(unsigned, signatures=signatures)


@pytest.mark.parametrize("type_", MESSAGES)
@given(frame=st.binary(max_size=300))
def test_any_bytes(type_: type, frame: bytes) -> None:
    decoder = msgspec.msgpack.Decoder(type_)
    try:
        message = decode(frame, decoder, 300)
    except BadMessage:
        return
    assert decode(encode(message), decoder, 4096) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.Ready("test", 1, bytes(32), 1.0, 10, "int8"),
        wire.Order(prepare()),
        wire.Order(wire.Commit(certificate())),
        wire.Order(wire.Abort([SIGNERS[0].peer])),
        wire.Answer(wire.Ack()),
        wire.Answer(wire.Nack("busy", 2, certificate())),
        wire.Answer(wire.Done([bytes(32)], bytes(64))),
        wire.Answer(wire.Failed(SIGNERS[1].peer, "silent")),
        wire.Piece("test", 1, 0, SIGNERS[0].peer, 7, b"data"),
        state_wire.Holding(
            4, bytes(32), 10, certificate(), 4, (state_wire.Past(3, bytes(32), True),)
        ),
        state_wire.StateAsk(state_wire.OpenState("test", 1, bytes(32))),
        state_wire.StateAsk(state_wire.Wants([state_wire.Want(3, bytes(32))])),
        state_wire.StateAnswer(state_wire.Opened()),
        state_wire.StateAnswer(state_wire.Page(0, [bytes(32)])),
        state_wire.StateAnswer(state_wire.Chunk(3, b"data")),
    ],
)
def test_every_message_survives_the_wire_and_an_independent_reader(message: object) -> None:
    frame = encode(message)
    assert decode(frame, msgspec.msgpack.Decoder(type(message)), CHUNK_FRAME_MAX) == message
    assert isinstance(msgpack.unpackb(frame), list)


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a/b", "a" * 65, "new\n", ".hidden"])
def test_a_run_name_cannot_be_a_path(name: str) -> None:
    frame = encode([name])
    with pytest.raises(BadMessage):
        decode(frame, msgspec.msgpack.Decoder(wire.Ask), 4096)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 2e6, 1e-4, 5e-324])
def test_a_hostile_weight_is_refused(weight: float) -> None:
    frame = encode(["test", 1, bytes(32), weight, 10, "int8"])
    with pytest.raises(BadMessage):
        decode(frame, msgspec.msgpack.Decoder(wire.Ready), 4096)


def test_a_certificate_is_signed_by_every_member() -> None:
    good = certificate()
    assert good.is_signed()
    replace = msgspec.structs.replace
    assert not replace(good, signatures=good.signatures[:2]).is_signed()
    assert not replace(good, signatures=good.signatures[::-1]).is_signed()
    assert not replace(good, result=b"x" * 32).is_signed()
    assert not replace(good, weights=[1.0, 1.0, 2.5]).is_signed()
    assert not replace(good, round=4).is_signed()
    double = replace(good, members=[good.members[0]] * 3, signatures=())
    signature = SIGNERS[0].sign(wire.CERTIFICATE_TAG, double.body())
    assert not replace(double, signatures=(signature,) * 3).is_signed()
