"""Free-form values of users: MessagePack whose size, depth and number of elements are bounded.

msgspec's types cannot bound what has no type: 4 MiB of empty arrays are a legal value that would
take 300 MB decoded. So the bytes are walked once, without making anything of them, before
anybody decodes them (facts: security, section 3.4).
"""

from typing import Literal

from wire.errors import BadMessage

DEPTH_MAX = 32  # arrays and maps inside each other; people's JSON has below ten
ELEMENTS_MAX = 100_000  # values and keys in all: 6 MB of Python objects, and 30 ms of this walk
QUICK_BYTES = 16 * 1024  # walked in 3 ms at most; a longer value is walked in a thread

Kind = Literal["leaf", "text", "array", "map", "bad"]


def _head(byte: int) -> tuple[Kind, int, int]:
    """Say of a first byte: its kind, how many bytes of length follow, and the length it holds."""
    if byte <= 0x7F or byte >= 0xE0:
        return "leaf", 0, 0
    if byte <= 0x8F:
        return "map", 0, byte & 0x0F
    if byte <= 0x9F:
        return "array", 0, byte & 0x0F
    if byte <= 0xBF:
        return "text", 0, byte & 0x1F
    return _LATER.get(byte, ("bad", 0, 0))


_LATER: dict[int, tuple[Kind, int, int]] = {
    0xC0: ("leaf", 0, 0),  # nil
    0xC2: ("leaf", 0, 0),  # false
    0xC3: ("leaf", 0, 0),  # true
    0xC4: ("leaf", 1, 0),  # bytes
    0xC5: ("leaf", 2, 0),
    0xC6: ("leaf", 4, 0),
    0xCA: ("leaf", 0, 4),  # floats
    0xCB: ("leaf", 0, 8),
    0xCC: ("leaf", 0, 1),  # unsigned
    0xCD: ("leaf", 0, 2),
    0xCE: ("leaf", 0, 4),
    0xCF: ("leaf", 0, 8),
    0xD0: ("leaf", 0, 1),  # signed
    0xD1: ("leaf", 0, 2),
    0xD2: ("leaf", 0, 4),
    0xD3: ("leaf", 0, 8),
    0xD9: ("text", 1, 0),
    0xDA: ("text", 2, 0),
    0xDB: ("text", 4, 0),
    0xDC: ("array", 2, 0),
    0xDD: ("array", 4, 0),
    0xDE: ("map", 2, 0),
    0xDF: ("map", 4, 0),
}  # 0xC1 is never used, the rest are extension types: no value of ours has them

_HEADS = [_head(byte) for byte in range(256)]


def check(value: bytes | memoryview) -> None:
    """Refuse what is not one plain value within the bounds: nil, bool, int, float, text, bytes,
    arrays, and maps whose keys are text. Raises BadMessage.

    Cost: one step an element; nothing is allocated that is larger than one text.
    """
    view = memoryview(value)
    at, end, elements = 0, len(view), 0
    left, keyed = [1], [False]  # for each open array or map: what is to come, and is it a map
    while left:
        if not left[-1]:
            left.pop()
            keyed.pop()
            continue
        is_key = keyed[-1] and not left[-1] % 2
        left[-1] -= 1
        if at >= end:
            raise BadMessage("the value ends too soon")
        kind, length_bytes, length = _HEADS[view[at]]
        at += 1
        if length_bytes:
            length = int.from_bytes(view[at : at + length_bytes], "big")
            at += length_bytes
        if kind == "bad" or (is_key and kind != "text"):
            what = "map keys that are no text" if is_key else "extension types"
            raise BadMessage(f"values have no {what}")
        if kind in ("array", "map"):
            count = length if kind == "array" else 2 * length
            elements += count
            if elements > ELEMENTS_MAX or len(left) > DEPTH_MAX:
                limits = f"{ELEMENTS_MAX} elements, {DEPTH_MAX} levels"
                raise BadMessage(f"the value is over the limit of {limits}")
            left.append(count)
            keyed.append(kind == "map")
            continue
        if at + length > end:
            raise BadMessage("the value ends too soon")
        if kind == "text":
            _check_text(view[at : at + length])
        at += length
    if at != end:
        raise BadMessage(f"{end - at} bytes follow the value")


def _check_text(text: memoryview) -> None:
    try:
        str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise BadMessage(f"a text is not UTF-8: {error.reason}") from error
