"""One call as one of its two sides sees it: what may come next, and what may be said. No I/O.

A call is: open, messages each way, an end each way; or a failure, which only the server says.
"""

from dataclasses import dataclass, field

from protocols.rpc.wire import OPEN_FRAME_MAX, OVERHEAD_BYTES, Data, End, Fail, Frame, Open, decoder
from wire import codec, frames
from wire.errors import BadMessage

Event = Open | Data | End | Fail


@dataclass
class CallMachine:
    """`is_server` is the side that was called. Feed it bytes; it returns whole, legal events."""

    is_server: bool
    _parser: frames.FrameParser = field(init=False)
    _opened: bool = False
    _our_end: bool = False
    _their_end: bool = False

    def __post_init__(self) -> None:
        self._parser = frames.FrameParser(OPEN_FRAME_MAX)
        self._opened = not self.is_server

    @property
    def has_ended(self) -> bool:
        """True when the other side will say nothing more."""
        return self._their_end

    @property
    def may_send(self) -> bool:
        """True while this side has not ended."""
        return not self._our_end

    def expect(self, frame_max: int) -> None:
        """Accept messages of up to `frame_max` encoded bytes from now on."""
        self._parser.max_size = frame_max + OVERHEAD_BYTES

    def feed(self, data: bytes) -> None:
        """Take bytes that arrived."""
        self._parser.feed(data)

    def next_event(self) -> Event | None:
        """Return the next event, None if more bytes are needed. Raises BadMessage."""
        frame = self._parser.next_frame()
        if frame is None:
            return None
        event: Event = codec.decode(frame, decoder, len(frame))
        self._check(event)
        return event

    def open(self, method: str, deadline_ms: int) -> bytes:
        """Say what is called."""
        return _pack(Open(method, deadline_ms))

    def data(self, body: bytes) -> bytes:
        """Say one message."""
        assert not self._our_end, "a message after the end of this side"
        return _pack(Data(body))

    def end(self) -> bytes:
        """Say that nothing more comes; once."""
        assert not self._our_end
        self._our_end = True
        return _pack(End())

    def fail(self, code: str, message: str) -> bytes:
        """End the call with an error; the server's privilege."""
        assert self.is_server
        self._our_end = True
        return _pack(Fail(code, message))

    def _check(self, event: Frame) -> None:
        match event:
            case Open():
                if self._opened:
                    raise BadMessage("a call is opened once, by the caller")
                self._opened = True
            case Fail() if self.is_server:
                raise BadMessage("a caller cannot fail a call")
            case Data() | End() | Fail():
                if not self._opened or self._their_end:
                    raise BadMessage("a frame outside of the call")
                self._their_end = not isinstance(event, Data)


def _pack(frame: Frame) -> bytes:
    return frames.pack(codec.encode(frame))
