"""Messages of `/libp2p/dcutr`: two peers agree on when to connect to which addresses.

    initiator -> CONNECT(its candidates)
    responder -> CONNECT(its candidates)
    initiator -> SYNC

Each is a protobuf with its length as a varint in front. Source: libp2p/specs, relay/DCUtR.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from node.host.addresses import Address
from wire.errors import BadMessage

DCUTR = "/libp2p/dcutr"
MESSAGE_MAX = 4096  # bytes, as the specification says
CANDIDATES_MAX = 32  # a node's interfaces, what it was seen as, and 16 guesses of a port
_IP4, _IP6, _TCP = b"\x04", b"\x29", b"\x06"  # multiformats/multiaddr, protocols table
_SIZES = {_IP4: 4, _IP6: 16}  # bytes of an IP address


class _Reader(Protocol):
    async def read(self, max_bytes: int) -> bytes: ...


@dataclass(frozen=True)
class Connect:
    """Where the sender may be connected to, best first."""

    candidates: tuple[Address, ...]


@dataclass(frozen=True)
class Sync:
    """Connect when you read this."""


Message = Connect | Sync


def encode(message: Message) -> bytes:
    """Return the message with its length in front. Of many candidates, the first are sent."""
    if isinstance(message, Sync):
        body = HolePunch(type=HolePunch.SYNC).SerializeToString()
    else:
        packed = _packed(message.candidates)
        body = HolePunch(type=HolePunch.CONNECT, ObsAddrs=packed).SerializeToString()
    assert len(body) <= MESSAGE_MAX, len(body)
    length = len(body)
    head = bytes((length,)) if length < 0x80 else bytes((length & 0x7F | 0x80, length >> 7))
    return head + body


def decode(body: bytes) -> Message:
    """Parse a message without its length. Raises BadMessage.

    Addresses that are not TCP on an IP address are left out: other implementations tell all theirs.
    """
    if len(body) > MESSAGE_MAX:
        raise BadMessage(f"DCUtR message of {len(body)} B is over {MESSAGE_MAX} B")
    try:
        found = HolePunch.FromString(body)
    except DecodeError as error:
        raise BadMessage("not a DCUtR message") from error
    if found.type == HolePunch.SYNC:
        return Sync()
    candidates = (_unpacked(data) for data in found.ObsAddrs)
    known = dict.fromkeys(address for address in candidates if address is not None)
    return Connect(tuple(known)[:CANDIDATES_MAX])


async def receive(stream: _Reader) -> Message:
    """Read one message. Raises BadMessage, and what the stream raises."""
    length = (await _exactly(stream, 1))[0]
    if length >= 0x80:
        length = length & 0x7F | (await _exactly(stream, 1))[0] << 7
    if not 0 < length <= MESSAGE_MAX:
        raise BadMessage(f"DCUtR message of {length} B is over {MESSAGE_MAX} B, or empty")
    return decode(await _exactly(stream, length))


async def _exactly(stream: _Reader, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.read(size - len(data))
        if not more:
            raise BadMessage("DCUtR message cut short")
        data += more
    return data


def _packed(addresses: Iterable[Address]) -> list[bytes]:
    packed: list[bytes] = []
    for address in addresses:
        if address.relay is None and address.network in ("ip4", "ip6"):
            host = ipaddress.ip_address(address.host)
            kind = _IP4 if host.version == 4 else _IP6
            packed.append(kind + host.packed + _TCP + address.port.to_bytes(2, "big"))
    return packed[:CANDIDATES_MAX]


def _unpacked(data: bytes) -> Address | None:
    size = _SIZES.get(data[:1], 0)
    if not size or len(data) != size + 4 or data[1 + size : 2 + size] != _TCP:
        return None
    host = ipaddress.ip_address(data[1 : 1 + size])
    return Address(f"ip{host.version}", str(host), int.from_bytes(data[-2:], "big"))
