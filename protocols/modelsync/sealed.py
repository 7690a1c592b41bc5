"""A contribution as it was committed to: its encoded chunks, their hash, and how alike two are."""

from collections.abc import Sequence

import numpy as np

from protocols.modelsync.codecs import codec_named
from protocols.modelsync.sealing import Committing, all_parts
from protocols.modelsync.vectors import VALUE_MAX, Bytes, Vector
from wire.errors import BadMessage

Chunks = Sequence[bytes]  # of all shards, in member order

_SLICE = 1 << 20  # elements compared at a time, so that float64 copies stay small


def encode_chunks(vector: Vector, shards: list[int], codec: str) -> list[bytes]:
    """Encode a whole contribution as it travels to the shards' owners. Heavy: off the loop."""
    encode = codec_named(codec).encode
    return [encode(vector[start:stop]) for start, stop in all_parts(shards)]


def commitment_to(data: Sequence[Bytes], shards: list[int]) -> bytes:
    """Return the hash that ACK commits to. Raises BadMessage if there are more chunks, or less."""
    if len(data) != len(all_parts(shards)):
        raise BadMessage(f"{len(data)} chunks, expected {len(all_parts(shards))}")
    committing = Committing(shards)
    for chunk in data:
        committing.update(bytes(chunk))
    return committing.digest()


def decode_chunks(data: Sequence[Bytes], shards: list[int], codec: str) -> Vector:
    """Decode a whole contribution. Raises BadMessage for what its owners would have refused."""
    read, out = codec_named(codec), np.empty(sum(shards), dtype=np.float32)
    for (start, stop), chunk in zip(all_parts(shards), data, strict=True):
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
