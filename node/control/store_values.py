"""Values as requests bring them: JSON, bounded before it is decoded."""

import msgspec

from crdt.entry import VALUE_MAX
from shoal.errors import ClientError
from shoal.rpc_api import BYTES_KEY, from_json
from wire import values
from wire.errors import BadMessage, UsageError

SMALL_JSON = 16 * 1024  # bytes; a value of 2 KiB takes at most 12 KiB of JSON, escaped all over


class _Bytes(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes as JSON writes them."""

    data: bytes = msgspec.field(name=BYTES_KEY)


def split(raw: msgspec.Raw) -> tuple[object, bytes | None]:
    """Return a value that fits an entry, or else the bytes of the blob that is to hold it.

    What is large is not decoded unless it is text or bytes: a blob holds its JSON as it came.
    """
    if len(raw) <= SMALL_JSON:
        value = small(raw, "value")
        if len(msgspec.msgpack.encode(value)) <= VALUE_MAX:
            return value, None
    try:
        found = msgspec.json.decode(raw, type=str | _Bytes)
    except msgspec.DecodeError:
        return None, bytes(raw)
    return None, found.encode() if isinstance(found, str) else found.data


def small(raw: msgspec.Raw, what: str) -> object:
    """Return a value that came as JSON, within the bounds of values. Raises UsageError."""
    if len(raw) > SMALL_JSON:
        raise UsageError(f"{what}: {len(raw)} B of JSON are over {SMALL_JSON} B")
    try:
        value = from_json(msgspec.json.decode(raw))
        values.check(msgspec.msgpack.encode(value))
    except (ClientError, BadMessage, OverflowError, RecursionError, ValueError) as error:
        raise UsageError(f"{what}: {error}") from error
    return value
