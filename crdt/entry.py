"""One signed write: its canonical bytes, its name, its signature, and who may write which key.

The bytes that are signed are the bytes that travel and rest: an entry that does not re-encode to
exactly what arrived is refused, so that one entry has one name. Source: DESIGN, section 7.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
from msgspec import Meta

from crdt.clock import HLC_MAX, wall_of
from wire import codec
from wire.codec import Message
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId, Signer, verify

VALUE_MAX = 2048  # bytes of encoded value; what is larger is a blob and goes by reference
KEY_MAX = 256  # bytes: two peer IDs and two names
BODY_MAX = 2560  # bytes; the largest legal body has about 2,440
SHORT_ID_BYTES = 8  # of an entry's name where its slot is known: enough to see a difference
TAG = "crdt/entry/1"
REGISTER = 1  # the one kind of the first form: last writer wins
TOMBSTONE_MS = 7 * 24 * 3600 * 1000  # how long a deletion is remembered, for replicas that slept
LEASE_GRACE_MS = 60_000  # a dead lease is kept for twice the clock bound, so that nobody revives it

Namespace = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z")]
KeyText = Annotated[str, Meta(pattern=rf"^[!-~]{{1,{KEY_MAX}}}\Z")]  # printable ASCII, no space
# A fixed prefix and length, so that no second spelling of the same key passes as another author.
Author = Annotated[PeerId, Meta(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")]
Stamp = Annotated[int, Meta(ge=0, le=HLC_MAX)]


class Entry(Message, frozen=True):
    """What is signed. `value` is MessagePack; None is a tombstone. `expires_ms` 0 is never."""

    version: Annotated[int, Meta(ge=1, le=1)]
    namespace: Namespace
    key: KeyText
    author: Author
    hlc: Stamp
    kind: Annotated[int, Meta(ge=REGISTER, le=REGISTER)]
    value: Annotated[bytes, Meta(max_length=VALUE_MAX)] | None
    expires_ms: Stamp


class Signed(Message, frozen=True):
    """An entry as it travels."""

    body: Annotated[bytes, Meta(max_length=BODY_MAX)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_decoder = msgspec.msgpack.Decoder(Entry)


@dataclass(frozen=True)
class Record:
    """A decoded entry with the bytes that prove it."""

    entry: Entry
    signed: Signed

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of the signed bytes."""
        return hashlib.sha256(self.signed.body).digest()

    @cached_property
    def slot(self) -> str:
        """Where it lives in the digest: 32 hex digits of SHA-256 over namespace and key."""
        return slot_of(self.entry.namespace, self.entry.key)

    @property
    def order(self) -> tuple[int, str, bytes]:
        """The last writer wins by this."""
        return self.entry.hlc, self.entry.author, self.id

    def is_live(self, now_ms: int) -> bool:
        """True if readers see it: not a tombstone, not an expired lease."""
        expires_ms = self.entry.expires_ms
        return self.entry.value is not None and not 0 < expires_ms <= now_ms

    @property
    def dead_ms(self) -> int:
        """Wall clock from which it is thrown away and no longer accepted; 0 is never."""
        if self.entry.value is None:
            return wall_of(self.entry.hlc) + TOMBSTONE_MS
        return self.entry.expires_ms + LEASE_GRACE_MS if self.entry.expires_ms else 0

    def is_dead(self, now_ms: int) -> bool:
        """True if it is no longer accepted."""
        return 0 < self.dead_ms <= now_ms


def slot_of(namespace: str, key: str) -> str:
    """Return the slot of a key: 16 bytes of hash, so that grinding two keys into one is hard."""
    return hashlib.sha256(f"{namespace}\0{key}".encode()).hexdigest()[:32]


def seal(entry: Entry, signer: Signer) -> Record:
    """Sign an entry of our own. Raises UsageError if it is over a limit of its type."""
    body = codec.encode(entry)
    try:
        return unseal(Signed(body, signer.sign(TAG, body)))
    except BadMessage as error:
        raise UsageError(f"the store cannot take {entry.key!r}: {error}") from error


def unseal(signed: Signed) -> Record:
    """Decode what arrived; `is_signed` is a separate, dear step. Raises BadMessage."""
    entry = codec.decode(signed.body, _decoder, BODY_MAX)
    if codec.encode(entry) != signed.body:
        raise BadMessage(f"entry {entry.key!r} is not in canonical form")
    stranger = foreign_owner(entry)
    if stranger is not None:
        raise BadMessage(f"{entry.author} may not write {entry.key!r} of @{stranger}")
    return Record(entry, signed)


def is_signed(record: Record) -> bool:
    """Check the author's signature (about 60 µs)."""
    return verify(record.entry.author, TAG, record.signed.body, record.signed.signature)


def foreign_owner(entry: Entry) -> str | None:
    """The owner rule: a key with a segment `@PEER` is written by that peer only.

    Returns the owner that the author is not, or None.
    """
    for segment in entry.key.split("/"):
        if segment.startswith("@") and segment[1:] != entry.author:
            return segment[1:]
    return None
