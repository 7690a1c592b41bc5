"""A blob as a file object, for code that reads and seeks."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from protocols.blobs.files import BlobFile
from protocols.blobs.wire import CHUNK_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class BlobStream(io.RawIOBase):
    """The chunks of a blob, one after the other; holds one in memory, hashed as it is read."""

    def __init__(self, file: BlobFile, release: Callable[[BlobFile], None]) -> None:
        super().__init__()
        self._file, self._release = file, release
        self._position = 0
        self._index, self._chunk = -1, b""

    def close(self) -> None:
        """Let the blob go."""
        if not self.closed:
            self._release(self._file)
        super().close()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move; positions behind the end read as the end."""
        end = self._file.layout.size_bytes
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill the buffer up to the end of a chunk. Raises NotFound if the chunk decayed."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._file.layout.size_bytes:
            return 0
        index, start = divmod(self._position, CHUNK_BYTES)
        if index != self._index:
            self._index, self._chunk = index, self._file.chunk(index)
        piece = self._chunk[start : start + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
