"""Blobs by name: the manifest, and the messages of `blobs.get`.

An object is up to 1 MiB of bytes named by their SHA-256: a chunk, or a manifest that lists chunks.
A blob is named by the hash of its manifest (its CID), always, also if it has one chunk or none:
    [version, size in bytes, [hash of chunk, ...]], every chunk but the last of 1 MiB
The encoding is canonical: the same content has one manifest, and so one CID.
"""

import hashlib
import re
from collections import Counter
from typing import Annotated, NewType

import msgspec
from msgspec import Meta

from wire import codec
from wire.codec import CHUNK_FRAME_MAX, Message
from wire.errors import BadMessage, UsageError
from wire.ports import Method

CHUNK_BYTES = 1024 * 1024
HASH_BYTES = 32  # SHA-256
CHUNKS_MAX = 30_000  # of a blob, 29 GiB: its manifest, 34 bytes a chunk, is an object too
MANIFEST_VERSION = 1

Cid = NewType("Cid", str)  # 64 lower-case hex digits
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]

_CID = re.compile(r"[0-9a-f]{64}")


class Manifest(Message, frozen=True):
    """What a blob consists of, in order."""

    version: Annotated[int, Meta(ge=MANIFEST_VERSION, le=MANIFEST_VERSION)]
    size_bytes: Annotated[int, Meta(ge=0, le=CHUNKS_MAX * CHUNK_BYTES)]
    chunks: Annotated[list[Hash], Meta(max_length=CHUNKS_MAX)]

    def chunk_size(self, index: int) -> int:
        """Return the size of one chunk in bytes."""
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)

    def sizes(self) -> Counter[bytes]:
        """Return what each chunk contributes in bytes; one that occurs twice counts twice."""
        sizes = Counter[bytes]()
        for index, chunk in enumerate(self.chunks):
            sizes[chunk] += self.chunk_size(index)
        return sizes


class Get(Message, frozen=True):
    """Send me the object with this hash."""

    hash: Hash


class Found(Message, frozen=True, tag="found"):
    """Here it is; the receiver hashes it before believing it."""

    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class Absent(Message, frozen=True, tag="absent"):
    """Not here (any more)."""


class Answer(Message, frozen=True):
    """What becomes of one `Get`; answers come in the order of the questions."""

    object: Found | Absent


GET = Method("blobs.get", Get, Answer, frame_max=CHUNK_FRAME_MAX)

_decoder = msgspec.msgpack.Decoder(Manifest)


def parse_cid(text: str) -> bytes:
    """Return the hash that a CID names. Raises UsageError for anything but 64 hex digits."""
    if not _CID.fullmatch(text):
        raise UsageError(f"not a CID: {text[:80]!r}", hint="a CID is 64 digits of 0-9 and a-f")
    return bytes.fromhex(text)


def cid_of(hash_: bytes) -> Cid:
    """Return the CID that names a manifest's hash."""
    assert len(hash_) == HASH_BYTES
    return Cid(hash_.hex())


def hash_of(data: bytes) -> bytes:
    """Return the name of an object. 1 MiB takes 1 ms or so: do it on a thread."""
    return hashlib.sha256(data).digest()


def decode_manifest(data: bytes) -> Manifest:
    """Parse a manifest. Raises BadMessage, also if it is not the one canonical encoding."""
    manifest = codec.decode(data, _decoder, CHUNK_BYTES)
    if len(manifest.chunks) != -(-manifest.size_bytes // CHUNK_BYTES):
        count, size_bytes = len(manifest.chunks), manifest.size_bytes
        raise BadMessage(f"manifest of {size_bytes} B in {count} chunks")
    if codec.encode(manifest) != data:
        raise BadMessage("manifest is not in its canonical encoding")
    return manifest
