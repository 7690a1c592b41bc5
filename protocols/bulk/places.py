"""Where the bytes of a transfer come from and go to: memory, or a range of a file.

Methods with an offset are called by lane threads, several at once, a piece each; they may block and
raise OSError. `close` comes once nobody is inside any of them.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from wire.errors import UsageError

PAIR = 2  # buffers that a transfer may have: what goes at once, and what that brings about


class Array(Protocol):
    """A numpy array: a buffer, which type checkers know from Python 3.12 on only."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    Readable: TypeAlias = (
        "ReadableBuffer | Array | Path | IO[Any] | FileRange | tuple[memoryview, ...]"
    )
    Writable: TypeAlias = "WriteableBuffer | Array | tuple[memoryview, ...]"


class Source(Protocol):
    """What is sent."""

    size_bytes: int
    head_bytes: int  # no piece crosses their end; 0: there is no head
    blocks: bool  # True if reading may wait for a disk

    def read(self, offset: int, spare: memoryview) -> memoryview:
        """Return as many bytes as `spare` has, from `offset` on; in there or where they are."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Target(Protocol):
    """What is received into."""

    size_bytes: int
    head_bytes: int  # as of a source
    blocks: bool  # True if writing may wait for a disk

    def place(self, offset: int, spare: memoryview) -> memoryview:
        """Return where as many bytes as `spare` has, from `offset` on, are to be put."""
        ...

    def keep(self, offset: int, data: memoryview) -> None:
        """The place that `place` has returned is filled."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Memory:
    """A buffer, as source or target: bytes go from or to where it lies."""

    blocks = False
    head_bytes = 0

    def __init__(self, buffer: "Array | ReadableBuffer", *, is_target: bool = False) -> None:
        """Raises UsageError if it is not contiguous, or a target that cannot be written."""
        try:
            self._view = memoryview(cast("ReadableBuffer", buffer))
            if self._view.nbytes == 0:
                self._view = memoryview(bytearray())  # zeros in a shape cannot be cast
            self._bytes = self._view.cast("B")
        except TypeError as error:
            raise UsageError(f"not a contiguous buffer: {error}") from error
        if is_target and self._bytes.readonly:
            raise UsageError("cannot receive into a read-only buffer")
        self.size_bytes = self._bytes.nbytes

    def read(self, offset: int, spare: memoryview) -> memoryview:
        """Return the place itself."""
        return self._bytes[offset : offset + len(spare)]

    def place(self, offset: int, spare: memoryview) -> memoryview:
        """Return the place itself."""
        return self._bytes[offset : offset + len(spare)]

    def keep(self, offset: int, data: memoryview) -> None:
        """Nothing: it is where it belongs."""

    def close(self) -> None:
        """Let go of the buffer: it may be resized and freed again."""
        self._bytes.release()
        self._view.release()


class Pair:
    """Two buffers one after the other, as one source or target. No piece may cross the edge."""

    blocks = False

    def __init__(self, head: memoryview, rest: memoryview, *, is_target: bool = False) -> None:
        """Raises UsageError as `Memory` does."""
        self._head = Memory(head, is_target=is_target)
        self._rest = Memory(rest, is_target=is_target)
        self.head_bytes = self._head.size_bytes
        self.size_bytes = self.head_bytes + self._rest.size_bytes

    def read(self, offset: int, spare: memoryview) -> memoryview:
        """Return the place itself."""
        if offset < self.head_bytes:
            return self._head.read(offset, spare)
        return self._rest.read(offset - self.head_bytes, spare)

    def place(self, offset: int, spare: memoryview) -> memoryview:
        """Return the place itself."""
        return self.read(offset, spare)

    def keep(self, offset: int, data: memoryview) -> None:
        """Nothing: it is where it belongs."""

    def close(self) -> None:
        """Let go of the buffers."""
        self._head.close()
        self._rest.close()


class FileRange:
    """A range of a file, as source or target, by a descriptor of our own: the caller may close its.

    Read and written at offsets (pread, pwrite): no seeking, and no page fault that a file cut
    short by somebody else would turn into SIGBUS.
    """

    blocks = True
    head_bytes = 0

    def __init__(self, file: "Path | IO[Any]", offset: int, size_bytes: int | None, flags: int):
        """`size_bytes` None is up to the end. Raises UsageError if it cannot be opened."""
        try:
            self._fd = os.open(file, flags) if isinstance(file, Path) else os.dup(file.fileno())
        except OSError as error:
            raise UsageError(f"cannot open {file}: {error.strerror}") from error
        status = os.fstat(self._fd)
        left = status.st_size - offset
        self.size_bytes = left if size_bytes is None else size_bytes
        self._start = offset
        if not stat.S_ISREG(status.st_mode) or offset < 0 or self.size_bytes < 0:
            os.close(self._fd)
            raise UsageError(f"no such range of a file: {file} from {offset}")

    def read(self, offset: int, spare: memoryview) -> memoryview:
        """Read into `spare`. Raises OSError also if the file has become shorter."""
        done = 0
        while done < len(spare):
            count = os.preadv(self._fd, [spare[done:]], self._start + offset + done)
            if not count:
                raise OSError("the file has become shorter")
            done += count
        return spare

    def place(self, offset: int, spare: memoryview) -> memoryview:
        """Return `spare`: `keep` writes it."""
        return spare

    def keep(self, offset: int, data: memoryview) -> None:
        """Write."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], self._start + offset + done)

    def close(self) -> None:
        """Close our descriptor."""
        os.close(self._fd)


def source_of(source: "Readable") -> Callable[[], Source]:
    """Return what opens a source, which may block."""
    if isinstance(source, FileRange):
        return lambda: source
    if isinstance(source, tuple):
        buffers = source
        return lambda: _buffers(buffers)
    if isinstance(source, Path) or hasattr(source, "fileno"):
        file: Any = source
        return lambda: FileRange(file, 0, None, os.O_RDONLY | os.O_CLOEXEC)
    buffer: Any = source
    return lambda: Memory(buffer)


def part_of(file: "Path | IO[Any]", offset: int = 0, size_bytes: int | None = None) -> FileRange:
    """Return a range of a file to send. Raises UsageError."""
    return FileRange(file, offset, size_bytes, os.O_RDONLY | os.O_CLOEXEC)


def _buffers(buffers: tuple[memoryview, ...], *, is_target: bool = False) -> Memory | Pair:
    if len(buffers) == 1:
        return Memory(buffers[0], is_target=is_target)
    if len(buffers) == PAIR:
        return Pair(*buffers, is_target=is_target)
    raise UsageError(f"{len(buffers)} buffers; a transfer has one or two")


def memory_target(buffer: "Writable") -> Memory | Pair:
    """Return one buffer or two to receive into. Raises UsageError."""
    if isinstance(buffer, tuple):
        return _buffers(buffer, is_target=True)
    return Memory(cast("WriteableBuffer", buffer), is_target=True)


def file_target(file: "Path | IO[Any]", offset: int, size_bytes: int) -> FileRange:
    """Return a range of a file to receive into; a path that is not there is made."""
    return FileRange(file, offset, size_bytes, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
