"""Sealed contributions: what a member commits to before any data flows, and how others check it.

A commitment is SHA-256 over the SHA-256 of each shard's encoded chunks, in member order.
"""

import hashlib
from typing import Protocol

from protocols.modelsync.codecs import Codec, Vector
from protocols.modelsync.parcels import Parcel, Parts
from protocols.modelsync.shards import chunks, shard_range
from wire.errors import BadMessage

HASH_BYTES = 32
NOTHING = hashlib.sha256().digest()  # what a member commits to that brings no data


class Digest(Protocol):
    """A hash in the making, of hashlib."""

    def update(self, data: memoryview, /) -> None:
        """Take more bytes."""
        ...

    def digest(self) -> bytes:
        """Return the hash of what was taken."""
        ...


class Committing:
    """Hashes an encoded contribution, chunk by chunk from the first to the last."""

    def __init__(self, shards: list[int]) -> None:
        self._left = [len(list(chunks(*shard_range(shards, i)))) for i in range(len(shards))]
        self._shard = hashlib.sha256()
        self._all = hashlib.sha256()
        self._skip_empty()

    def update(self, data: bytes | memoryview) -> None:
        """Take the next chunk."""
        self._shard.update(data)
        self._left[0] -= 1
        self._skip_empty()

    def digest(self) -> bytes:
        """Return the commitment, once every chunk was taken."""
        assert not self._left, "there are chunks left"
        return self._all.digest()

    def _skip_empty(self) -> None:
        while self._left and not self._left[0]:
            self._all.update(self._shard.digest())
            self._shard = hashlib.sha256()
            del self._left[0]


def all_parts(shards: list[int]) -> Parts:
    """Return the chunks of all shards, one after the other."""
    return [part for index in range(len(shards)) for part in chunks(*shard_range(shards, index))]


def commitment_of(codec: Codec, contribution: Vector, shards: list[int]) -> bytes:
    """Return what a member that brings this must have committed to. For validators."""
    committing = Committing(shards)
    for start, stop in all_parts(shards):
        committing.update(codec.encode(contribution[start:stop]))
    return committing.digest()


def hash_of(parcel: Parcel, first: int) -> bytes:
    """Hash a whole parcel's chunks from `first` on."""
    digest = hashlib.sha256()
    update(digest, parcel, first, parcel.count)
    return digest.digest()


def update(digest: Digest, parcel: Parcel, first: int, upto: int) -> None:
    """Hash a parcel's chunks from `first` to before `upto`."""
    for index in range(first, upto):
        digest.update(parcel.chunk(index))


class Opening:
    """Checks a contribution to one shard as it comes. Its first chunk has all shards' hashes."""

    def __init__(self, commitment: bytes, owner: int) -> None:
        self._commitment, self._owner = commitment, owner
        self._expected = b""
        self._digest = hashlib.sha256()

    def head(self, data: memoryview) -> None:
        """Take the first chunk. Raises BadMessage if it is not what was committed to."""
        if hashlib.sha256(data).digest() != self._commitment:
            raise BadMessage("hashes that are not what was committed to")
        self._expected = bytes(data[HASH_BYTES * self._owner : HASH_BYTES * (self._owner + 1)])

    def update(self, data: memoryview) -> None:
        """Take another chunk."""
        self._digest.update(data)

    def end(self) -> None:
        """That was the last. Raises BadMessage if the shard is not what was committed to."""
        if self._digest.digest() != self._expected:
            raise BadMessage("a shard that is not what was committed to")
