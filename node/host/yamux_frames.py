"""Yamux frames, sans-IO: bytes in, events out. Source: hashicorp/yamux, spec.md.

A frame's body is handed on piece by piece as it arrives, so that no announced length is ever held
in memory; the receive window is enforced above (node/host/yamux.py). Events are msgspec's structs,
since one is made per frame: they cost a tenth of a frozen dataclass.
"""

import struct
from collections.abc import Iterator

import msgspec

from wire.errors import BadMessage

HEADER = struct.Struct("!BBHII")  # version, type, flags, stream, length
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
NORMAL, PROTOCOL_ERROR = 0, 1  # codes of GO_AWAY
RECORD_BYTES = 65519  # plaintext of the largest Noise record: one of our frames then is one record
BODY_MAX = RECORD_BYTES - HEADER.size


class Opened(msgspec.Struct, frozen=True):
    """The other side opens a stream."""

    stream: int


class Data(msgspec.Struct, frozen=True):
    """A piece of a stream's bytes, in order: a view of what was fed."""

    stream: int
    data: memoryview


class Credit(msgspec.Struct, frozen=True):
    """The other side will take so many more bytes on a stream."""

    stream: int
    size_bytes: int


class Finished(msgspec.Struct, frozen=True):
    """No more bytes come on a stream."""

    stream: int


class Reset(msgspec.Struct, frozen=True):
    """A stream is thrown away, both directions."""

    stream: int


class Pinged(msgspec.Struct, frozen=True):
    """The other side asks for the same value back."""

    value: int


class GoneAway(msgspec.Struct, frozen=True):
    """The other side ends the connection."""

    code: int


class Nothing(msgspec.Struct, frozen=True):
    """A frame that asks for nothing; told, so that the reader can count what it costs to read."""


Event = Nothing | Opened | Data | Credit | Finished | Reset | Pinged | GoneAway


def pack(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Return a frame header; for DATA the body follows it."""
    return HEADER.pack(0, kind, flags, stream, length)


class FrameReader:
    """Cuts the byte stream of one connection into events. Raises BadMessage."""

    def __init__(self) -> None:
        self._partial = b""  # of a header; at most 11 bytes
        self._stream = 0
        self._flags = 0
        self._body_left = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take what arrived, whatever its size, and say what it means; to be read to its end."""
        view = memoryview(data)
        position, end = 0, len(data)
        if self._partial:
            position = HEADER.size - len(self._partial)
            self._partial += data[:position]
            if len(self._partial) < HEADER.size:
                return
            yield from self._header(self._partial, 0)
            self._partial = b""
        while True:
            if self._body_left:
                piece = view[position : position + self._body_left]
                if not piece:
                    break
                position += len(piece)
                self._body_left -= len(piece)
                yield Data(self._stream, piece)
                if not self._body_left and self._flags:
                    yield from self._end_of_frame()
            elif end - position >= HEADER.size:
                yield from self._header(data, position)
                position += HEADER.size
            else:
                break
        self._partial = data[position:]

    def _header(self, data: bytes, position: int) -> list[Event]:
        version, kind, flags, stream, length = HEADER.unpack_from(data, position)
        if version != 0 or kind > GO_AWAY:
            raise BadMessage(f"not a yamux frame: version {version}, type {kind}")
        if kind == PING:  # we send none ourselves, so an answer means nothing
            return [Pinged(length) if flags & SYN else Nothing()]
        if kind == GO_AWAY:
            return [GoneAway(length)]
        if stream == 0:
            raise BadMessage("yamux data for stream 0")
        events: list[Event] = [Opened(stream)] if flags & SYN else []
        self._stream, self._flags = stream, flags
        if kind == DATA and length:
            self._body_left = length
            return events
        if kind == WINDOW_UPDATE and length:
            events.append(Credit(stream, length))
        events += self._end_of_frame()
        return events or [Nothing()]

    def _end_of_frame(self) -> list[Event]:
        events: list[Event] = []
        if self._flags & FIN:
            events.append(Finished(self._stream))
        if self._flags & RST:
            events.append(Reset(self._stream))
        return events
