"""Wire messages of /shoal/rpc/1, one libp2p stream per call.

The caller sends `Open`, any number of `Data`, then `End`; the server any number of `Data`, then
`End` or `Fail` (or both, if it fails after its last message). Each is a frame (wire.frames) of one
array: ["open", method, deadline_ms], ["data", body], ["end"], ["fail", code, message]. A unary
call has one `Data` each way. Closing the stream after `End` says: the caller has left, the server
is done. Resetting it cancels.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.codec import Message

PROTOCOL = "/shoal/rpc/1"
ENVELOPE_MAX = 2048  # bytes: any Open, End or Fail, and what Data adds to its body
METHOD_MAX = 64  # characters; ours are below 30
DEADLINE_MAX_MS = 24 * 3600 * 1000  # a day; calls that take longer are streaming ones
CODE_MAX = 32  # characters of an error code; ours are below 20
TEXT_MAX = 400  # characters of an error message: a sentence, 1600 bytes of UTF-8

MethodName = Annotated[str, Meta(max_length=METHOD_MAX, pattern=r"^[a-z0-9_.-]+\Z")]
DeadlineMs = Annotated[int, Meta(ge=0, le=DEADLINE_MAX_MS)]
Code = Annotated[str, Meta(max_length=CODE_MAX, pattern=r"^[a-z0-9_]+\Z")]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]


class Open(Message, frozen=True, tag="open"):
    """Call this method. `deadline_ms` is the time left for the whole call; 0 is no deadline."""

    method: MethodName
    deadline_ms: DeadlineMs


class Data(Message, frozen=True, tag="data"):
    """One message of the method, encoded; bounded by the method's own `frame_max`."""

    body: bytes


class End(Message, frozen=True, tag="end"):
    """No more messages from this side."""


class Fail(Message, frozen=True, tag="fail"):
    """The call failed at the server."""

    code: Code
    message: Text


decoder = msgspec.msgpack.Decoder(Open | Data | End | Fail)
