"""The bytes of one blob on disk: a file, sparse as long as chunks are missing.

Which chunks are there is not written down anywhere: what lies in an unfinished file is hashed when
it is opened, so whatever a crash or a power cut has left of it is believed only if it is right.
Blocking: use it on a thread; several may share one file.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from protocols.blobs.machine import full
from protocols.blobs.manifest import Layout
from protocols.blobs.wire import CHUNK_BYTES
from wire.errors import NotFound, ShoalError, UsageError

COPY_BYTES = 64 * CHUNK_BYTES  # that the kernel copies at a time, so that it can be cancelled


class DiskError(ShoalError):
    """The disk refused a write."""

    code = "disk"

    @classmethod
    def of(cls, error: OSError, what: str = "a blob") -> "DiskError":
        """Say what the system said."""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room: `shoal blobs gc` throws away what is not pinned" if is_full else ""
        return cls(f"cannot write {what}: {error.strerror or error}", hint=hint)


class BlobFile:
    """The chunks of a blob. `have` is the set of those that are here."""

    def __init__(
        self,
        cid: str,
        path: Path,
        layout: Layout,
        *,
        is_whole: bool,
        is_ours: bool,
        on_decay: "Callable[[BlobFile, int], None]",
    ) -> None:
        """Open the file, making it if it is not whole. Raises OSError."""
        self.cid, self.path, self.layout, self.is_ours = cid, path, layout, is_ours
        self.users = 1
        flags = (os.O_RDWR if is_ours else os.O_RDONLY) | (0 if is_whole else os.O_CREAT)
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self._on_decay = on_decay
        self._lock = threading.Lock()
        self.have = full(layout.count)
        if not is_whole:
            self.have = sum(1 << index for index in self._right_ones())

    @property
    def is_whole(self) -> bool:
        """Tell whether all chunks are here."""
        return self.have == full(self.layout.count)

    @property
    def held_bytes(self) -> int:
        """What the chunks take."""
        return min(self.have.bit_count() * CHUNK_BYTES, self.layout.size_bytes)

    def chunk(self, index: int) -> bytes:
        """Return a chunk. Raises NotFound if it is not here, or not what it was."""
        if self.have >> index & 1:
            try:
                data = os.pread(self._fd, self.layout.chunk_bytes(index), index * CHUNK_BYTES)
            except OSError:  # a bad block
                data = b""
            if self.layout.fits(index, data):
                return data
            with self._lock:
                self.have &= ~(1 << index)
            self._on_decay(self, index)
        raise NotFound(f"chunk {index} of {self.path.name} is not here any more")

    def put(self, index: int, data: bytes) -> bool:
        """Write a chunk if it is the one that belongs there; tells whether it is."""
        if not self.layout.fits(index, data):
            return False
        if not self.have >> index & 1:
            write_at(self._fd, data, index * CHUNK_BYTES)
            with self._lock:
                self.have |= 1 << index
        return True

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        os.fdatasync(self._fd)

    def copy_to(self, path: Path, *, is_fresh: bool, is_executable: bool = False) -> Iterator[int]:
        """Write the blob to a new file, step by step; yields the bytes done.

        is_fresh: every chunk has just been hashed, so the kernel may copy. The copy is not synced:
        it can be made again.
        """
        mode = 0o777 if is_executable else 0o666
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            done = 0
            while is_fresh and done < self.layout.size_bytes:
                count = min(COPY_BYTES, self.layout.size_bytes - done)
                try:
                    copied = os.copy_file_range(self._fd, out, count, done, done)
                except OSError:
                    copied = 0  # not between these file systems: read and write
                if not copied:
                    break
                done += copied
                yield done
            for index in range(done // CHUNK_BYTES, self.layout.count):
                write_at(out, self.chunk(index), index * CHUNK_BYTES)
                yield min((index + 1) * CHUNK_BYTES, self.layout.size_bytes)
        finally:
            os.close(out)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _right_ones(self) -> Iterator[int]:
        """Hash what lies there, leaving out the holes."""
        place, end = 0, os.fstat(self._fd).st_size
        while place < end:
            try:
                place = os.lseek(self._fd, place, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                return
            index = place // CHUNK_BYTES
            if index >= self.layout.count:
                return
            data = os.pread(self._fd, self.layout.chunk_bytes(index), index * CHUNK_BYTES)
            if self.layout.fits(index, data):
                yield index
            place = (index + 1) * CHUNK_BYTES


def open_source(path: Path, *, follow: bool = True) -> tuple[int, os.stat_result]:
    """Open a file that is to be added. Raises UsageError if it cannot be, or is none."""
    try:
        nofollow = 0 if follow else os.O_NOFOLLOW
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | nofollow)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot add {str(path)!r}: {reason}") from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise UsageError(f"cannot add {str(path)!r}: it is no regular file")
    return fd, found


def read_chunk(fd: int, index: int) -> bytes:
    """Read a chunk of a file; it is shorter only at the end."""
    data = os.pread(fd, CHUNK_BYTES, index * CHUNK_BYTES)
    while 0 < len(data) < CHUNK_BYTES:  # a signal may cut a read short
        more = os.pread(fd, CHUNK_BYTES - len(data), index * CHUNK_BYTES + len(data))
        if not more:
            break
        data += more
    return data


def write_at(fd: int, data: bytes, place: int) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, place)
        view, place = view[written:], place + written


def sync_file(path: Path) -> None:
    """Return when a file is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
