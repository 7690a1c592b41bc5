"""Int8 and int4: blocks of 4096 elements, each with a float32 scale and a small integer apiece.

On the wire all scales come first, then all integers; two of four bits share a byte, the earlier
element in its lower half. Rounding is to the nearest, ties to even: what is lost comes back by
error feedback, and stochastic rounding would add noise to the mean, which has none.

The scale of int8 is absmax / 127. Fifteen levels are too few for that: where outliers are rare
it pays to clip them, so int4 tries four scales and keeps the one of least squared error (rms of
a normal vector 0.117 instead of 0.158, of Laplace's 0.169 instead of 0.259).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocols.modelsync.vectors import (
    BLOCK,
    Bytes,
    Codec,
    Vector,
    blocks_of,
    check_size,
)
from wire.errors import BadMessage

Scales = NDArray[np.float32]
Levels = NDArray[np.int8]
RowsInto = Callable[[Vector, Scales, Levels, Vector], None]

_GROUP = 32  # blocks worked on at a time: measured best; fewer cost more calls
_SCALE_MIN = np.float32(2.0**-126)  # below, scales lose bits: such a block is sent as zeros
_CLIPS = (0.8, 0.6, 0.4)  # of absmax, tried beside 1; more of them gain 2 %
# Pairs of levels by byte, of int4.
_PAIRS = np.empty((256, 2), dtype=np.float32)
_PAIRS[:, 0] = (np.arange(256) % 16 + 8) % 16 - 8
_PAIRS[:, 1] = (np.arange(256) // 16 + 8) % 16 - 8


def _quantise(vector: Vector, rows_into: RowsInto) -> tuple[Scales, Levels]:
    """Return scale and levels of each block, the last padded with zeros, made group by group."""
    blocks, whole = blocks_of(len(vector)), len(vector) // BLOCK
    scales = np.empty(blocks, dtype=np.float32)
    levels = np.empty((blocks, BLOCK), dtype=np.int8)
    rows = vector[: whole * BLOCK].reshape(whole, BLOCK)
    # Made once: arrays this large come from the kernel, whose pages cost more than the arithmetic.
    scratch = np.empty((4, min(blocks, _GROUP), BLOCK), dtype=np.float32)
    for start in range(0, whole, _GROUP):
        group = slice(start, min(start + _GROUP, whole))
        rows_into(rows[group], scales[group], levels[group], scratch[:, : group.stop - start])
    if blocks > whole:
        last = np.zeros((1, BLOCK), dtype=np.float32)
        last[0, : len(vector) - whole * BLOCK] = vector[whole * BLOCK :]
        rows_into(last, scales[whole:], levels[whole:], scratch[:, :1])
    return scales, levels.reshape(-1)


def _divide(rows: Vector, top: int, scales: Scales, work: Vector) -> None:
    """Set scales to absmax / top and `work` to rows / scales, all from -top to top.

    A scale of at least 2^-126 has all its bits, so no quotient rounds to more than `top`.
    """
    absmax = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # reads twice, and writes nothing
    np.divide(absmax, np.float32(top), out=scales)
    scales[scales < _SCALE_MIN] = 0
    divisors = np.where(scales > 0, scales, np.float32(np.inf))
    np.divide(rows, divisors[:, None], out=work)


def _int8_rows(rows: Vector, scales: Scales, levels: Levels, scratch: Vector) -> None:
    quotients = scratch[0]
    _divide(rows, 127, scales, quotients)
    np.copyto(levels, np.rint(quotients, out=quotients), casting="unsafe")


def _int4_rows(rows: Vector, scales: Scales, levels: Levels, scratch: Vector) -> None:
    quotients, best, tried, error = scratch
    _divide(rows, 7, scales, quotients)
    np.rint(quotients, out=best)
    np.subtract(best, quotients, out=error)
    least, factors = np.vecdot(error, error), np.ones(len(rows), dtype=np.float32)
    for clip in _CLIPS:
        np.multiply(quotients, np.float32(1 / clip), out=error)
        np.rint(error, out=tried)
        np.clip(tried, np.float32(-7), np.float32(7), out=tried)
        np.subtract(error, tried, out=error)
        squares = np.multiply(np.vecdot(error, error), np.float32(clip * clip))
        better = np.flatnonzero(squares < least)
        best[better], least[better], factors[better] = tried[better], squares[better], clip
    np.multiply(scales, factors, out=scales)
    np.copyto(levels, best, casting="unsafe")


def _scales_of(data: Bytes, blocks: int, most: float) -> Scales:
    """Read the scales at the start of a chunk, from 0 to `most`. Raises BadMessage."""
    scales = np.frombuffer(data, dtype="<f4", count=blocks).astype(np.float32, copy=False)
    if blocks and not (scales.min() >= 0 and scales.max() <= np.float32(most)):
        raise BadMessage("a scale out of range")
    return scales


def _scale_up(scales: Scales, out: Vector) -> None:
    """Multiply each block of `out` by its scale, in place."""
    whole = len(out) // BLOCK
    rows = out[: whole * BLOCK].reshape(whole, BLOCK)
    np.multiply(rows, scales[:whole, None], out=rows)
    if len(scales) > whole:
        last = out[whole * BLOCK :]
        np.multiply(last, scales[whole], out=last)


def quantise(vector: Vector) -> tuple[Scales, Levels]:
    """Return int8's scales and levels; the levels of the last block are padded with zeros."""
    return _quantise(vector, _int8_rows)


