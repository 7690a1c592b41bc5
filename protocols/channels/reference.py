"""Payloads over 64 KiB: what is published is a reference to a blob, which subscribers fetch.

A reference is a payload like others: a magic number, then [cid, size] in MessagePack. Data of a
user that happens to begin with the magic number goes by reference too, so nothing is ambiguous.
"""

from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from wire import codec
from wire.errors import BadMessage
from wire.ids import PeerId

MAGIC = b"\x00shoal-blob\x01"
REFERENCE_MAX = 256  # bytes; a CID has about 60 characters
BLOB_MAX = 64 * 1024 * 1024  # bytes; what a subscriber takes into memory unless it says otherwise


class Blobs(Protocol):
    """The blob store, as channels need it: `protocols.blobs` provides it, node/ passes it in."""

    async def put_bytes(self, data: bytes, /) -> str:
        """Store a blob; returns its CID."""
        ...

    async def fetch(self, cid: str, providers: list[PeerId], /, *, limit_bytes: int) -> object:
        """Make a blob whole here. Raises ShoalError."""
        ...

    async def read_bytes(self, cid: str, /, *, limit_bytes: int) -> bytes:
        """Return a whole blob. Raises ShoalError."""
        ...


class Reference(codec.Message, frozen=True):
    """Which blob to fetch, and how big it is said to be."""

    cid: Annotated[str, Meta(min_length=1, max_length=128)]
    size_bytes: Annotated[int, Meta(ge=0, le=1 << 40)]


_decoder = msgspec.msgpack.Decoder(Reference)


def pack(reference: Reference) -> bytes:
    """Return the payload that stands for a blob."""
    return MAGIC + codec.encode(reference)


def unpack(data: bytes) -> Reference | None:
    """Return the reference in a payload; None if it is plain data. Raises BadMessage."""
    if not data.startswith(MAGIC):
        return None
    if len(data) > REFERENCE_MAX:
        raise BadMessage(f"a blob reference of {len(data)} B is over {REFERENCE_MAX} B")
    return codec.decode(data[len(MAGIC) :], _decoder, REFERENCE_MAX)
