"""Messages of the DHT. Every one carries the sender's own signed peer record.

Requests: Ping, FindNode, Provide, GetProviders. Answers: Pong, Nodes, Stored, Found.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from dht.providers import PER_KEY_MAX
from dht.records import BODY_MAX, KeyBytes, Signed
from dht.table import K
from wire.codec import CONTROL_FRAME_MAX, Message

FRAME_MAX = CONTROL_FRAME_MAX
PROVIDER_BYTES = 256  # of a signed provider record on the wire, at most

assert (K + 1) * (BODY_MAX + 80) + PER_KEY_MAX * PROVIDER_BYTES < FRAME_MAX

Contacts = Annotated[list[Signed], Meta(max_length=K)]


class Ping(Message, frozen=True, tag="ping"):
    """Are you there?"""

    me: Signed


class Pong(Message, frozen=True, tag="pong"):
    """I am."""

    me: Signed


class FindNode(Message, frozen=True, tag="find"):
    """Whom do you know near this key?"""

    me: Signed
    target: KeyBytes


class Nodes(Message, frozen=True, tag="nodes"):
    """Those I know nearest to it, who answered me."""

    me: Signed
    contacts: Contacts


class Provide(Message, frozen=True, tag="provide"):
    """Keep this record of mine: I have what its key names."""

    me: Signed
    record: Signed


class Stored(Message, frozen=True, tag="stored"):
    """Kept, or not (no room)."""

    me: Signed
    is_kept: bool


class GetProviders(Message, frozen=True, tag="get"):
    """Who has what this key names?"""

    me: Signed
    key: KeyBytes


class Found(Message, frozen=True, tag="found"):
    """These say that they do; and those I know nearest to the key."""

    me: Signed
    records: Annotated[list[Signed], Meta(max_length=PER_KEY_MAX)]
    contacts: Contacts


Request = Ping | FindNode | Provide | GetProviders
Answer = Pong | Nodes | Stored | Found
request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
