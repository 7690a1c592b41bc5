"""FedZip (Malekijoo et al. 2021): the largest of each block, clustered, then entropy-coded.

Of every block of 4096 the 256 elements of largest magnitude are clustered by k-means in one
dimension into 15 centroids, which are that block's own. Each element becomes four bits (0: left
out, i: centroid i), two share a byte, and zlib codes these bytes by their frequencies alone
(Z_HUFFMAN_ONLY). The paper takes three clusters a layer; more of them cost little after Huffman
and halve the error. Means are written as those of `sparse.py`.

On the wire: `z`, float32 centroids [blocks, 15], the zlib stream. What it inflates to is known
before it is opened, so a bomb is refused at its first byte too many.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from protocols.modelsync.sparse import decode_mean, encode_mean, largest
from protocols.modelsync.vectors import (
    BLOCK,
    Bytes,
    Codec,
    Vector,
    blocks_of,
    check_within,
)
from wire.errors import BadMessage

KEPT = 256  # of a block: z = 1/16
CENTROIDS = 15
_ROUNDS_MAX = 16  # of Lloyd's algorithm; the error of normal data changes by < 1 % after 10
_DEFLATED_EXTRA = 1024  # bytes by which a zlib stream of anything may exceed it, and more


def _cluster(values: NDArray[np.float64]) -> tuple[Vector, NDArray[np.intp]]:
    """Cluster each row: centroids [rows, 15] and the cluster of each value [rows, values].

    Lloyd's algorithm from quantiles of the sorted row: each value goes to the nearest centroid,
    each centroid to the mean of its values. In one dimension clusters are intervals.
    """
    rows, count = values.shape
    picks = (np.arange(CENTROIDS) * 2 + 1) * count // (2 * CENTROIDS)
    centroids = np.sort(values, axis=1)[:, picks]
    offsets = np.arange(0, rows * CENTROIDS, CENTROIDS, dtype=np.intp)[:, None]
    nearest = np.zeros(values.shape, dtype=np.intp)
    for _ in range(_ROUNDS_MAX):
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        nearest[:] = 0
        for cut in range(CENTROIDS - 1):
            nearest += values > middles[:, cut : cut + 1]
        flat = np.add(nearest, offsets).reshape(-1)
        sizes = np.bincount(flat, minlength=rows * CENTROIDS).reshape(rows, CENTROIDS)
        sums = np.bincount(flat, weights=values.reshape(-1), minlength=rows * CENTROIDS)
        moved = np.divide(
            sums.reshape(rows, CENTROIDS), sizes, out=centroids.copy(), where=sizes > 0
        )
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids.astype(np.float32), nearest


def _encode(vector: Vector) -> bytes:
    positions, values = largest(vector, KEPT)
    centroids, nearest = _cluster(values.astype(np.float64))
    symbols = np.zeros((len(positions), BLOCK), dtype=np.uint8)
    marks = np.where(values == 0, 0, nearest + 1).astype(np.uint8)  # zeros need no cluster
    np.put_along_axis(symbols, positions.astype(np.intp), marks, axis=1)
    pairs = symbols.reshape(-1, 2)[: (len(vector) + 1) // 2]
    deflate = zlib.compressobj(level=9, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = deflate.compress((pairs[:, 0] | (pairs[:, 1] << 4)).tobytes()) + deflate.flush()
    return b"".join((b"z", centroids.astype("<f4").tobytes(), packed))


def _decode(data: Bytes, out: Vector, limit: float) -> None:
    view, blocks = memoryview(data), blocks_of(len(out))
    if bytes(view[:1]) != b"z":
        decode_mean(view, out, limit)
        return
    if len(view) < 1 + 4 * CENTROIDS * blocks:
        raise BadMessage("fedzip chunk without centroids")
    count = CENTROIDS * blocks
    centroids = np.frombuffer(view, dtype="<f4", count=count, offset=1).astype(np.float32)
    check_within(centroids, limit)
    packed = _inflate(view[1 + 4 * count :], (len(out) + 1) // 2)
    symbols = np.zeros((blocks * BLOCK // 2, 2), dtype=np.uint8)
    np.bitwise_and(packed, np.uint8(15), out=symbols[: len(packed), 0])
    np.right_shift(packed, np.uint8(4), out=symbols[: len(packed), 1])
    table = np.zeros((blocks, CENTROIDS + 1), dtype=np.float32)
    table[:, 1:] = centroids.reshape(blocks, CENTROIDS)
    rows = symbols.reshape(blocks, BLOCK).astype(np.intp)
    out[:] = np.take_along_axis(table, rows, axis=1).reshape(-1)[: len(out)]


def _inflate(data: memoryview, size: int) -> NDArray[np.uint8]:
    """Open a zlib stream of exactly `size` bytes. Raises BadMessage."""
    if len(data) > size + _DEFLATED_EXTRA + size // 64:
        raise BadMessage(f"{len(data)} B deflated of {size} B")
    inflate = zlib.decompressobj()
    try:
        opened = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise BadMessage(f"no zlib stream: {error}") from None
    if len(opened) != size or not inflate.eof or inflate.unused_data:
        raise BadMessage(f"a zlib stream that is not of {size} B")
    return np.frombuffer(opened, dtype=np.uint8)


FEDZIP = Codec("fedzip", 0.12, _encode, _decode, encode_mean)
