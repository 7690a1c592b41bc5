"""Frames: an unsigned varint length (multiformats), then that many bytes.

Sans-IO: feed bytes in, take whole frames out. A length is checked before its bytes are kept.
"""

from wire.errors import BadMessage

_LENGTH_BYTES_MAX = 4  # varint bytes; 2**28 - 1 is above every frame limit we use


def pack(body: bytes) -> bytes:
    """Return the body with its length in front."""
    length, head = len(body), bytearray()
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


class FrameParser:
    """Cuts a byte stream into frames of at most `max_size` bytes. Raises BadMessage."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what arrived; the caller reads no more than it can hold at a time."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """Return the next whole frame, or None if more bytes are needed."""
        length, shift = 0, 0
        for position, byte in enumerate(self._buffer[:_LENGTH_BYTES_MAX]):
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                return self._cut(position + 1, length)
            shift += 7
        if len(self._buffer) >= _LENGTH_BYTES_MAX:
            raise BadMessage(f"frame length is over {_LENGTH_BYTES_MAX} bytes of varint")
        return None

    @property
    def is_empty(self) -> bool:
        """True between frames: an end of stream here loses nothing."""
        return not self._buffer

    def _cut(self, start: int, length: int) -> bytes | None:
        if length > self.max_size:
            raise BadMessage(f"frame of {length} B is over the limit of {self.max_size} B")
        end = start + length
        if len(self._buffer) < end:
            return None
        frame = bytes(memoryview(self._buffer)[start:end])
        del self._buffer[:end]
        return frame
