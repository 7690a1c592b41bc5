"""Names of blobs, and the messages about them.

A blob is named by its CID, a CIDv1 in base32 (https://github.com/multiformats/cid) with a SHA-256:
    up to 1 MiB       codec raw: the hash of the bytes themselves (an IPFS raw block has this name)
    more, or a tree   codec msgpack: the hash of a manifest, see manifest.py
So the same content has one name, and whoever holds the name can check all that arrives.
"""

import base64
import hashlib
import re
from typing import Annotated, NewType

from msgspec import Meta

from wire.codec import CHUNK_FRAME_MAX, CONTROL_FRAME_MAX, Message
from wire.errors import UsageError
from wire.ports import Method

CHUNK_BYTES = 1024 * 1024
HASH_BYTES = 32  # SHA-256
CHUNKS_MAX = 1 << 17  # of a blob, 128 GiB: its manifest takes 4 MiB
MANIFEST_MAX = CHUNKS_MAX * HASH_BYTES + 64  # bytes; a tree of 30 000 files fits too
GET_MAX = 16  # chunks of one request: more save nothing, and take long to cancel
QUEUE_MAX = 64  # chunks that one stream may have asked for and not got: 64 MiB, 0.1 s at 640 MB/s
GAINED_MAX = 1024  # news of one message
AT_ONCE = 16  # streams of one peer: a tree is fetched a few files at a time
OBJECTS_AT_ONCE = 32  # small answers of one peer

Cid = NewType("Cid", str)

_RAW = b"\x01\x55\x12\x20"  # version 1, raw, sha2-256 of 32 bytes
_MANIFEST = b"\x01\x81\x04\x12\x20"  # version 1, msgpack, sha2-256 of 32 bytes
CID_PATTERN = r"^b[a-z2-7]{58}([a-z2-7]{2})?\Z"
_CID = re.compile(CID_PATTERN)

CidText = Annotated[str, Meta(max_length=61, pattern=CID_PATTERN)]
Index = Annotated[int, Meta(ge=0, lt=CHUNKS_MAX)]


class Who(Message, frozen=True):
    """Have you got this blob?"""

    cid: CidText


class Here(Message, frozen=True):
    """So many of its chunks, and whether more are coming."""

    chunks: Annotated[int, Meta(ge=0, le=CHUNKS_MAX)]
    is_fetching: bool


class Object(Message, frozen=True):
    """What a CID names: the bytes of a small blob, or a manifest."""

    data: Annotated[bytes, Meta(max_length=MANIFEST_MAX)]


class Want(Message, frozen=True, tag="want"):
    """The first word of a stream: it is about this blob."""

    cid: CidText


class Get(Message, frozen=True, tag="get"):
    """Send me these chunks."""

    first: Index
    count: Annotated[int, Meta(ge=1, le=GET_MAX)]


class Cancel(Message, frozen=True, tag="cancel"):
    """This chunk has come from somebody else: leave it out, if you have not sent it yet."""

    index: Index


class Ask(Message, frozen=True):
    """What the fetcher says."""

    what: Want | Get | Cancel


class Have(Message, frozen=True, tag="have"):
    """The answer to `Want`: one bit a chunk, little-endian; empty is all of them."""

    bits: Annotated[bytes, Meta(max_length=CHUNKS_MAX // 8)]


class Gained(Message, frozen=True, tag="gained"):
    """These chunks have arrived here meanwhile."""

    indexes: Annotated[list[Index], Meta(min_length=1, max_length=GAINED_MAX)]


class Chunk(Message, frozen=True, tag="chunk"):
    """One chunk; the receiver hashes it before believing it."""

    index: Index
    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


class Missing(Message, frozen=True, tag="missing"):
    """This chunk is not here (any more)."""

    index: Index


class Tell(Message, frozen=True):
    """What the provider says."""

    what: Have | Gained | Chunk | Missing


WHO = Method("blobs.who", Who, Here, CONTROL_FRAME_MAX, AT_ONCE, is_repeatable=True)
OBJECT = Method("blobs.object", Who, Object, MANIFEST_MAX + 64, OBJECTS_AT_ONCE, is_repeatable=True)
GET = Method("blobs.get", Ask, Tell, CHUNK_FRAME_MAX, AT_ONCE)


def parse_cid(text: str) -> Cid:
    """Check a CID. Raises UsageError for anything but the one way to write one of ours."""
    if _CID.fullmatch(text):
        data = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
        if data[:-HASH_BYTES] in (_RAW, _MANIFEST) and _text(data) == text:
            return Cid(text)
    raise UsageError(f"not a CID: {text[:80]!r}", hint="a CID is `b` and 58 or 60 of a-z and 2-7")


def raw_cid(hash_: bytes) -> Cid:
    """Return the name of a blob of up to 1 MiB."""
    assert len(hash_) == HASH_BYTES
    return Cid(_text(_RAW + hash_))


def manifest_cid(manifest: bytes) -> Cid:
    """Return the name of a blob that an encoded manifest describes."""
    return Cid(_text(_MANIFEST + hash_of(manifest)))


def is_raw(cid: Cid) -> bool:
    """Tell whether a CID names bytes, not a manifest."""
    return len(cid) == 59


def hash_in(cid: Cid) -> bytes:
    """Return the hash of the object that a CID names."""
    return base64.b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))[-HASH_BYTES:]


def hash_of(data: bytes | memoryview) -> bytes:
    """Return a SHA-256. 1 MiB takes 1 ms or so: do it on a thread."""
    return hashlib.sha256(data).digest()


def _text(data: bytes) -> str:
    return "b" + base64.b32encode(data).decode().lower().rstrip("=")
