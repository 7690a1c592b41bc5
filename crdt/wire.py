"""Messages of the store: the requests and answers of a sync, and news on the channel.

Requests: Compare, Want, Push. Answers: Differ, Entries, Taken. Each fits one control frame.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from crdt.digest import FINGERPRINT_BYTES, LEAF_MAX
from crdt.entry import BODY_MAX, SHORT_ID_BYTES, Signed, Stamp
from wire.codec import CONTROL_FRAME_MAX, Message

FRAME_MAX = CONTROL_FRAME_MAX
FRAME_BUDGET = 56 * 1024  # bytes that a message is filled up to; the rest is room for envelopes
SIGNED_OVERHEAD = 80  # bytes: signature and the heads of both fields
ASKS_MAX = 128  # prefixes in one Compare; 128 splits are 37 KB of fingerprints
WANTS_MAX = 512  # slots in one Want
ENTRIES_MAX = 512  # entries in one message, however small they are
SLOT_DIGITS = 32  # hex digits of a slot
SPLIT_BYTES = 340  # of one Split on the wire, at most
HELD_BYTES = 56  # of one item of a leaf on the wire, at most

assert BODY_MAX + SIGNED_OVERHEAD < FRAME_BUDGET

Prefix = Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}\Z")]
Slot = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Fingerprint = Annotated[bytes, Meta(min_length=FINGERPRINT_BYTES, max_length=FINGERPRINT_BYTES)]
ShortId = Annotated[bytes, Meta(min_length=SHORT_ID_BYTES, max_length=SHORT_ID_BYTES)]
Handled = Annotated[int, Meta(ge=0, le=WANTS_MAX)]


class Ask(Message, frozen=True):
    """What I hold below this prefix adds up to this."""

    prefix: Prefix
    fingerprint: Fingerprint


class Compare(Message, frozen=True, tag="compare"):
    """Where do we differ?"""

    asks: Annotated[list[Ask], Meta(min_length=1, max_length=ASKS_MAX)]


class Split(Message, frozen=True):
    """We differ here, and these are my sums one digit further down."""

    prefix: Prefix
    children: Annotated[list[Fingerprint], Meta(min_length=16, max_length=16)]


class LeafItem(Message, frozen=True):
    """One entry I hold."""

    slot: Slot
    hlc: Stamp
    id: ShortId


class Leaf(Message, frozen=True):
    """We differ here, and this is all I hold there."""

    prefix: Prefix
    items: Annotated[list[LeafItem], Meta(max_length=LEAF_MAX)]


class Differ(Message, frozen=True, tag="differ"):
    """Answers the first `handled` asks; those not mentioned are equal. Ask the rest again."""

    handled: Handled
    splits: Annotated[list[Split], Meta(max_length=ASKS_MAX)]
    leaves: Annotated[list[Leaf], Meta(max_length=ASKS_MAX)]


class Want(Message, frozen=True, tag="want"):
    """Send me what these slots hold."""

    slots: Annotated[list[Slot], Meta(min_length=1, max_length=WANTS_MAX)]


class Entries(Message, frozen=True, tag="entries"):
    """Answers the first `handled` slots of a Want; empty ones are left out."""

    handled: Handled
    entries: Annotated[list[Signed], Meta(max_length=ENTRIES_MAX)]


class Push(Message, frozen=True, tag="push"):
    """These are for you. On the channel: news."""

    entries: Annotated[list[Signed], Meta(max_length=ENTRIES_MAX)]


class Taken(Message, frozen=True, tag="taken"):
    """They are on my disk; so many of them were news."""

    news: Annotated[int, Meta(ge=0, le=ENTRIES_MAX)]


Request = Compare | Want | Push
Answer = Differ | Entries | Taken
request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
push_decoder = msgspec.msgpack.Decoder(Push)


def size_of(signed: Signed) -> int:
    """Bytes that an entry takes in a message, at most."""
    return len(signed.body) + SIGNED_OVERHEAD


def fitting(entries: list[Signed]) -> int:
    """How many of the entries, from the first, fit one message; at least one if there is any."""
    room = FRAME_BUDGET
    for index, signed in enumerate(entries[:ENTRIES_MAX]):
        room -= size_of(signed)
        if room < 0:
            return index
    return min(len(entries), ENTRIES_MAX)
