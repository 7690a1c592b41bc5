"""Codecs by name: float32 vectors to bytes and back, bit-identical wherever they are decoded.

| name     | bytes per element | what                                                          |
|----------|-------------------|---------------------------------------------------------------|
| float32  | 4                 | the bits themselves                                           |
| bfloat16 | 2                 | the upper half of the bits, rounded to even                   |
| float16  | 2                 | IEEE half; magnitudes beyond 65504 become 65504               |
| int8     | 1.001             | blocks of 4096: absmax / 127 and a byte each                  |
| int4     | 0.501             | blocks of 4096: a scale and four bits each                    |
| fedzip   | about 0.12        | the largest sixteenth, clustered, entropy-coded (`fedzip.py`) |
| topk     | 0.029             | 64 of 4096, two bits each (`sparse.py`)                       |

The last three want error feedback, which a strategy keeps.
"""

from collections.abc import Iterable

from protocols.modelsync.blockwise import INT4, INT8
from protocols.modelsync.fedzip import FEDZIP
from protocols.modelsync.floats import BFLOAT16, FLOAT16, FLOAT32
from protocols.modelsync.sparse import TOPK
from protocols.modelsync.vectors import (
    BLOCK,
    CONTRIBUTION_MAX,
    MEAN_MAX,
    VALUE_MAX,
    Codec,
    Vector,
    is_within,
)
from wire.errors import BadMessage

__all__ = [
    "BLOCK",
    "CODECS",
    "CONTRIBUTION_MAX",
    "FLOAT32",
    "INT8",
    "MEAN_MAX",
    "VALUE_MAX",
    "Codec",
    "Vector",
    "codec_named",
    "decode_contribution",
    "is_within",
    "most_compact",
]

CODECS = (FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, FEDZIP, TOPK)  # each more compact than before


def codec_named(name: str) -> Codec:
    """Return the codec of that name. Raises BadMessage if there is none."""
    for codec in CODECS:
        if codec.name == name:
            return codec
    raise BadMessage(f"no such codec: {name[:16]!r}")


def most_compact(names: Iterable[str]) -> str:
    """Return the most compact of the codecs named; of none, float32. Raises BadMessage."""
    return max((codec_named(name) for name in names), key=CODECS.index, default=FLOAT32).name


def decode_contribution(codec: Codec, data: bytes, elements: int) -> Vector:
    """Decode what a member brings to a mean. Raises BadMessage, also if it is out of range."""
    return codec.decode(data, elements, VALUE_MAX)
