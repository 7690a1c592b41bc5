"""STUN Binding over TCP: messages, both ways. Pure; the sockets are in node/reach/stun_sockets.py.

Only what tells a caller its own address: no authentication, no ALTERNATE-SERVER, no CHANGE-REQUEST
(error 420). OTHER-ADDRESS (RFC 5780) says on which port of this host we also answer.
Source: RFC 8489, sections 5, 6, 14; RFC 5780, section 7.4.
"""

import ipaddress
import struct
from dataclasses import dataclass

from node.host.addresses import Address
from wire.errors import BadMessage

HEADER_BYTES = 20
MESSAGE_MAX = 1024  # bytes; ours have under 80, and no attribute that we read is longer
TRANSACTION_BYTES = 12

_COOKIE = 0x2112A442
_REQUEST, _SUCCESS, _ERROR = 0x0001, 0x0101, 0x0111
_MAPPED, _ERROR_CODE, _UNKNOWN, _XOR_MAPPED, _OTHER = 0x0001, 0x0009, 0x000A, 0x0020, 0x802C
_REQUIRED_BELOW = 0x8000  # attributes under it must be understood
_HEADER = struct.Struct("!HHI12s")
_FAMILIES = {"ip4": 1, "ip6": 2}
_REPORTED_MAX = 8  # unknown attributes that an error names


@dataclass(frozen=True)
class Request:
    """A Binding request. `unknown`: attributes that it wants understood, and are not."""

    transaction: bytes
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a server saw: our address, and its own second one, if it says so."""

    transaction: bytes
    mapped: Address
    other: Address | None = None


def body_bytes(header: bytes) -> int:
    """Return how many bytes follow a header. Raises BadMessage if it is none, or too many."""
    kind, length, cookie, _ = _HEADER.unpack(header)
    if kind & 0xC000 or cookie != _COOKIE or length % 4:
        raise BadMessage("not a STUN message")
    if length > MESSAGE_MAX - HEADER_BYTES:
        raise BadMessage(f"STUN message of {length} B is over {MESSAGE_MAX}")
    return int(length)


def encode_request(transaction: bytes) -> bytes:
    """Ask what our address is. transaction: 12 bytes that nobody can guess."""
    return _message(_REQUEST, transaction, b"")


def decode_request(message: bytes) -> Request:
    """Parse a request. Raises BadMessage."""
    kind, transaction, attributes = _parse(message)
    if kind != _REQUEST:
        raise BadMessage(f"STUN message of type {kind:#06x}, not a Binding request")
    unknown = dict.fromkeys(code for code, _ in attributes if code < _REQUIRED_BELOW)
    return Request(transaction, tuple(unknown)[:_REPORTED_MAX])


def encode_answer(request: Request, remote: Address, other: Address | None) -> bytes:
    """Answer a request that came from `remote`; `other`: where else we answer."""
    if request.unknown:
        reason = struct.pack("!HBB", 0, 4, 20) + b"Unknown Attribute"
        unknown = b"".join(struct.pack("!H", code) for code in request.unknown)
        body = _attribute(_ERROR_CODE, reason) + _attribute(_UNKNOWN, unknown)
        return _message(_ERROR, request.transaction, body)
    body = _attribute(_XOR_MAPPED, _encode_address(remote, _mask(request.transaction)))
    if other is not None:
        body += _attribute(_OTHER, _encode_address(other, bytes(16)))
    return _message(_SUCCESS, request.transaction, body)


def decode_answer(message: bytes, transaction: bytes) -> Answer:
    """Parse the answer to our own request. Raises BadMessage for anything else."""
    kind, answered, attributes = _parse(message)
    if kind != _SUCCESS or answered != transaction:
        raise BadMessage("not an answer to our STUN request")
    found = dict(reversed(attributes))  # the first of each kind counts
    other = _decode_address(found[_OTHER], bytes(16)) if _OTHER in found else None
    if _XOR_MAPPED in found:
        mapped = _decode_address(found[_XOR_MAPPED], _mask(transaction))
    elif _MAPPED in found:  # servers of RFC 3489
        mapped = _decode_address(found[_MAPPED], bytes(16))
    else:
        raise BadMessage("a STUN answer without an address")
    return Answer(transaction, mapped, other)


def _parse(message: bytes) -> tuple[int, bytes, list[tuple[int, bytes]]]:
    """Cut a whole message into type, transaction and attributes. Raises BadMessage."""
    if len(message) < HEADER_BYTES or len(message) != HEADER_BYTES + body_bytes(
        message[:HEADER_BYTES]
    ):
        raise BadMessage(f"a STUN message cut at {len(message)} B")
    kind, _, _, transaction = _HEADER.unpack_from(message)
    attributes, position = list[tuple[int, bytes]](), HEADER_BYTES
    while position < len(message):
        code, length = struct.unpack_from("!HH", message, position)
        end = position + 4 + length
        if end > len(message):
            raise BadMessage("a STUN attribute that is longer than its message")
        attributes.append((code, message[position + 4 : end]))
        position = end + -length % 4
    return kind, transaction, attributes


def _message(kind: int, transaction: bytes, body: bytes) -> bytes:
    return _HEADER.pack(kind, len(body), _COOKIE, transaction) + body


def _attribute(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value + bytes(-len(value) % 4)


def _mask(transaction: bytes) -> bytes:
    return struct.pack("!I", _COOKIE) + transaction


def _encode_address(address: Address, mask: bytes) -> bytes:
    packed = ipaddress.ip_address(address.host).packed
    port = struct.pack("!H", address.port)
    return bytes((0, _FAMILIES[address.network])) + _xor(port, mask) + _xor(packed, mask)


def _decode_address(value: bytes, mask: bytes) -> Address:
    size = {1: 4, 2: 16}.get(value[1]) if len(value) > 1 else None
    if size is None or len(value) != 4 + size:
        raise BadMessage(f"a STUN address of {len(value)} B")
    host = ipaddress.ip_address(_xor(value[4:], mask))
    (port,) = struct.unpack("!H", _xor(value[2:4], mask))
    if not port:
        raise BadMessage("a STUN address with port 0")
    return Address("ip4" if size == 4 else "ip6", str(host), port)


def _xor(data: bytes, mask: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, mask, strict=False))
