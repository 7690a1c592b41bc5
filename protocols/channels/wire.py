"""Wire messages of channels: `channels.push`, a batch of messages from one peer to the next."""

from typing import Annotated

from msgspec import Meta

from wire.codec import Message
from wire.ports import Method

PAYLOAD_MAX = 64 * 1024  # bytes; what is bigger belongs into a blob (DESIGN, section 8)
TOPIC_MAX = 64  # characters; ours are below 30
BATCH_MAX = 64  # messages in one push
BATCH_BYTES = 256 * 1024  # payload of one push, though one message always fits
MESSAGE_OVERHEAD = 256  # bytes that a message adds to its payload: topic, origin, number
PEER_MAX = 64  # characters of a peer ID; an Ed25519 one has 52

Topic = Annotated[str, Meta(max_length=TOPIC_MAX, pattern=r"^[a-z0-9_./-]+\Z")]
Origin = Annotated[str, Meta(min_length=1, max_length=PEER_MAX)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Gossip(Message, frozen=True):
    """One message on its way: [topic, origin, number, data].

    `origin` is who published it, as the sender says; nothing signs it. `number` tells apart two
    messages with the same content from the same origin.
    """

    topic: Topic
    origin: Origin
    number: Number
    data: Annotated[bytes, Meta(max_length=PAYLOAD_MAX)]


class Push(Message, frozen=True):
    """Messages in the order in which the sender got them."""

    messages: Annotated[list[Gossip], Meta(min_length=1, max_length=BATCH_MAX)]


class Taken(Message, frozen=True):
    """How many of them were new to the receiver."""

    fresh: Annotated[int, Meta(ge=0, le=BATCH_MAX)]


PUSH = Method(
    "channels.push",
    Push,
    Taken,
    frame_max=BATCH_BYTES + PAYLOAD_MAX + BATCH_MAX * MESSAGE_OVERHEAD,
)
