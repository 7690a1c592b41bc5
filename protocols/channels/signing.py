"""Signed messages: the StrictSign policy of libp2p pubsub, for Ed25519 authors.

The signature covers "libp2p-pubsub:" and the message without signature and key. The author's key is
in its peer ID, so the key field is not needed; if it is there it must be the same.
Source: github.com/libp2p/specs/pubsub, README, "Message Signing".
"""

import functools
from dataclasses import dataclass

import base58

from protocols.channels import wire
from protocols.channels.wire import Message
from wire.errors import BadMessage
from wire.ids import SIGNATURE_BYTES, PeerId, Signer, public_key_of, verify_plain

INLINE_MAX = 8  # signatures checked on the loop, 0.6 ms; a thread costs 0.1 ms to ask
SEQNO_BYTES = 8  # a 64-bit number, big endian
_KEY_PREFIX = bytes((0x08, 0x01, 0x12, 0x20))  # protobuf {1: Ed25519 = 1, 2: 32 bytes of key}


@dataclass(frozen=True, slots=True)
class Author:
    """Who wrote a message: its peer ID and the key in it."""

    peer: PeerId
    key: bytes


@functools.lru_cache(maxsize=4096)
def author_of(author: bytes) -> Author:
    """Return the peer that a message names. Raises BadMessage if its ID holds no Ed25519 key."""
    peer = PeerId(base58.b58encode(author).decode("ascii"))
    return Author(peer, public_key_of(peer))


def seal(signer: Signer, author: bytes, topic: str, data: bytes, number: int) -> Message:
    """Sign a message of our own; `author` is our peer ID's bytes."""
    seqno = number.to_bytes(SEQNO_BYTES)
    plain = wire.message(author=author, seqno=seqno, topic=topic, data=data)
    signature = signer.sign_plain(wire.signed_bytes(plain))
    return wire.message(author=author, seqno=seqno, topic=topic, data=data, signature=signature)


def number_of(message: Message) -> int:
    """Return a checked message's number."""
    return int.from_bytes(message.seqno)


def check_form(message: Message) -> Author:
    """Check all of a message but its signature. Raises BadMessage."""
    author = author_of(message.author)
    if len(message.seqno) != SEQNO_BYTES:
        raise BadMessage(f"a sequence number of {len(message.seqno)} B")
    if len(message.signature) != SIGNATURE_BYTES:
        raise BadMessage(f"a signature of {len(message.signature)} B")
    if message.key and message.key != _KEY_PREFIX + author.key:
        raise BadMessage("the key is not the author's")
    return author


def is_signed(message: Message, author: Author) -> bool:
    """Check the signature: 50 us or so, without the interpreter's lock."""
    return verify_plain(author.key, wire.signed_bytes(message), message.signature)


def are_signed(messages: list[tuple[Message, Author]]) -> list[bool]:
    """Check signatures, one after the other."""
    return [is_signed(message, author) for message, author in messages]
