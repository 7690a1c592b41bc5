"""The protobuf wire format, as far as AutoNAT needs it, and addresses in multiaddr's binary form.

libp2p 0.8.1 brings no definitions of AutoNAT v2; its messages have a handful of fields.
Source: protobuf.dev, "Encoding"; multiformats/multiaddr, protocols table.
"""

import struct
from dataclasses import replace

from node.host.addresses import Address, parse_address
from wire import multiaddrs
from wire.errors import BadMessage

FIELDS_MAX = 256  # of one message; identify names each of a hundred protocols
Fields = list[tuple[int, int | bytes]]

_VARINT, _FIXED64, _BYTES = 0, 1, 2
_VARINT_BYTES_MAX = 10  # of 64 bits


def read_fields(message: bytes) -> Fields:
    """Return (number, value) of each field in order. Raises BadMessage."""
    found, position = Fields(), 0
    while position < len(message):
        if len(found) >= FIELDS_MAX:
            raise BadMessage(f"a protobuf message of more than {FIELDS_MAX} fields")
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            found.append((tag >> 3, value))
            continue
        if kind == _FIXED64:
            size = 8
        elif kind == _BYTES:
            size, position = _varint(message, position)
        else:
            raise BadMessage(f"a protobuf field of wire type {kind}")
        data = message[position : position + size]
        if len(data) < size:
            raise BadMessage("a protobuf field that is longer than its message")
        position += size
        found.append((tag >> 3, struct.unpack("<Q", data)[0] if kind == _FIXED64 else data))
    return found


def number_in(fields: Fields, number: int) -> int:
    """Return a number field, the last if it comes twice, 0 if not at all. Raises BadMessage."""
    values = [value for at, value in fields if at == number]
    if not values:
        return 0
    if not isinstance(values[-1], int):
        raise BadMessage(f"protobuf field {number} is not a number")
    return values[-1]


def bytes_in(fields: Fields, number: int) -> list[bytes]:
    """Return all values of a bytes field. Raises BadMessage."""
    values = [value for at, value in fields if at == number]
    found = [value for value in values if isinstance(value, bytes)]
    if len(found) != len(values):
        raise BadMessage(f"protobuf field {number} is not bytes")
    return found


def number_field(number: int, value: int) -> bytes:
    """Encode a number, also an enum; the default, 0, is left out."""
    return _pack(number << 3 | _VARINT) + _pack(value) if value else b""


def fixed_field(number: int, value: int) -> bytes:
    """Encode a fixed64."""
    return _pack(number << 3 | _FIXED64) + struct.pack("<Q", value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Encode bytes or a message."""
    return _pack(number << 3 | _BYTES) + _pack(len(value)) + value


def encode_place(address: Address) -> bytes:
    """Encode IP address and port; the peer is left out."""
    packed = multiaddrs.pack(str(replace(address, peer=None, relay=None)))
    assert packed is not None
    return packed


def decode_place(data: bytes) -> Address | None:
    """Decode IP address and TCP port; None for every other address, which we cannot dial."""
    text = multiaddrs.unpack(data)
    try:
        address = parse_address(text) if text else None
    except BadMessage:
        return None
    if address is None or address.relay or not address.network.startswith("ip"):
        return None
    return replace(address, peer=None) if address.port else None


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[position : position + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value & (2**64 - 1), position + shift + 1
    raise BadMessage("a protobuf number without end")


def _pack(value: int) -> bytes:
    head = bytearray()
    while value >= 0x80:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    head.append(value)
    return bytes(head)
