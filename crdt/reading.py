"""From what counts at a key to what users are told."""

from collections.abc import Callable

import msgspec

from crdt.entry import KINDS, MULTI, REGISTER, Record
from crdt.fold import View
from crdt.shown import LogLine, Shown
from wire import values
from wire.errors import BadMessage
from wire.ports import Item

PLAIN = ("register", "lease")  # kinds whose value is one value


def value_of(raw: bytes | None) -> object:
    """Decode a value, free in form; its 2 KiB bound what it can hold. Raises BadMessage."""
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, TypeError) as error:
        raise BadMessage(f"a value that is none: {error}") from error


def item_of(view: View | None) -> Item | None:
    """Return a register or lease as the parts of the daemon read it. Raises BadMessage."""
    if view is None or view.kind not in PLAIN:
        return None
    entry = view.values[0].entry
    if entry.value is None:
        return None  # a blob: parts of the daemon put none
    record = view.values[0]
    return Item(view.key, value_of(entry.value), record.peer, record.hlc, record.expires_ms)


def shown(namespace: str, view: View) -> Shown:
    """Return what a key shows. Raises BadMessage."""
    latest = view.latest
    return Shown(
        namespace,
        view.key,
        view.kind,
        _FORMS[view.kind](view),
        latest.peer,
        latest.hlc,
        latest.expires_ms,
        latest.entry.blob if view.kind in PLAIN else None,
        len(view.values),
    )


def log_line(record: Record, *, counts: bool) -> LogLine:
    """Return one retained entry, its value decoded; None for what does not decode."""
    entry = record.entry
    return LogLine(
        record.id,
        record.peer,
        entry.instance,
        entry.seq,
        entry.hlc,
        KINDS[entry.kind],
        entry.key,
        _lenient(entry.element or None),
        _lenient(entry.value),
        entry.blob,
        entry.expires_ms,
        counts,
        record.size,
        is_tombstone=record.is_tombstone and record.kind in (REGISTER, MULTI),
    )


def _plain_value(raw: bytes | None) -> object:
    if raw is not None:
        values.check(raw)  # what goes out as JSON must be what JSON can say, and not too deep
    return value_of(raw)


def _lenient(raw: bytes | None) -> object:
    try:
        return _plain_value(raw)
    except BadMessage:
        return None


def _plain(view: View) -> object:
    return _plain_value(view.values[0].entry.value)


def _siblings(view: View) -> object:
    return [_lenient(record.entry.value) for record in view.values]


def _total(view: View) -> object:
    return view.total


def _elements(view: View) -> object:
    return [_lenient(record.element) for record in view.values]


def _pairs(view: View) -> object:
    return [[_lenient(one.element), _lenient(one.entry.value)] for one in view.values]


_FORMS: dict[str, Callable[[View], object]] = {
    "register": _plain,
    "lease": _plain,
    "multi": _siblings,
    "counter": _total,
    "set": _elements,
    "map": _pairs,
}
