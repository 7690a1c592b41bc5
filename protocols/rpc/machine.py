"""One side of one call, without I/O: bytes in, events out, and the bytes to send.

    caller   Open Data* End, then it may still read
    server   Data* End? Fail?, at least one of the two

Both sides send when they like: each direction ends on its own. Whatever breaks these rules, or a
bound, is BadMessage.
"""

import re
from dataclasses import dataclass
from typing import Literal

from protocols.rpc import wire
from protocols.rpc.wire import CODE_MAX, ENVELOPE_MAX, TEXT_MAX, Data, End, Fail, Open
from wire import codec, frames
from wire.errors import BadMessage, ShoalError

_CODE = re.compile(r"[a-z0-9_]+")


class MessageTooBig(ShoalError):
    """We were about to send more than the method allows."""

    code = "too_big"
    hint = "send less at a time, or in several messages"


@dataclass(frozen=True)
class Opened:
    """The caller named its method; `deadline_ms` is 0 if it set no deadline."""

    method: str
    deadline_ms: int


@dataclass(frozen=True)
class Got:
    """One message arrived, not yet decoded."""

    body: bytes


@dataclass(frozen=True)
class Ended:
    """The other side sends no more."""


@dataclass(frozen=True)
class Failed:
    """The server gave up."""

    code: str
    message: str


Event = Opened | Got | Ended | Failed


class CallMachine:
    """The rules of one call, as one side of it follows and enforces them.

    The server starts with `frame_max` 0 and sets it once `Opened` has told the method.
    """

    def __init__(self, side: Literal["caller", "server"], *, frame_max: int = 0) -> None:
        self._side = side
        self._parser = frames.FrameParser(0)
        self.frame_max = frame_max
        self._opened = side == "caller"  # the caller gets no Open
        self._theirs_ended = self._failed = False
        self.ended = False  # our direction: after End or Fail

    @property
    def frame_max(self) -> int:
        """The largest message body, either way, in bytes."""
        return self._frame_max

    @frame_max.setter
    def frame_max(self, value: int) -> None:
        self._frame_max = value
        self._parser.max_size = value + ENVELOPE_MAX

    def open(self, method: str, deadline_ms: int) -> bytes:
        """Return the bytes that begin a call."""
        return frames.pack(codec.encode(Open(method, deadline_ms)))

    def send(self, body: bytes) -> bytes:
        """Return the bytes of one message. Raises MessageTooBig."""
        assert not self.ended, "sent after the end"
        if len(body) > self._frame_max:
            raise MessageTooBig(f"message of {len(body)} B is over the limit of {self._frame_max}")
        return frames.pack(codec.encode(Data(body)))

    def end(self) -> bytes:
        """Return the bytes that end our direction."""
        assert not self.ended, "ended twice"
        self.ended = True
        return frames.pack(codec.encode(End()))

    def fail(self, code: str, message: str) -> bytes:
        """Return the bytes that end the call with an error; fits code and text to their bounds."""
        assert self._side == "server"
        self.ended = True
        if len(code) > CODE_MAX or not _CODE.fullmatch(code):
            code = "failed"
        text = message.encode(errors="replace").decode()[:TEXT_MAX]
        return frames.pack(codec.encode(Fail(code, text)))

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream; then ask for `next_event` until it has none."""
        self._parser.feed(data)

    def next_event(self) -> Event | None:
        """Return what arrived, in order; None when more bytes are needed. Raises BadMessage."""
        frame = self._parser.next_frame()
        if frame is None:
            return None
        return self._take(codec.decode(frame, wire.decoder, self._parser.max_size))

    def feed_eof(self) -> None:
        """The other side closed its direction. Raises BadMessage if it had not ended the call."""
        if not (self._theirs_ended or self._failed) or not self._parser.is_empty:
            raise BadMessage("the stream ended before the call did")

    def _take(self, message: Open | Data | End | Fail) -> Event:
        if isinstance(message, Open):
            if self._opened:
                raise BadMessage("Open came where none belongs")
            self._opened = True
            return Opened(message.method, message.deadline_ms)
        if not self._opened:
            raise BadMessage(f"{type(message).__name__} came before Open")
        if self._failed or (self._theirs_ended and not isinstance(message, Fail)):
            raise BadMessage(f"{type(message).__name__} came after the end")
        if isinstance(message, Data):
            if len(message.body) > self._frame_max:
                size, limit = len(message.body), self._frame_max
                raise BadMessage(f"message of {size} B is over the limit of {limit} B")
            return Got(message.body)
        if isinstance(message, Fail):
            if self._side == "server":
                raise BadMessage("Fail came from the caller")
            self._failed = True
            return Failed(message.code, _printable(message.message))
        self._theirs_ended = True
        return Ended()


def _printable(text: str) -> str:
    """A peer's words go to logs and terminals: no line breaks, escapes or turned directions."""
    return "".join(character if character.isprintable() else "?" for character in text)
