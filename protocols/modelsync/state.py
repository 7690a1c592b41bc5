"""States of a lane: their chunks, the hashes of these, and the root over the hashes.

A state is a flat float32 vector. Its chunks are 1 MiB of little-endian float32 (the last one may be
shorter), so that what differs between two states can be told, fetched and checked by the piece.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from protocols.modelsync.codecs import Vector
from protocols.modelsync.wire import Certificate

CHUNK_BYTES = 1024 * 1024  # one frame carries a chunk; its hash is 1/32,768 of it
CHUNK_ELEMENTS = CHUNK_BYTES // 4
ROOT_TAG = b"shoal/state/1"
THREADS = 2  # hash at a time: hashlib lets go of the interpreter while it hashes
_THREADS_FROM = 16  # chunks; below that, threads take longer to start than to hash


@dataclass(frozen=True)
class State:
    """What a node can give to others: the state of a lane before `round`."""

    round: int
    root: bytes
    vector: Vector  # of the lane's state elements, as its strategy lays them out
    certificate: Certificate | None  # of the round before; None before the first


def chunk_count(elements: int) -> int:
    """Return how many chunks a state of this many elements has."""
    return -(-elements // CHUNK_ELEMENTS)


def chunk_of(vector: Vector, index: int) -> memoryview:
    """Return the bytes of one chunk of a contiguous little-endian vector, without a copy."""
    return vector[index * CHUNK_ELEMENTS : (index + 1) * CHUNK_ELEMENTS].data.cast("B")


def chunk_hashes(vector: Vector, *, threads: int = THREADS) -> list[bytes]:
    """Return the SHA-256 of every chunk. Cost: one read of the vector."""
    plain = vector.astype("<f4", copy=False)
    indexes = range(chunk_count(len(plain)))
    if threads == 1 or len(indexes) < _THREADS_FROM:
        return [_hash_of(plain, index) for index in indexes]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(partial(_hash_of, plain), indexes))


def root_of(hashes: Iterable[bytes]) -> bytes:
    """Hash the chunks' hashes, in order, to the root of the state."""
    return hashlib.sha256(ROOT_TAG + b"".join(hashes)).digest()


def state_root(vector: Vector) -> bytes:
    """Return the root of a state: SHA-256("shoal/state/1", SHA-256(chunk 0), SHA-256(chunk 1) …).

    Blocking: 0.5 to 2 s a GB; call it off the event loop.
    """
    return root_of(chunk_hashes(vector))


def _hash_of(plain: Vector, index: int) -> bytes:
    return hashlib.sha256(chunk_of(plain, index)).digest()
