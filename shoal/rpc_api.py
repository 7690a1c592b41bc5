"""Calls between users' programs: the JSON of the routes, and the frames of a link.

A link is a control connection that left HTTP (`Upgrade: shoal-link`). Each frame is 4 bytes of
length, big-endian, and one MessagePack array. A caller sends `Ask` (one value each way) or `Open`,
then `Item`s and `End`; the daemon answers with `Item`s, then `End` or `Fail`. A program that
serves sends `Serve`, hears `Ready`, then, one call after the other, hears `Call`, `Item`s, `End`
and answers with `Item`s, then `End` or `Fail`. Whoever goes away cancels what is going on.
"""

import base64
import binascii
import logging
import re
from typing import Annotated, Any, cast

import msgspec

from shoal.errors import ApiError, ClientError
from shoal.messages import api_error

log = logging.getLogger(__name__)

PROTOCOL = "shoal-link"
FRAME_MAX = 4 * 1024 * 1024 + 4096  # bytes; a value (at most 4 MiB) and its call's name
LENGTH_BYTES = 4
WORDS_MAX = 300  # characters of an error that a served function raises
BYTES_KEY = "$base64"  # how JSON writes bytes: {"$base64": "aGk="}


DEADLINE_MAX_S = 24 * 3600.0
Seconds = Annotated[float, msgspec.Meta(ge=0, le=DEADLINE_MAX_S)]


class _Json(msgspec.Struct, frozen=True):
    """Common options of replies: immutable; unknown fields of newer daemons are ignored."""


class RpcRequest(_Json, frozen=True):
    """Call a method of a peer's program with one value; bytes are {"$base64": "..."}."""

    peer: str
    method: str
    value: object = None
    timeout_s: Seconds = 30.0


class RpcAnswer(_Json, frozen=True):
    """What the method answered."""

    value: object


class RpcMethod(_Json, frozen=True):
    """A method that programs of a node serve: so many calls at once, so many now, who waits."""

    peer: str
    method: str
    places: int
    busy: int
    waiting: int


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common options of frames."""


class Ask(_Frame, frozen=True, tag="ask"):
    """A caller's first and only frame: one value there, one back."""

    peer: str
    method: str
    value: msgspec.Raw
    timeout_s: Seconds


class Open(_Frame, frozen=True, tag="open"):
    """A caller's first frame of a stream. `timeout_s` bounds all of it; null is no bound."""

    peer: str
    method: str
    timeout_s: Seconds | None


class Serve(_Frame, frozen=True, tag="serve"):
    """A program's first frame: this link answers these methods, a call at a time."""

    methods: list[str]


class Ready(_Frame, frozen=True, tag="ready"):
    """The daemon has registered the program's link."""


class Call(_Frame, frozen=True, tag="call"):
    """A peer calls; its values follow."""

    peer: str
    method: str


class Item(_Frame, frozen=True, tag="item"):
    """One value."""

    value: msgspec.Raw


class End(_Frame, frozen=True, tag="end"):
    """No more values from this side."""


class Fail(_Frame, frozen=True, tag="fail"):
    """The call failed."""

    code: str
    message: str
    hint: str = ""


Frame = Ask | Open | Serve | Ready | Call | Item | End | Fail
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()
_values: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()


class RpcError(Exception):
    """What a served function raises to answer with an error of its own; the caller sees both."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LinkLost(ClientError):
    """The daemon has hung up, or said what is no frame."""


UPGRADE = (
    "GET /v1/rpc/link HTTP/1.1\r\nHost: localhost\r\n"
    f"Connection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
).encode()


class Upgrade:
    """The daemon's answer to `UPGRADE`, as it comes. Pure: both clients feed it."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> bytes | None:
        """Add bytes; return what follows the answer once it is whole, None before.

        Raises ApiError if the daemon said no.
        """
        self._data += data
        head, blank, rest = self._data.partition(b"\r\n\r\n")
        if not blank:
            return None
        if head.startswith(b"HTTP/1.1 101 "):
            return rest
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
        if length is not None and len(rest) < int(length[1]):
            return None
        status = head[9:12]
        raise api_error(int(status) if status.isdigit() else 0, rest)


class Answering:
    """Wraps a served function: what it raises becomes the answer, `fail`. A lost link passes."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.fail: Fail | None = None

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception) or isinstance(error, LinkLost):
            return False
        trace = None if isinstance(error, RpcError) else error
        log.warning("%s failed", self._method, exc_info=trace)
        self.fail = fail_of(error)
        return True


def fail_of(error: Exception) -> Fail:
    """Say what a served function raised."""
    if isinstance(error, RpcError):
        return Fail(_sendable(error.code), _sendable(error))
    return Fail("program_error", _sendable(f"{type(error).__name__}: ", error))


def _sendable(*words: object) -> str:
    """Return an error's words as a frame can hold them, whatever they are."""
    try:
        text = "".join(map(str, words))
    except Exception as error:  # an exception's own __str__ may fail
        text = f"{words[0]!s:.80} (its message cannot be had: {type(error).__name__})"
    return text[:WORDS_MAX].encode(errors="replace").decode()


def pack(frame: Frame) -> bytes:
    """Return the bytes of a frame. Raises ClientError if it is over the limit."""
    body = _encoder.encode(frame)
    if len(body) > FRAME_MAX:
        raise ClientError(
            f"value of {len(body)} B is over the limit", hint="send files and big data as blobs"
        )
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def parse(body: bytes) -> Frame:
    """Parse one frame, without its length. Raises LinkLost."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise LinkLost(f"not a frame of {PROTOCOL}: {error}") from error


def encode_value(value: object) -> msgspec.Raw:
    """Encode what a program sends. Raises ClientError for what is no plain value."""
    try:
        return msgspec.Raw(_encoder.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ClientError(
            f"this cannot be sent: {error}",
            hint="send None, bool, int, float, str, bytes, and lists and dicts of them",
        ) from error


def decode_value(value: msgspec.Raw) -> Any:
    """Decode what a program received; the daemon has bounded it."""
    return _values.decode(value)


def to_json(value: object) -> object:
    """Return a value with its bytes written as JSON can hold them."""
    if isinstance(value, bytes):
        return {BYTES_KEY: base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [to_json(each) for each in cast(list[object], value)]
    if isinstance(value, dict):
        return {key: to_json(each) for key, each in cast(dict[str, object], value).items()}
    return value


def from_json(value: object) -> object:
    """Return a value that came as JSON with its bytes as bytes. Raises ClientError."""
    if isinstance(value, list):
        return [from_json(each) for each in cast(list[object], value)]
    if not isinstance(value, dict):
        return value
    fields = cast(dict[str, object], value)
    text = fields.get(BYTES_KEY)
    if len(fields) != 1 or not isinstance(text, str):
        return {key: from_json(each) for key, each in fields.items()}
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ClientError(f"{BYTES_KEY}: {error}") from error


def check_timeout(timeout_s: float | None) -> None:
    """Raise ClientError for a deadline that the daemon would not take."""
    if timeout_s is not None and not 0 <= timeout_s <= DEADLINE_MAX_S:
        most = f"{DEADLINE_MAX_S / 3600:.0f} h"
        raise ClientError(f"a deadline of {timeout_s:g} s: from 0 to {most}", hint="make it less")


def link_error(fail: Fail) -> ApiError:
    """Turn the end of a failed call into an exception; its HTTP status is not known."""
    return ApiError(fail.message, code=fail.code, status=0, hint=fail.hint)
