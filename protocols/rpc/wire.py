"""Frames of one call of /shoal/rpc/1: open, data, end, fail.

The body of a data frame is the encoded message of the method; its bound is the method's own.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.codec import Message

PROTOCOL = "/shoal/rpc/1"
OVERHEAD_BYTES = 64  # what a data frame adds to its body: tag, lengths; 16 would do
OPEN_FRAME_MAX = 256  # bytes; a method's name and a number
FAIL_TEXT_MAX = 1024  # characters of an error message that cross the wire
DEADLINE_MAX_MS = 24 * 3600 * 1000

MethodName = Annotated[str, Meta(min_length=1, max_length=64)]


class Open(Message, frozen=True, tag="open"):
    """Start a call. `deadline_ms` is the time left to the caller; 0 is none (streaming calls)."""

    method: MethodName
    deadline_ms: Annotated[int, Meta(ge=0, le=DEADLINE_MAX_MS)]


class Data(Message, frozen=True, tag="data"):
    """One message of the method, encoded."""

    body: bytes


class End(Message, frozen=True, tag="end"):
    """No more messages from this side."""


class Fail(Message, frozen=True, tag="fail"):
    """The call ends with an error of the server."""

    code: Annotated[str, Meta(min_length=1, max_length=32)]
    message: Annotated[str, Meta(max_length=FAIL_TEXT_MAX)]


Frame = Open | Data | End | Fail
decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
