"""Files of float32 tensors in the safetensors format: written atomically, read with bounds.

The format: 8 bytes, the header's length; the header, JSON: {name: {dtype, shape, data_offsets}} and
"__metadata__" with texts; then the tensors' bytes. It is read and written here, and not by the
library of that name, so that a state is streamed past its hash without a second copy in memory,
and nodes without the `torch` extra can keep checkpoints. Source: the safetensors README.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from wire.errors import ShoalError

HEADER_MAX = 16 * 1024 * 1024  # bytes; 100,000 tensors with long names
DIMENSIONS_MAX = 16
READ_BYTES = 1024 * 1024
_METADATA = "__metadata__"

Vector = NDArray[np.float32]
Size = Annotated[int, Meta(ge=0, lt=1 << 40)]


class BadFile(ShoalError):
    """A file is not what its format says, or not what its hash says."""

    code = "bad_file"


@dataclass(frozen=True)
class NamedTensor:
    """A tensor to write: `vector` holds its elements, row by row."""

    name: str
    shape: tuple[int, ...]
    vector: Vector


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[list[Size], Meta(max_length=DIMENSIONS_MAX)]
    data_offsets: tuple[Size, Size]


@dataclass(frozen=True)
class Found:
    """One tensor in a file: its elements are `elements` little-endian float32 from `offset` on."""

    path: Path
    offset: int
    elements: int
    metadata: dict[str, str]

    def pieces(self, size_bytes: int = READ_BYTES) -> Iterator[bytes]:
        """Read its bytes in pieces of this size. Raises BadFile if the file became shorter."""
        left = 4 * self.elements
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left:
                piece = file.read(size := min(left, size_bytes))
                if len(piece) != size:
                    raise BadFile(f"{self.path} ends too early")
                yield piece
                left -= len(piece)

    def read_into(self, target: Vector) -> None:
        """Copy it into a vector of its size."""
        view, at = target.data.cast("B"), 0
        for piece in self.pieces():
            view[at : at + len(piece)] = piece
            at += len(piece)

    def mapped(self) -> Vector:
        """Return it mapped from the file, which must not be written in place (we rename)."""
        return np.memmap(self.path, np.float32, "r", self.offset, (self.elements,))


def write_tensors(
    path: Path,
    tensors: Sequence[NamedTensor],
    metadata: Mapping[str, str],
    *,
    backup: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file whole or not at all. Raises OSError, and what `check` raises.

    backup: what had its name stays as `.bak`. check: looks at the file before it gets its name.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)}
    at = 0
    for tensor in tensors:
        assert math.prod(tensor.shape) == len(tensor.vector), tensor.name
        end = at + 4 * len(tensor.vector)
        header[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # so that the tensors are aligned
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.vector, dtype="<f4").data)
        file.flush()
        if check is not None:
            check(partial)
        os.fsync(file.fileno())
    if backup and path.exists():
        os.replace(path, backup_of(path))
    os.replace(partial, path)
    sync_folder(path.parent)


def backup_of(path: Path) -> Path:
    """Return the name that the file before this one has."""
    return path.with_name(path.name + ".bak")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_tensor(path: Path, name: str) -> Found:
    """Look up a float32 tensor in a file. Raises BadFile, FileNotFoundError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(HEADER_MAX, size - 8):
                raise BadFile(f"{path} has a header of {length} B in {size} B")
            entries = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.get(_METADATA, b"{}"), type=dict[str, str])
        entry = msgspec.json.decode(entries.get(name, b"null"), type=_Entry)
    except FileNotFoundError:
        raise
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadFile(
            f"{path} is not a readable safetensors file with {name!r}: {error}"
        ) from error
    start, end = entry.data_offsets
    elements, room = math.prod(entry.shape), size - 8 - length
    if entry.dtype != "F32" or not start <= end <= room or end - start != 4 * elements:
        raise BadFile(f"{path}: {name!r} is not float32 of {entry.shape} at {start} to {end} B")
    return Found(path, 8 + length + start, elements, metadata)
