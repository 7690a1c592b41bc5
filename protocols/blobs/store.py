"""Objects on disk, DIR/ab/cdef…, and blobs read from them. Blocking: call it on a thread.

A file has its final name only once it is whole and synced; what is read is hashed again, so a
decayed file is taken for absent, and removed. File names come from hashes only.
"""

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from protocols.blobs.wire import CHUNK_BYTES, Manifest, decode_manifest, hash_of
from wire.errors import BadMessage, NotFound, ShoalError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SCRATCH = "tmp"  # the folder of unfinished files, emptied at the start


class DiskError(ShoalError):
    """The disk refused a write."""

    code = "disk"
    hint = "is it full?"


class BlobStore:
    """A folder of objects. Several threads may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be, and remove what a crash has left unfinished."""
        self._folder = folder
        self._scratch = folder / SCRATCH
        self._scratch.mkdir(parents=True, exist_ok=True)
        for left in self._scratch.iterdir():
            left.unlink(missing_ok=True)

    def path_of(self, hash_: bytes) -> Path:
        """Return where an object is, if it is."""
        name = hash_.hex()
        return self._folder / name[:2] / name[2:]

    def put(self, data: bytes) -> bytes:
        """Store an object and return its hash; durable but for the folder's own entry."""
        assert len(data) <= CHUNK_BYTES
        hash_ = hash_of(data)
        if not self.has(hash_, len(data)):
            self._write(self.path_of(hash_), data)
        return hash_

    def put_verified(self, hash_: bytes, size_bytes: int | None, data: bytes) -> bool:
        """Store an object if it is the one that was asked for; tells whether it was."""
        if hash_of(data) != hash_ or (size_bytes is not None and len(data) != size_bytes):
            return False
        self._write(self.path_of(hash_), data)
        return True

    def has(self, hash_: bytes, size_bytes: int) -> bool:
        """Tell whether an object of this size is there."""
        try:
            return self.path_of(hash_).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def get(self, hash_: bytes) -> bytes | None:
        """Return an object; None if it is absent or decayed."""
        path = self.path_of(hash_)
        try:
            with path.open("rb") as file:
                data = file.read(CHUNK_BYTES + 1)
        except FileNotFoundError:
            return None
        if hash_of(data) != hash_:
            path.unlink(missing_ok=True)
            return None
        return data

    def manifest(self, hash_: bytes) -> Manifest | None:
        """Return the manifest of a blob; None if it is absent. Raises NotFound if it is none."""
        data = self.get(hash_)
        try:
            return None if data is None else decode_manifest(data)
        except BadMessage as error:
            raise NotFound(f"{hash_.hex()} is not a blob: {error}") from error

    def chunk(self, hash_: bytes) -> bytes:
        """Return a chunk of a whole blob. Raises NotFound if it is absent or decayed."""
        data = self.get(hash_)
        if data is None:
            raise NotFound(f"chunk {hash_.hex()} is not here any more")
        return data

    def missing(self, manifest: Manifest) -> dict[bytes, int]:
        """Return the chunks of a blob that are not here, in order, each with its size."""
        return {
            hash_: manifest.chunk_size(index)
            for index, hash_ in enumerate(manifest.chunks)
            if not self.has(hash_, manifest.chunk_size(index))
        }

    def is_whole(self, hash_: bytes) -> bool:
        """Tell whether a hash names a blob of which nothing is missing here."""
        try:
            self._whole(hash_)
        except NotFound:
            return False
        return True

    def open(self, hash_: bytes) -> io.BufferedReader:
        """Open a whole blob for reading and seeking. Raises NotFound."""
        return io.BufferedReader(_BlobFile(self, self._whole(hash_)), buffer_size=CHUNK_BYTES)

    def export(self, hash_: bytes, path: Path) -> None:
        """Write a whole blob to one file, which appears at once and synced. Raises NotFound."""
        manifest = self._whole(hash_)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with scratch.open("wb") as file:
                for chunk in manifest.chunks:
                    file.write(self.chunk(chunk))
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def _whole(self, hash_: bytes) -> Manifest:
        manifest = self.manifest(hash_)
        if manifest is None:
            raise NotFound(f"blob {hash_.hex()} is not here")
        if missing := self.missing(manifest):
            count, total = len(missing), len(manifest.chunks)
            raise NotFound(f"blob {hash_.hex()} lacks {count} of its {total} chunks here")
        return manifest

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=self._scratch)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            Path(scratch).unlink(missing_ok=True)


class _BlobFile(io.RawIOBase):
    """The chunks of a blob, one after the other; holds one in memory."""

    def __init__(self, store: BlobStore, manifest: Manifest) -> None:
        super().__init__()
        self._store, self._manifest = store, manifest
        self._position = 0
        self._index, self._chunk = -1, b""

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
        base = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._manifest.size_bytes,
        }[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill the buffer up to the end of a chunk. Raises NotFound if the chunk decayed."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._manifest.size_bytes:
            return 0
        index, start = divmod(self._position, CHUNK_BYTES)
        if index != self._index:
            self._index, self._chunk = index, self._store.chunk(self._manifest.chunks[index])
        piece = self._chunk[start : start + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
