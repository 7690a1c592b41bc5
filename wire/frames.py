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
    """Cuts a byte stream into frames of at most `max_size` bytes, as views of what was fed.

    What arrives whole is not copied. Raises BadMessage.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._rest = bytearray()  # the beginning of a frame
        self._needed = 0  # bytes that it must have before it is worth looking again

    @property
    def is_empty(self) -> bool:
        """True between frames: an end of stream here loses nothing."""
        return not self._rest

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """Return the frames that are whole now, in order."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data, self._rest = memoryview(self._rest), bytearray()
        view, position, found = memoryview(data), 0, list[memoryview]()
        end = len(view)
        while position < end:
            length, start = self._length(view, position, end)
            stop = start + length
            if stop > end:
                self._rest += view[position:]
                self._needed = stop - position
                break
            found.append(view[start:stop])
            position = stop
        return found

    def _length(self, view: memoryview, position: int, end: int) -> tuple[int, int]:
        """Return a frame's length and where its body starts; past the end if that is to come."""
        length, shift = 0, 0
        for start in range(position, min(position + _LENGTH_BYTES_MAX, end)):
            byte = view[start]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                if length > self._max_size:
                    raise BadMessage(f"frame of {length} B is over the limit of {self._max_size} B")
                return length, start + 1
            shift += 7
        if end - position >= _LENGTH_BYTES_MAX:
            raise BadMessage(f"frame length is over {_LENGTH_BYTES_MAX} bytes of varint")
        return 0, end + 1
