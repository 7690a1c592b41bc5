"""Messages of AutoNAT v2, protobuf with a varint length in front.

Source: libp2p/specs, autonat/autonat-v2.md, "RPC Messages".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.host.addresses import Address
from node.reach.fields import (
    bytes_field,
    bytes_in,
    decode_place,
    encode_place,
    fixed_field,
    number_field,
    number_in,
    read_fields,
)
from wire.errors import BadMessage
from wire.frames import pack

DIAL_REQUEST = "/libp2p/autonat/2/dial-request"
DIAL_BACK = "/libp2p/autonat/2/dial-back"

MESSAGE_MAX = 4200  # bytes: 4,096 of dial data and its headers
BACK_MAX = 64  # bytes; a nonce and its header are 9
DATA_BYTES = 4096  # in one message

OK = 200
REJECTED, REFUSED = 100, 101  # the request: over a limit; no address that we dial
DIAL_ERROR, DIAL_BACK_ERROR = 100, 101  # the dial: not connected; nonce not delivered

_REQUEST, _RESPONSE, _DATA_REQUEST, _DATA = 1, 2, 3, 4  # of the outer message


@dataclass(frozen=True)
class DialRequest:
    """Dial the first of these that you can (None: of a kind that we do not know)."""

    places: tuple[Address | None, ...]
    nonce: int


@dataclass(frozen=True)
class DialResponse:
    """What became of it."""

    status: int
    index: int = 0
    dial_status: int = 0


@dataclass(frozen=True)
class DataRequest:
    """Send so many bytes first, since that address is not where I see you."""

    index: int
    size_bytes: int


@dataclass(frozen=True)
class Data:
    """Some of them."""

    size_bytes: int


Message = DialRequest | DialResponse | DataRequest | Data


def encode_request(places: Sequence[Address], nonce: int) -> bytes:
    """Ask to be dialled."""
    body = b"".join(bytes_field(1, encode_place(place)) for place in places)
    return pack(bytes_field(_REQUEST, body + fixed_field(2, nonce)))


def encode_response(status: int, index: int = 0, dial_status: int = 0) -> bytes:
    """Tell what became of it."""
    body = number_field(1, status) + number_field(2, index) + number_field(3, dial_status)
    return pack(bytes_field(_RESPONSE, body))


def encode_data_request(index: int, size_bytes: int) -> bytes:
    """Ask for bytes."""
    return pack(bytes_field(_DATA_REQUEST, number_field(1, index) + number_field(2, size_bytes)))


def encode_data(size_bytes: int) -> bytes:
    """Send bytes."""
    return pack(bytes_field(_DATA, bytes_field(1, bytes(size_bytes))))


def encode_back(nonce: int) -> bytes:
    """Deliver a nonce, on a stream of its own. Its answer, OK, is an empty message."""
    return pack(fixed_field(1, nonce))


def decode(frame: bytes) -> Message:
    """Parse a message of a dial-request stream. Raises BadMessage."""
    for number, body in read_fields(frame):
        if not isinstance(body, bytes):
            raise BadMessage("an AutoNAT message that is a number")
        fields = read_fields(body)
        if number == _REQUEST:
            places = tuple(decode_place(data) for data in bytes_in(fields, 1))
            return DialRequest(places, number_in(fields, 2))
        if number == _RESPONSE:
            numbers = (number_in(fields, at) for at in (1, 2, 3))
            return DialResponse(*numbers)
        if number == _DATA_REQUEST:
            return DataRequest(number_in(fields, 1), number_in(fields, 2))
        if number == _DATA:
            return Data(sum(len(data) for data in bytes_in(fields, 1)))
    raise BadMessage("an AutoNAT message without content")


def decode_back(frame: bytes) -> int:
    """Parse a nonce. Raises BadMessage."""
    return number_in(read_fields(frame), 1)
