"""Sealed contributions: what a member commits to before any data flows, and how others check it."""

import hashlib

from protocols.modelsync.codecs import Codec, Vector
from protocols.modelsync.parcels import Parcel
from protocols.modelsync.shards import chunks, shard_range
from wire.errors import BadMessage

HASH_BYTES = 32


def commitment_of(codec: Codec, contribution: Vector, shards: list[int]) -> bytes:
    """Return what a member that brings this must have committed to: SHA-256 over the SHA-256 of
    each shard's encoded chunks, in member order. For validators, who compute it again.
    """
    hashes = hashlib.sha256()
    for owner in range(len(shards)):
        shard = hashlib.sha256()
        for start, stop in chunks(*shard_range(shards, owner)):
            shard.update(codec.encode(contribution[start:stop]))
        hashes.update(shard.digest())
    return hashes.digest()


def hash_of(parcel: Parcel, first: int) -> bytes:
    """Hash a whole parcel's chunks from `first` on."""
    digest = hashlib.sha256()
    for index in range(first, parcel.count):
        digest.update(parcel.chunk(index))
    return digest.digest()


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
