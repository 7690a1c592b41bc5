"""Messages to bytes and back: msgspec structs in MessagePack, with their bounds in the types.

Declare a message by subclassing `Message` (array-like, immutable, nothing extra accepted).
"""

from typing import TypeVar

import msgspec

from wire.errors import BadMessage

T = TypeVar("T")

CONTROL_FRAME_MAX = 64 * 1024  # bytes; what one control message may take (facts: security 3.4)
CHUNK_FRAME_MAX = 1024 * 1024 + 4096  # bytes; a 1 MiB chunk of raw bytes and its header

_encoder = msgspec.msgpack.Encoder()


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common options of wire messages: immutable, compact, nothing extra accepted."""


def encode(message: object) -> bytes:
    """Encode one message. A field that has no MessagePack form is a bug (TypeError)."""
    return _encoder.encode(message)


def decode(
    frame: bytes | bytearray | memoryview, decoder: msgspec.msgpack.Decoder[T], max_size: int
) -> T:
    """Parse one frame. Raises BadMessage for everything a hostile peer can send; nothing else."""
    if len(frame) > max_size:
        raise BadMessage(f"frame of {len(frame)} B is over the limit of {max_size} B")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadMessage(str(error)) from error
