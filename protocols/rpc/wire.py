"""Wire messages of /shoal/rpc/1: many calls on one long-lived stream, a *line*.

The side that opened the stream is the caller of every call on it (a peer that wants to call back
opens a line of its own). Each message is a frame (wire.frames) of one array whose first elements
are its kind and the number of its call; numbers count up and are never used again on a line.

    caller   Ask, or: Open (Part* Data)* End       and at any time Credit, Left, Cancel
    server   Reply, or: (Part* Data)* (End | Fail) and at any time Credit

A message of the method is cut into pieces: any number of `Part`, then one `Data`. `Ask` is an Open
with the only message of a unary call, `Reply` the only message and the End of its answer. The call
is over when the server has said Reply, End or Fail, or the caller Cancel.

Each direction of a call has a window of its own: its sender begins with `WINDOW_BYTES` of credit,
pays the length and `PIECE_COST` for each piece, and is given more by `Credit`.

A line *moves* to a better connection, with all its calls: the caller opens a stream of `MOVE`
there and writes a random token of `TOKEN_BYTES`. When the server has said `READY`, it ends what it
says on the old stream with `Move` of this token; the server, which by then has everything, ends its
own with the same. What either side says next, it says on the new stream.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire import codec
from wire.codec import Message
from wire.ports import PUSH_MAX

PROTOCOL = "/shoal/rpc/1"
MOVE = "/shoal/rpc/move/1"
READY = b"\x01"  # of who takes such a stream; who does not know it says nothing, or refuses it
TOKEN_BYTES = 16  # of a move: nobody guesses it, and two moves never meet
METHOD_MAX = 64  # characters; ours are below 30
DEADLINE_MAX_MS = 24 * 3600 * 1000  # a day; calls that take longer are streaming ones
KEY_MAX = 32  # bytes of an idempotency key
CODE_MAX = 32  # characters of an error code; ours are below 20
TEXT_MAX = 400  # characters of an error message: a sentence, 1600 bytes of UTF-8
HEADER_MAX = 512  # bytes that a frame may add to its piece: method, key, numbers
PIECE_BYTES = 64_000  # of one frame: with its header it is one push, one record, 20 µs of cipher
FRAME_MAX = PIECE_BYTES + HEADER_MAX
WINDOW_BYTES = 256 * 1024  # that a call may send unasked: four pieces
RETRY_MAX_MS = 3600 * 1000  # an hour: who is told to wait longer asks somebody else anyway
CREDIT_MAX = 1 << 24  # in one grant; windows end far below
PIECE_COST = 64  # bytes that a piece counts beyond its body, since an empty one takes memory too
CALL_MAX = (1 << 53) - 1  # numbers of calls: at a million a second, 285 years

assert FRAME_MAX + 4 <= PUSH_MAX

CallId = Annotated[int, Meta(ge=0, le=CALL_MAX)]
MethodName = Annotated[str, Meta(max_length=METHOD_MAX, pattern=r"^[a-z0-9_.-]+\Z")]
DeadlineMs = Annotated[int, Meta(ge=0, le=DEADLINE_MAX_MS)]
Key = Annotated[bytes, Meta(max_length=KEY_MAX)]
Code = Annotated[str, Meta(max_length=CODE_MAX, pattern=r"^[a-z0-9_]+\Z")]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
RetryMs = Annotated[int, Meta(ge=0, le=RETRY_MAX_MS)]
Token = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
CreditBytes = Annotated[int, Meta(ge=1, le=CREDIT_MAX)]


class Open(Message, frozen=True, tag=0):
    """Call this method. `deadline_ms` is the time left for the whole call; 0 is no deadline.

    `key` names the call over several tries: one that was answered is not done again.
    """

    call: CallId
    method: MethodName
    deadline_ms: DeadlineMs
    key: Key = b""


class Ask(Message, frozen=True, tag=1):
    """Call this method with one message and no more."""

    call: CallId
    method: MethodName
    deadline_ms: DeadlineMs
    key: Key
    body: memoryview


class Part(Message, frozen=True, tag=2):
    """A piece of a message; more follow."""

    call: CallId
    body: memoryview


class Data(Message, frozen=True, tag=3):
    """The last piece of a message, or the whole of it."""

    call: CallId
    body: memoryview


class End(Message, frozen=True, tag=4):
    """No more messages from this side."""

    call: CallId


class Reply(Message, frozen=True, tag=5):
    """The last piece of the only message of a server, and its end."""

    call: CallId
    body: memoryview


class Fail(Message, frozen=True, tag=6):
    """The call failed at the server. `retry_ms`: after how long to try again; 0 is unknown."""

    call: CallId
    code: Code
    message: Text
    retry_ms: RetryMs = 0


class Credit(Message, frozen=True, tag=7):
    """You may send so many bytes more on this call."""

    call: CallId
    size_bytes: CreditBytes


class Left(Message, frozen=True, tag=8):
    """The caller reads no more; the server may finish its work."""

    call: CallId


class Cancel(Message, frozen=True, tag=9):
    """The caller wants nothing more of this call: stop working on it."""

    call: CallId


class Move(Message, frozen=True, tag=10):
    """The last message on this stream: its sender goes on where this token was given."""

    token: Token


ToServer = Open | Ask | Part | Data | End | Credit | Left | Cancel | Move
ToCaller = Part | Data | End | Reply | Fail | Credit | Move
Piece = type[Part] | type[Data] | type[Reply]

server_decoder = msgspec.msgpack.Decoder(ToServer)
caller_decoder = msgspec.msgpack.Decoder(ToCaller)

_EMPTY_BIN = b"\xc4\x00"  # how MessagePack writes b"", the last field of a piece
_BIN16 = b"\xc5"


def pack_piece(kind: Piece, call: int, body: bytes | memoryview) -> bytes:
    """Return the frame of a piece; its body is copied once, into the frame."""
    head = codec.encode(kind(call, _NOTHING)).removesuffix(_EMPTY_BIN)
    return _frame(head, body)


def pack_ask(call: int, method: str, deadline_ms: int, key: bytes, body: bytes) -> bytes:
    """Return the frame of an Ask."""
    head = codec.encode(Ask(call, method, deadline_ms, key, _NOTHING)).removesuffix(_EMPTY_BIN)
    return _frame(head, body)


def _frame(head: bytes, body: bytes | memoryview) -> bytes:
    size = len(body)
    length = len(head) + 3 + size
    if length < 0x4000:  # varint of two bytes, padded if need be
        prefix = bytes((length & 0x7F | 0x80, length >> 7))
    else:
        prefix = bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14))
    return b"".join((prefix, head, _BIN16, size.to_bytes(2, "big"), body))


_NOTHING = memoryview(b"")
