"""Messages of circuit relay v2, typed: protobuf with its length in front (a varint).

`/libp2p/circuit/relay/0.2.0/hop` is spoken with a relay, `…/stop` by a relay with whom it brings a
circuit to. Source: libp2p/specs, relay/circuit-v2.md. The reservation voucher is left out: it is
optional, and nobody reads one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from node.host.addresses import Address, parse_address
from wire.errors import BadMessage
from wire.frames import pack
from wire.ids import PeerId, public_key_of

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
MESSAGE_MAX = 4096  # bytes, as the specification says
ADDRESSES_MAX = 16  # of a relay, that we look at: it has a few interfaces
_PEER_BYTES = 38  # of an Ed25519 peer ID
_HEAD_MAX = 2  # bytes of a length up to MESSAGE_MAX

P = TypeVar("P", bound=Message)


class Status(IntEnum):
    """How a relay, or whom it asked, answers."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401

    def in_words(self) -> str:
        """Return what a person reads."""
        return _WORDS[self]


_WORDS = {
    Status.OK: "ok",
    Status.RESERVATION_REFUSED: "it takes no reservation",
    Status.RESOURCE_LIMIT_EXCEEDED: "it is full, or was asked too often",
    Status.PERMISSION_DENIED: "it does not relay for us",
    Status.CONNECTION_FAILED: "it cannot reach the peer",
    Status.NO_RESERVATION: "the peer has no reservation there",
    Status.MALFORMED_MESSAGE: "it says that our message is malformed",
    Status.UNEXPECTED_MESSAGE: "it says that our message was not expected",
}


@dataclass(frozen=True)
class Limits:
    """What one circuit may be used for; 0 is no limit."""

    seconds: int = 0
    bytes_each_way: int = 0


@dataclass(frozen=True)
class Reserve:
    """Take circuits for me."""


@dataclass(frozen=True)
class Connect:
    """Hop: bring me to `peer`. Stop: here is a circuit from `peer`."""

    peer: PeerId
    limits: Limits = Limits()


@dataclass(frozen=True)
class Answer:
    """The answer to each; `until` (wall clock, seconds) and `addresses` are of a reservation."""

    status: Status
    limits: Limits = Limits()
    until: int = 0
    addresses: tuple[Address, ...] = ()


class ByteStream(Protocol):
    """What receiving a message needs of a stream."""

    async def read_exactly(self, size_bytes: int) -> bytes:
        """Return that many bytes."""
        ...


async def receive(stream: ByteStream) -> bytes:
    """Read one message and not a byte more. Raises BadMessage, PeerUnreachable."""
    size = (await stream.read_exactly(1))[0]
    if size >= 0x80:
        size = size & 0x7F | (await stream.read_exactly(1))[0] << 7
    if size > MESSAGE_MAX:
        raise BadMessage(f"message of {size} B or more is over {MESSAGE_MAX} B")
    return await stream.read_exactly(size) if size else b""


class Opening:
    """The first message of a stream that goes on with other bytes, which are not looked at."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> tuple[bytes, bytes] | None:
        """Return the message and what came behind it, once it is whole. Raises BadMessage."""
        self._data += data
        length = self._data[:_HEAD_MAX]
        if len(length) < _HEAD_MAX and (not length or length[0] >= 0x80):
            return None
        head = 1 if length[0] < 0x80 else _HEAD_MAX
        size = length[0] if head == 1 else length[0] & 0x7F | length[1] << 7
        if size > MESSAGE_MAX:
            raise BadMessage(f"message of {size} B or more is over {MESSAGE_MAX} B")
        if len(self._data) < head + size:
            return None
        return bytes(self._data[head : head + size]), bytes(self._data[head + size :])


def read_hop(body: bytes) -> Reserve | Connect | Answer:
    """Parse a message of the hop protocol. Raises BadMessage."""
    message = _parse(pb.HopMessage(), body)
    if message.type == pb.HopMessage.RESERVE:
        return Reserve()
    if message.type == pb.HopMessage.CONNECT:
        return Connect(_peer(message.peer.id))
    reservation = message.reservation
    return Answer(
        _status(message.status),
        _limits(message.limit),
        reservation.expire,
        tuple(_addresses(reservation.addrs[:ADDRESSES_MAX])),
    )


def read_stop(body: bytes) -> Connect | Answer:
    """Parse a message of the stop protocol. Raises BadMessage."""
    message = _parse(pb.StopMessage(), body)
    if message.type == pb.StopMessage.CONNECT:
        return Connect(_peer(message.peer.id), _limits(message.limit))
    return Answer(_status(message.status))


def pack_hop(message: Reserve | Connect | Answer) -> bytes:
    """Return a message of the hop protocol with its length in front."""
    match message:
        case Reserve():
            made = pb.HopMessage(type=pb.HopMessage.RESERVE)
        case Connect(peer):
            made = pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.PeerId(id=_bytes(peer)))
        case Answer(status, limits, until, addresses):
            made = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.Status.ValueType(status))
            if status is Status.OK:
                made.limit.CopyFrom(_packed(limits))
            if until:
                made.reservation.expire = until
                made.reservation.addrs.extend(Multiaddr(str(each)).to_bytes() for each in addresses)
    return pack(made.SerializeToString())


def pack_stop(message: Connect | Answer) -> bytes:
    """Return a message of the stop protocol with its length in front."""
    match message:
        case Connect(peer, limits):
            made = pb.StopMessage(
                type=pb.StopMessage.CONNECT,
                peer=pb.PeerId(id=_bytes(peer)),
                limit=_packed(limits),
            )
        case Answer(status):
            made = pb.StopMessage(type=pb.StopMessage.STATUS, status=pb.Status.ValueType(status))
    return pack(made.SerializeToString())


def _parse(empty: P, body: bytes) -> P:
    if len(body) > MESSAGE_MAX:
        raise BadMessage(f"message of {len(body)} B is over {MESSAGE_MAX} B")
    try:
        empty.ParseFromString(body)
    except DecodeError as error:
        raise BadMessage(f"not a message of circuit relay: {error}") from error
    if not empty.HasField("type"):  # which all begin with
        raise BadMessage("message of circuit relay without a type")
    return empty


def _peer(data: bytes) -> PeerId:
    if len(data) != _PEER_BYTES:
        raise BadMessage(f"peer ID of {len(data)} B, not {_PEER_BYTES}")
    peer = PeerId(ID(data).to_base58())
    public_key_of(peer)  # raises BadMessage
    return peer


def _bytes(peer: PeerId) -> bytes:
    return ID.from_base58(peer).to_bytes()


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        raise BadMessage(f"unknown status {number}") from None


def _limits(limit: pb.Limit) -> Limits:
    return Limits(limit.duration, limit.data)


def _packed(limits: Limits) -> pb.Limit:
    return pb.Limit(duration=limits.seconds, data=limits.bytes_each_way)


def _addresses(found: Iterable[bytes]) -> Iterable[Address]:
    for data in found:
        try:
            yield parse_address(str(Multiaddr(data)))
        except (BadMessage, ValueError, LookupError):  # what we cannot dial: UDP, for one
            continue
