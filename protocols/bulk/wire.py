"""What bulk says on the wire: calls that agree on transfers and lanes, the hello of a lane, and the
header of a piece. How a lane is encrypted: `records.py`.
"""

import struct
from typing import Annotated

from msgspec import Meta

from wire.codec import CONTROL_FRAME_MAX, Message
from wire.errors import BadMessage, DeadlineExceeded, ShoalError
from wire.ports import Method

KEY_MAX = 64  # bytes of a rendezvous key: a hash and room to say what it is the hash of
PIECE_MAX = 512 * 1024  # bytes; measured best (128 KiB: 0.9x, 1 MiB: 0.95x: out of the L2 cache)
PIECE_MIN = 16 * 1024  # bytes; for transfers with a low rate cap, whose pieces must not stall
SIZE_MAX = 1 << 40  # bytes of one transfer
PIECES_MAX = 1 << 21  # of one transfer: `SIZE_MAX` in pieces of `PIECE_MAX`; 2 MB to book them
RANGES_MAX = 256  # in one report of what has arrived
LANES_PER_PEER_MAX = 4  # in use between two peers: what a long fat link needs to fill it

HELLO_MAGIC = b"\xb5shoal/lane/1\n\0\0"  # no libp2p connection begins with 0xb5: that is 0x13
LANE_ID_BYTES = 16
PROOF_BYTES = 32
HELLO_BYTES = len(HELLO_MAGIC) + LANE_ID_BYTES + PROOF_BYTES
SECRET_BYTES = 32

_HEADER = struct.Struct("<QQI4x")  # transfer, offset, length
HEADER_BYTES = _HEADER.size


class SizeMismatch(ShoalError):
    """The sender has another number of bytes than the receiver has room for."""

    code = "size_mismatch"


class TransferEnded(ShoalError):
    """The other side gave the transfer up."""

    code = "transfer_ended"


class Stalled(DeadlineExceeded):
    """A transfer made no progress for too long."""

    code = "stalled"


TransferId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # the sender's number for a transfer
Index = Annotated[int, Meta(ge=0, le=PIECES_MAX)]


class Offer(Message, frozen=True, tag="offer"):
    """I have what you know by this key; the first message of the sender."""

    transfer: TransferId
    key: Annotated[bytes, Meta(min_length=1, max_length=KEY_MAX)]
    size_bytes: Annotated[int, Meta(ge=0, le=SIZE_MAX)]
    piece_bytes: Annotated[int, Meta(ge=PIECE_MIN, le=PIECE_MAX)]
    head_bytes: Annotated[int, Meta(ge=0, le=SIZE_MAX)] = 0  # no piece crosses their end


class Data(Message, frozen=True, tag="data"):
    """One piece, where there is no lane for it."""

    offset: Annotated[int, Meta(ge=0, lt=SIZE_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=PIECE_MAX)]


class Accept(Message, frozen=True, tag="accept"):
    """I have room for it: send."""


class Got(Message, frozen=True, tag="got"):
    """Pieces that have arrived since the last report: [first, after the last)."""

    ranges: Annotated[list[tuple[Index, Index]], Meta(min_length=1, max_length=RANGES_MAX)]


class ToReceiver(Message, frozen=True):
    """What a sender says in the call of a transfer."""

    body: Offer | Data


class ToSender(Message, frozen=True):
    """What a receiver says in the call of a transfer."""

    body: Accept | Got


class LaneOffer(Message, frozen=True):
    """I shall dial you, and begin with this lane's hello; half of its secret."""

    lane: Annotated[bytes, Meta(min_length=LANE_ID_BYTES, max_length=LANE_ID_BYTES)]
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class LaneTaken(Message, frozen=True):
    """I shall know it; the other half of its secret."""

    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class DialMe(Message, frozen=True):
    """Have so many lanes to me: our connection is one that you dialled, so you dial them too."""

    lanes: Annotated[int, Meta(ge=1, le=LANES_PER_PEER_MAX)]


class Dialled(Message, frozen=True):
    """So many there are now."""

    lanes: Annotated[int, Meta(ge=0, le=LANES_PER_PEER_MAX)]


TRANSFER: Method[ToReceiver, ToSender] = Method(
    "bulk.transfer", ToReceiver, ToSender, PIECE_MAX + CONTROL_FRAME_MAX
)
LANE: Method[LaneOffer, LaneTaken] = Method("bulk.lane", LaneOffer, LaneTaken, at_once=8)
DIAL: Method[DialMe, Dialled] = Method("bulk.dial", DialMe, Dialled, at_once=8)


def pack_header(transfer: int, offset: int, length: int) -> bytes:
    """Return the header of a piece on a lane."""
    return _HEADER.pack(transfer, offset, length)


def unpack_header(header: bytes | bytearray | memoryview) -> tuple[int, int, int]:
    """Return transfer, offset and length. Raises BadMessage if no piece can have that length."""
    transfer, offset, length = _HEADER.unpack(header)
    if not 0 < length <= PIECE_MAX:
        raise BadMessage(f"a piece of {length} B, of at most {PIECE_MAX}")
    return transfer, offset, length


def hello(lane: bytes, proof: bytes) -> bytes:
    """Return the first bytes of a lane."""
    return HELLO_MAGIC + lane + proof


def parse_hello(data: bytes) -> tuple[bytes, bytes]:
    """Return lane id and proof. Raises BadMessage."""
    if len(data) != HELLO_BYTES or not data.startswith(HELLO_MAGIC):
        raise BadMessage("not the hello of a lane")
    lane = len(HELLO_MAGIC) + LANE_ID_BYTES
    return data[len(HELLO_MAGIC) : lane], data[lane:]
