"""Codecs of one number each: float32, bfloat16 and float16."""

import numpy as np

from protocols.modelsync.vectors import (
    Bytes,
    Codec,
    Vector,
    check_size,
    check_within,
)

_HALF_MAX = np.float32(65504)  # the greatest finite float16


def _encode_float32(vector: Vector) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _decode_float32(data: Bytes, out: Vector, limit: float) -> None:
    check_size("float32", data, 4 * len(out))
    out[:] = np.frombuffer(data, dtype="<f4")
    check_within(out, limit)


def _encode_bfloat16(vector: Vector) -> bytes:
    """Round to even: add half a unit, and less one ulp where the last bit kept is even."""
    bits = np.ascontiguousarray(vector).view(np.uint32)
    rounded = np.right_shift(bits, np.uint32(16))
    np.bitwise_and(rounded, np.uint32(1), out=rounded)
    np.add(rounded, np.uint32(0x7FFF), out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, np.uint32(16), out=rounded)
    return rounded.astype("<u2").tobytes()


def _decode_bfloat16(data: Bytes, out: Vector, limit: float) -> None:
    check_size("bfloat16", data, 2 * len(out))
    bits = out.view(np.uint32)
    bits[:] = np.frombuffer(data, dtype="<u2")
    np.left_shift(bits, np.uint32(16), out=bits)
    check_within(out, limit)


def _encode_float16(vector: Vector) -> bytes:
    return np.clip(vector, -_HALF_MAX, _HALF_MAX).astype("<f2").tobytes()


def _decode_float16(data: Bytes, out: Vector, limit: float) -> None:
    check_size("float16", data, 2 * len(out))
    out[:] = np.frombuffer(data, dtype="<f2")
    check_within(out, limit)


def _two(elements: int) -> int:
    return 2 * elements


FLOAT32 = Codec(
    "float32", 4, _encode_float32, _decode_float32, _encode_float32, True, lambda n: 4 * n
)
BFLOAT16 = Codec("bfloat16", 2, _encode_bfloat16, _decode_bfloat16, _encode_bfloat16, size=_two)
FLOAT16 = Codec("float16", 2, _encode_float16, _decode_float16, _encode_float16, size=_two)
