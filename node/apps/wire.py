"""Wire messages of calls to users' programs: the methods `app.call`, `app.stream`, `app.methods`.

Values are free-form MessagePack; `check` bounds them (`wire.values`), and nobody in the daemon
decodes them. docs/protocols.md, section 6, says the same in words.
"""

from typing import Annotated

import msgspec
import trio
from msgspec import Meta, Raw

from wire import values
from wire.codec import Message
from wire.errors import BadMessage, UsageError
from wire.ports import Method

VALUE_MAX = 4 * 1024 * 1024  # bytes of one value; a peer may have 64 on their way: 256 MiB
METHODS_MAX = 256  # names served at a time by all programs of a node
DEADLINE_MAX_S = 24 * 3600.0  # as in protocols/rpc

NAME = r"^[a-z0-9_.-]+\Z"
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=NAME)]
DeadlineMs = Annotated[int, Meta(ge=0, le=int(DEADLINE_MAX_S) * 1000)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Ask(Message, frozen=True):
    """Call a method with one value."""

    method: Name
    value: Raw


class Value(Message, frozen=True, tag="value"):
    """One value: an answer, or an item of a stream, either way."""

    value: Raw


class Open(Message, frozen=True, tag="open"):
    """The first message of a stream. `deadline_ms` is the time left for all of it; 0 is none."""

    method: Name
    deadline_ms: DeadlineMs


class Up(Message, frozen=True):
    """A message of a stream's caller."""

    body: Open | Value


class Offered(Message, frozen=True):
    """A method that a program of this node serves: its places, how many are taken, who waits."""

    name: Name
    places: Count
    busy: Count
    waiting: Count


class List(Message, frozen=True):
    """Which methods are there?"""


class Listing(Message, frozen=True):
    """All methods of a node's programs."""

    methods: Annotated[list[Offered], Meta(max_length=METHODS_MAX)]


_FRAME_MAX = VALUE_MAX + 256  # the value, the name and the arrays around them
CALL = Method("app.call", Ask, Value, _FRAME_MAX)
STREAM = Method("app.stream", Up, Value, _FRAME_MAX)
LIST = Method("app.methods", List, Listing)


def name_of(method: str) -> str:
    """Check a method's name before it goes out. Raises UsageError."""
    try:
        return msgspec.convert(method, Name)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{method[:64]!r} is no method's name", hint="up to 64 of a-z 0-9 _ . -"
        ) from error


async def check(value: Raw) -> None:
    """Bound a value that a peer sent. Raises BadMessage."""
    await _in_bounds(memoryview(value))


async def check_own(value: bytes | Raw) -> None:
    """Bound a value of a program of ours, for which the same limits are a usage error."""
    view = memoryview(value)
    try:
        if len(view) > VALUE_MAX:
            raise BadMessage(f"value of {len(view)} B is over the limit of {VALUE_MAX} B")
        await _in_bounds(view)
    except BadMessage as error:
        raise UsageError(str(error), hint="send files and big data as blobs") from error


async def _in_bounds(view: memoryview) -> None:
    if len(view) > values.QUICK_BYTES:
        await trio.to_thread.run_sync(values.check, view)
    else:
        values.check(view)
