"""Float32 vectors as they travel: what a codec is, and the bounds of values that are let in.

Every operation of a decoder is a separate numpy float32 ufunc: none may be fused into a
multiply-add, so what is decoded is alike on every processor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire.errors import BadMessage

Vector = NDArray[np.float32]
Bytes = bytes | bytearray | memoryview

BLOCK = 4096  # elements that share a scale, a top-k, centroids (facts: int8 rms 0.6 to 0.9 %)
# Three bounds, so that a mean of what was let in can always be encoded and decoded again:
CONTRIBUTION_MAX = 1e29  # of our own values, before a codec rounds them
VALUE_MAX = 1e30  # of a decoded contribution; the float32 sum of 64 of weight 1e6 stays finite
MEAN_MAX = 2e30  # of any decoded value: a mean exceeds its largest part by rounding only


@dataclass(frozen=True)
class Codec:
    """One way to write a vector of float32, cut anywhere at a multiple of BLOCK elements.

    `encode` writes a contribution and `encode_mean` what an owner made of several; both take
    finite values up to MEAN_MAX. `decode_into` reads either into a contiguous vector of the right
    length. It raises BadMessage for anything else, NaN and values beyond its last argument
    included, and may have written some by then; it allocates nothing that the sender could choose.
    `bytes_per_element` is approximate, of contributions. If `is_exact`, decoding gives back
    the very bits.
    """

    name: str
    bytes_per_element: float
    encode: Callable[[Vector], bytes]
    decode_into: Callable[[Bytes, Vector, float], None]
    encode_mean: Callable[[Vector], bytes]
    is_exact: bool = False
    size: Callable[[int], int] | None = None  # exact bytes of so many elements; None: it depends
    check: Callable[[Bytes, int, float], None] | None = None  # raises what `decode_into` would

    def refuse_bad(self, data: Bytes, elements: int, limit: float = MEAN_MAX) -> None:
        """Raise BadMessage for what `decode` would, perhaps without decoding."""
        if self.check is None:
            self.decode(data, elements, limit)
        else:
            self.check(data, elements, limit)

    def decode(self, data: Bytes, elements: int, limit: float = MEAN_MAX) -> Vector:
        """Return `elements` values of magnitude at most `limit`. Raises BadMessage."""
        out = np.empty(elements, dtype=np.float32)
        self.decode_into(data, out, limit)
        return out


def is_within(values: Vector, limit: float) -> bool:
    """True if every value is finite and its magnitude at most `limit`."""
    if not values.size:
        return True
    bound = np.float32(limit)  # NaN compares false, and is what min and max of it give
    return bool(values.min() >= -bound) and bool(values.max() <= bound)


def check_within(values: Vector, limit: float) -> None:
    """Refuse NaN, infinity and magnitudes beyond `limit`. Raises BadMessage."""
    if not is_within(values, limit):
        raise BadMessage(f"values that are not finite, or beyond {limit:g}")


def check_size(name: str, data: Bytes, size: int) -> None:
    """Refuse bytes of another length. Raises BadMessage."""
    if len(data) != size:
        raise BadMessage(f"{name} chunk of {len(data)} B, expected {size} B")


def blocks_of(elements: int) -> int:
    """Return how many blocks that many elements fill; the last may be shorter."""
    return -(-elements // BLOCK)
