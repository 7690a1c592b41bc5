"""Codecs: float32 vectors to bytes and back. Deterministic, so that replicas stay bit-identical.

Every operation is a separate numpy float32 ufunc: none may be fused into a multiply-add, so the
result is the same on every processor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire.errors import BadMessage

Vector = NDArray[np.float32]

BLOCK = 4096  # elements that share one int8 scale (facts: training 3.1: rms 0.6 to 0.9 %)
# Three bounds, so that a mean of what was let in can always be encoded and decoded again:
CONTRIBUTION_MAX = 1e29  # of our own values, before a codec rounds them
VALUE_MAX = 1e30  # of a decoded contribution; the float32 sum of 64 of weight 1e6 stays finite
MEAN_MAX = 2e30  # of any decoded value: a mean exceeds its largest part by rounding only
_SCALE_MAX = 2e28  # just above MEAN_MAX / 127
_LEVELS = np.float32(127)


@dataclass(frozen=True)
class Codec:
    """One way to write a vector. `decode` raises BadMessage for anything that is not one."""

    name: str
    encode: Callable[[Vector], bytes]
    decode: Callable[[bytes, int], Vector]


def _encode_float32(vector: Vector) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _decode_float32(data: bytes, elements: int) -> Vector:
    if len(data) != 4 * elements:
        raise BadMessage(f"float32 chunk of {len(data)} B, expected {4 * elements} B")
    return _checked(np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False))


def _encode_int8(vector: Vector) -> bytes:
    """Blocks of 4096: all scales (absmax / 127, float32), then all values (int8)."""
    blocks = -(-len(vector) // BLOCK)
    padded = np.zeros(blocks * BLOCK, dtype=np.float32)
    padded[: len(vector)] = vector
    rows = padded.reshape(blocks, BLOCK)
    scales = np.divide(np.abs(rows).max(axis=1), _LEVELS)
    # A block whose scale underflows to zero is sent as zeros: its values are below 1e-43.
    divisors = np.where(scales > 0, scales, np.float32(1))
    levels = np.rint(np.divide(rows, divisors[:, None]))
    values = np.clip(levels, -_LEVELS, _LEVELS).astype(np.int8)
    values[scales == 0] = 0
    return bytes(scales.astype("<f4").tobytes() + values.reshape(-1)[: len(vector)].tobytes())


def _decode_int8(data: bytes, elements: int) -> Vector:
    blocks = -(-elements // BLOCK)
    if len(data) != 4 * blocks + elements:
        raise BadMessage(f"int8 chunk of {len(data)} B, expected {4 * blocks + elements} B")
    scales = _checked(np.frombuffer(data, dtype="<f4", count=blocks).astype(np.float32))
    if bool((scales < 0).any()) or bool((scales > np.float32(_SCALE_MAX)).any()):
        raise BadMessage("int8 chunk with a scale out of range")
    padded = np.zeros(blocks * BLOCK, dtype=np.float32)
    padded[:elements] = np.frombuffer(data, dtype=np.int8, offset=4 * blocks)
    rows = padded.reshape(blocks, BLOCK)
    np.multiply(rows, scales[:, None], out=rows)
    return padded[:elements]


def decode_contribution(codec: Codec, data: bytes, elements: int) -> Vector:
    """Decode what a member brings to a mean. Raises BadMessage, also if it is out of range."""
    values = codec.decode(data, elements)
    if not is_within(values, VALUE_MAX):
        raise BadMessage(f"contribution beyond {VALUE_MAX:g}")
    return values


def is_within(values: Vector, limit: float) -> bool:
    """True if every value is finite and its magnitude at most `limit`."""
    if not len(values):
        return True
    bound = np.float32(limit)  # NaN compares false, and is what min and max of it give
    return bool(values.min() >= -bound) and bool(values.max() <= bound)


def _checked(values: Vector) -> Vector:
    """Refuse NaN, infinity and magnitudes that could overflow a sum."""
    if not is_within(values, MEAN_MAX):
        raise BadMessage("chunk holds values that are not finite or out of range")
    return values


FLOAT32 = Codec("float32", _encode_float32, _decode_float32)
INT8 = Codec("int8", _encode_int8, _decode_int8)


def codec_named(name: str) -> Codec:
    """Return the codec of that name. Raises BadMessage if there is none."""
    for codec in (FLOAT32, INT8):
        if codec.name == name:
            return codec
    raise BadMessage(f"no such codec: {name[:16]!r}")


def weighted_mean(vectors: list[Vector], weights: list[float]) -> Vector:
    """Average in the order given, float32, with separate multiply, add and divide.

    Vectors of weight 0 are skipped. All weights zero gives zeros: nobody had anything to say.
    """
    total = np.float32(sum(weights))
    mean = np.zeros_like(vectors[0])
    if total == 0:
        return mean
    scaled = np.empty_like(mean)
    for vector, weight in zip(vectors, weights, strict=True):
        if weight > 0:
            np.multiply(vector, np.float32(weight), out=scaled)
            np.add(mean, scaled, out=mean)
    return np.divide(mean, total, out=mean)
