"""What a step carries, as bytes: one row per position, of a fixed size. No torch: for the daemon.

Rows are token ids ("ids") or hidden states in one of the codecs of codecs.py, which needs torch.
"""

import array
import sys

from wire.errors import BadMessage

ID_BYTES = 4  # little endian, unsigned
BLOCK_SIZE = 64  # elements that share a scale in int8: smaller ones are better, and larger
OUTLIERS = 4  # largest magnitudes of a row that int8 keeps apart: without them 5 % of the picks go
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

assert array.array("I").itemsize == ID_BYTES
assert sys.byteorder == "little"  # as all machines are that torch runs on


def row_bytes(codec: str, hidden_size: int) -> int:
    """Return the size of one row, which depends on nothing else.

    Raises BadMessage for a codec without rows: there is none of that name, or "picks".
    """
    if codec == "ids":
        return ID_BYTES
    if codec == "int8":
        scales = 2 * -(-hidden_size // BLOCK_SIZE)
        return hidden_size + scales + 4 * min(OUTLIERS, hidden_size)
    element = _ELEMENT_BYTES.get(codec)
    if element is None:
        raise BadMessage(f"there are no rows in the codec {codec[:32]!r}")
    return element * hidden_size


def ids_to_rows(ids: list[int]) -> bytes:
    """Return token ids as rows."""
    return array.array("I", ids).tobytes()


def rows_to_ids(rows: bytes) -> list[int]:
    """Return the token ids of rows. Raises BadMessage if these are no whole rows."""
    if len(rows) % ID_BYTES:
        raise BadMessage(f"{len(rows)} B are no rows of {ID_BYTES} B")
    return array.array("I", rows).tolist()
