"""Manifests: what a large file or a folder consists of. Canonical: one content, one encoding.

    ["file", size in bytes, hashes]     32 bytes for each chunk of 1 MiB
    ["tree", [[path, CID, size in bytes, is it executable], ...]]   in the order of the paths' bytes

A path that could do harm anywhere has no place in a tree, whoever made it: see `check_paths`.
"""

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from protocols.blobs.wire import (
    CHUNK_BYTES,
    CHUNKS_MAX,
    HASH_BYTES,
    MANIFEST_MAX,
    Cid,
    CidText,
    hash_in,
    hash_of,
    is_raw,
    parse_cid,
)
from wire import codec
from wire.codec import Message
from wire.errors import BadMessage, UsageError

ENTRIES_MAX = 30_000  # files of a tree; with names of 60 bytes its manifest takes 4 MiB
PATH_MAX = 1024  # bytes of a path in a tree; Linux takes 4096 with the folder it is put in
NAME_MAX = 255  # bytes of a part of it: the bound of all file systems that matter
SIZE_MAX = CHUNKS_MAX * CHUNK_BYTES


class File(Message, frozen=True, tag="file"):
    """A file of more than one chunk."""

    size_bytes: Annotated[int, Meta(gt=CHUNK_BYTES, le=SIZE_MAX)]
    hashes: Annotated[bytes, Meta(max_length=CHUNKS_MAX * HASH_BYTES)]


class Entry(Message, frozen=True):
    """A file in a tree."""

    path: Annotated[str, Meta(min_length=1, max_length=PATH_MAX)]
    cid: CidText
    size_bytes: Annotated[int, Meta(ge=0, le=SIZE_MAX)]
    is_executable: bool


class Tree(Message, frozen=True, tag="tree"):
    """The files of a folder and all that is below it."""

    entries: Annotated[list[Entry], Meta(max_length=ENTRIES_MAX)]

    @property
    def size_bytes(self) -> int:
        """What the files take together."""
        return sum(entry.size_bytes for entry in self.entries)


_decoder: "msgspec.msgpack.Decoder[File | Tree]" = msgspec.msgpack.Decoder(File | Tree)


@dataclass(frozen=True)
class Layout:
    """The chunks of a file, whatever its size."""

    size_bytes: int
    hashes: bytes

    @property
    def count(self) -> int:
        """How many chunks there are. An empty file has none."""
        return -(-self.size_bytes // CHUNK_BYTES)

    def hash(self, index: int) -> bytes:
        """Return what a chunk must hash to."""
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def chunk_bytes(self, index: int) -> int:
        """Return the size of a chunk."""
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)

    def fits(self, index: int, data: bytes) -> bool:
        """Tell whether this is the chunk: hashes it, so do it on a thread."""
        return len(data) == self.chunk_bytes(index) and hash_of(data) == self.hash(index)

    def of_range(self, start: int, stop: int) -> range:
        """Return the chunks that hold bytes `start` to `stop`."""
        if start >= min(stop, self.size_bytes):
            return range(0)
        return range(start // CHUNK_BYTES, -(-min(stop, self.size_bytes) // CHUNK_BYTES))


def layout_of(cid: Cid, manifest: File | None, size_bytes: int) -> Layout:
    """Return the chunks of a file, which is raw if it has no manifest."""
    if manifest is not None:
        return Layout(manifest.size_bytes, manifest.hashes)
    assert is_raw(cid)
    return Layout(size_bytes, hash_in(cid))


def decode_manifest(data: bytes) -> File | Tree:
    """Parse a manifest. Raises BadMessage, also if it is not the one canonical encoding."""
    manifest = codec.decode(data, _decoder, MANIFEST_MAX)
    if isinstance(manifest, File):
        count = -(-manifest.size_bytes // CHUNK_BYTES)
        if len(manifest.hashes) != count * HASH_BYTES:
            raise BadMessage(f"{manifest.size_bytes} B in {len(manifest.hashes)} B of hashes")
    else:
        _check_tree(manifest)
    if codec.encode(manifest) != data:
        raise BadMessage("manifest is not in its canonical encoding")
    return manifest


def make_tree(entries: Iterable[Entry]) -> Tree:
    """Put entries in order. Raises UsageError for what cannot be in a tree."""
    tree = Tree(sorted(entries, key=lambda entry: entry.path.encode()))
    if len(tree.entries) > ENTRIES_MAX:
        raise UsageError(f"a tree holds up to {ENTRIES_MAX} files, not {len(tree.entries)}")
    try:
        _check_tree(tree)
        if len(codec.encode(tree)) > MANIFEST_MAX:
            raise BadMessage(f"the paths are too long together: over {MANIFEST_MAX} B")
    except BadMessage as error:
        raise UsageError(f"cannot add this folder: {error}") from error
    return tree


def _check_tree(tree: Tree) -> None:
    check_paths([entry.path for entry in tree.entries])
    for entry in tree.entries:
        try:
            cid = parse_cid(entry.cid)
        except UsageError as error:
            raise BadMessage(str(error)) from error
        if is_raw(cid) != (entry.size_bytes <= CHUNK_BYTES):
            raise BadMessage(f"{entry.path!r}: a CID of another size than {entry.size_bytes} B")


def check_paths(paths: list[str]) -> None:
    """Refuse, with BadMessage, paths that are unsafe, not in order, twice there, or that clash:
    one file where another has a folder, or names that a file system takes for the same.
    """
    if any(a.encode() >= b.encode() for a, b in itertools.pairwise(paths)):
        raise BadMessage("the paths of a tree are not in order")
    files, seen = set(paths), dict[str, str]()
    for path in paths:
        check_path(path)
        parts = path.split("/")
        for length in range(1, len(parts) + 1):
            prefix = "/".join(parts[:length])
            if length < len(parts) and prefix in files:
                raise BadMessage(f"{prefix!r} is a file and a folder")
            twin = seen.setdefault(_folded(prefix), prefix)
            if twin != prefix:
                raise BadMessage(f"{twin!r} and {prefix!r} are the same name on some systems")


def check_path(path: str) -> None:
    """Refuse, with BadMessage, a path that is not a plain relative one."""
    try:
        raw = path.encode()
    except UnicodeEncodeError as error:
        raise BadMessage(f"{path!r} is not UTF-8") from error
    if not 0 < len(raw) <= PATH_MAX:
        raise BadMessage(f"path of {len(raw)} B: {path[:64]!r}")
    for part in path.split("/"):
        if part in ("", ".", "..") or len(part.encode()) > NAME_MAX or not _is_plain(part):
            raise BadMessage(f"unsafe path {path[:128]!r}")


def _is_plain(part: str) -> bool:
    return "\\" not in part and part.isprintable()


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