def dequantise(scales: Bytes, levels: Levels, out: Vector, limit: float) -> None:
    """Write levels times the scales of their blocks into `out`. Raises BadMessage."""
    factors = _scales_of(scales, blocks_of(len(out)), limit / 128)
    for start in range(0, len(out), _GROUP * BLOCK):
        part = out[start : start + _GROUP * BLOCK]
        part[:] = levels[start : start + len(part)]
        _scale_up(factors[start // BLOCK : start // BLOCK + blocks_of(len(part))], part)


def _encode_int8(vector: Vector) -> bytes:
    scales, levels = quantise(vector)
    return b"".join((scales.astype("<f4").tobytes(), levels[: len(vector)].data))


def _decode_int8(data: Bytes, out: Vector, limit: float) -> None:
    blocks = blocks_of(len(out))
    check_size("int8", data, 4 * blocks + len(out))
    dequantise(data, np.frombuffer(data, dtype=np.int8, offset=4 * blocks), out, limit)


def _encode_int4(vector: Vector) -> bytes:
    scales, levels = _quantise(vector, _int4_rows)
    pairs = levels.view(np.uint8).reshape(-1, 2)[: (len(vector) + 1) // 2]
    packed = np.left_shift(pairs[:, 1], np.uint8(4))
    np.bitwise_or(packed, np.bitwise_and(pairs[:, 0], np.uint8(15)), out=packed)
    return b"".join((scales.astype("<f4").tobytes(), packed.data))


def _decode_int4(data: Bytes, out: Vector, limit: float) -> None:
    blocks, pairs = blocks_of(len(out)), (len(out) + 1) // 2
    check_size("int4", data, 4 * blocks + pairs)
    scales = _scales_of(data, blocks, limit / 8)
    packed = np.frombuffer(data, dtype=np.uint8, offset=4 * blocks)
    for start in range(0, len(out), _GROUP * BLOCK):
        part = out[start : start + _GROUP * BLOCK]
        half = packed[start // 2 : start // 2 + (len(part) + 1) // 2]
        whole = len(part) // 2
        np.take(_PAIRS, half[:whole], axis=0, out=part[: 2 * whole].reshape(-1, 2), mode="clip")
        if len(part) % 2:
            part[-1] = _PAIRS[half[-1], 0]
        _scale_up(scales[start // BLOCK : start // BLOCK + blocks_of(len(part))], part)


def _size_int8(elements: int) -> int:
    return 4 * blocks_of(elements) + elements


def _size_int4(elements: int) -> int:
    return 4 * blocks_of(elements) + (elements + 1) // 2


def _check_int8(data: Bytes, elements: int, limit: float) -> None:
    check_size("int8", data, _size_int8(elements))
    _scales_of(data, blocks_of(elements), limit / 128)


def _check_int4(data: Bytes, elements: int, limit: float) -> None:
    check_size("int4", data, _size_int4(elements))
    _scales_of(data, blocks_of(elements), limit / 8)


INT8 = Codec(
    "int8", 1.001, _encode_int8, _decode_int8, _encode_int8, size=_size_int8, check=_check_int8
)
INT4 = Codec(
    "int4", 0.501, _encode_int4, _decode_int4, _encode_int4, size=_size_int4, check=_check_int4
)
