"""A contribution as it was committed to: its encoded chunks, their hash, and how alike two are."""

import hashlib
from collections.abc import Sequence

import numpy as np

from protocols.modelsync.codecs import codec_named
from protocols.modelsync.shards import chunks, shard_range
from protocols.modelsync.vectors import VALUE_MAX, Bytes, Vector
from wire.errors import BadMessage

Chunks = Sequence[Sequence[Bytes]]  # of each shard, in member order

_SLICE = 1 << 20  # elements compared at a time, so that float64 copies stay small


def encode_chunks(vector: Vector, shards: list[int], codec: str) -> list[list[bytes]]:
    """Encode a whole contribution as it travels to the shards' owners. Heavy: off the loop."""
    encode = codec_named(codec).encode
    return [
        [encode(vector[start:stop]) for start, stop in chunks(*shard_range(shards, owner))]
        for owner in range(len(shards))
    ]


def commitment_of(data: Chunks) -> bytes:
    """Return the hash that ACK commits to: SHA-256 over the shards' SHA-256, in member order."""
    whole = hashlib.sha256()
    for shard in data:
        one = hashlib.sha256()
        for chunk in shard:
            one.update(chunk)
        whole.update(one.digest())
    return whole.digest()


def decode_chunks(data: Chunks, shards: list[int], codec: str) -> Vector:
    """Decode a whole contribution. Raises BadMessage for what its owners would have refused."""
    read, out = codec_named(codec), np.empty(sum(shards), dtype=np.float32)
    for owner, shard in enumerate(data):
        places = list(chunks(*shard_range(shards, owner)))
        if len(places) != len(shard):
            raise BadMessage(f"{len(shard)} chunks of a shard, expected {len(places)}")
        for (start, stop), chunk in zip(places, shard, strict=True):
            read.decode_into(chunk, out[start:stop], VALUE_MAX)
    return out


def relative_error(found: Vector, expected: Vector) -> float:
    """Return |found - expected| / |expected|; 0 if they are alike, also if both are zero."""
    difference = length = 0.0
    for start in range(0, len(found), _SLICE):
        one = found[start : start + _SLICE].astype(np.float64)
        two = expected[start : start + _SLICE].astype(np.float64)
        difference += float(np.sum(np.square(one - two)))
        length += float(np.sum(np.square(two)))
    if difference == 0:
        return 0.0
    return float(np.sqrt(difference / length)) if length else float("inf")
