"""One signed write: its canonical bytes, its names, its signature.

The bytes that are signed are the bytes that travel and rest: an entry that does not re-encode to
exactly what arrived is refused, so that one entry has one name. The entries that an author writes
in one namespace from one start of its daemon (an instance) form a chain: each names the one before
it. Format: docs/protocols/store.md.
"""

import hashlib
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from crdt.clock import HLC_MAX
from wire import codec
from wire.codec import Message
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId, Signer, peer_id_of, verify_plain

VALUE_MAX = 2048  # bytes of encoded value; what is larger is a blob and goes by reference
KEY_MAX = 256  # bytes: two peer IDs and two names
ELEMENT_MAX = 256  # bytes of an encoded element of a set, or sub-key of a map
SEEN_MAX = 64  # chains that one entry may say it has seen
BODY_MAX = 4096  # bytes: a full value, key and element, and 64 dots of 22 bytes
TAG = "crdt/entry/1"
REGISTER, ADD, REMOVE, COUNTER, MULTI, LEASE = 1, 2, 3, 4, 5, 6
GRANT, REVOKE = 16, 17
KINDS = {
    REGISTER: "register",
    ADD: "add",
    REMOVE: "remove",
    COUNTER: "counter",
    MULTI: "multi",
    LEASE: "lease",
    GRANT: "grant",
    REVOKE: "revoke",
}
NO_LINK = bytes(32)  # the `prev` of the first entry of a chain

KeyText = Annotated[str, Meta(pattern=rf"^[!-~]{{1,{KEY_MAX}}}\Z")]  # printable ASCII, no space
Stamp = Annotated[int, Meta(ge=0, le=HLC_MAX)]
Seq = Annotated[int, Meta(ge=1, le=HLC_MAX)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
ChainId = Annotated[bytes, Meta(min_length=16, max_length=16)]
InstanceId = Annotated[bytes, Meta(min_length=8, max_length=8)]


class Dot(Message, frozen=True):
    """Every entry of a chain up to this one."""

    chain: ChainId
    seq: Seq


class BlobRef(Message, frozen=True):
    """A value that rests as a blob."""

    cid: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9]{1,128}\Z")]
    size: Annotated[int, Meta(ge=0, le=HLC_MAX)]


class Counted(Message, frozen=True):
    """The value of a counter entry: what its chain has added and taken so far at this key, and
    how much of both was there already when the key was last deleted.
    """

    plus: Stamp
    minus: Stamp
    base_plus: Stamp = 0
    base_minus: Stamp = 0

    @property
    def total(self) -> int:
        """What the chain contributes."""
        return self.plus - self.base_plus - (self.minus - self.base_minus)


class Entry(Message, frozen=True):
    """What is signed. `value` is MessagePack. A register or multi-value entry with neither value
    nor blob is a tombstone. `expires_ms` is wall clock; 0 is never.
    """

    version: Annotated[int, Meta(ge=1, le=1)]
    namespace: Hash
    author: Hash  # Ed25519 public key
    instance: InstanceId
    seq: Seq
    prev: Hash
    hlc: Stamp
    kind: Annotated[int, Meta(ge=REGISTER, le=REVOKE)]
    key: KeyText
    element: Annotated[bytes, Meta(max_length=ELEMENT_MAX)] = b""
    seen: Annotated[tuple[Dot, ...], Meta(max_length=SEEN_MAX)] = ()
    value: Annotated[bytes, Meta(max_length=VALUE_MAX)] | None = None
    blob: BlobRef | None = None
    expires_ms: Stamp = 0
    grant: Hash | None = None  # the id of the grant entry that allows this one

    @property
    def is_tombstone(self) -> bool:
        """True if it says that the key holds nothing."""
        return self.value is None and self.blob is None


class Signed(Message, frozen=True):
    """An entry as it travels."""

    body: Annotated[bytes, Meta(max_length=BODY_MAX)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Kept(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry that `unseal` took before it was written: only what a record has is decoded."""

    version: int
    namespace: Hash
    author: Hash
    instance: InstanceId
    seq: Seq
    prev: Hash
    hlc: Stamp
    kind: int
    key: str
    element: bytes
    seen: msgspec.Raw
    value: bytes | None
    blob: msgspec.Raw
    expires_ms: int

    @property
    def is_tombstone(self) -> bool:
        """True if it says that the key holds nothing."""
        return self.value is None and self.blob == _NIL


_NIL = codec.encode(None)
_decoder = msgspec.msgpack.Decoder(Entry)
_kept_decoder = msgspec.msgpack.Decoder(Kept)
counted_decoder = msgspec.msgpack.Decoder(Counted)


class Record(msgspec.Struct, gc=False, eq=False):
    """A decoded entry with the bytes that prove it. A hundred thousand of them are held: what is
    asked often has a field, the rest is decoded again.

    stamp: 40 bytes, hlc (8, big-endian) and id (32); sorts by time, and the last writer wins by it.
    """

    signed: Signed
    stamp: bytes
    namespace: bytes
    author: bytes
    chain: bytes
    seq: int
    kind: int
    key: str
    element: bytes
    expires_ms: int
    is_tombstone: bool
    is_checked: bool = False  # the author's own signature over it was verified
    row: int = 0  # where it rests on the disk; 0 is nowhere

    @property
    def id(self) -> bytes:
        """SHA-256 of the signed bytes."""
        return self.stamp[8:]

    @property
    def hlc(self) -> int:
        """When it was written, as its author says."""
        return int.from_bytes(self.stamp[:8])

    @property
    def wall_ms(self) -> int:
        """Milliseconds of `hlc`: all of it but the counter."""
        return int.from_bytes(self.stamp[:6])

    @property
    def entry(self) -> Entry:
        """Everything it says."""
        return _decoder.decode(self.signed.body)

    @property
    def peer(self) -> PeerId:
        """Its author."""
        return peer_of(self.author)

    @property
    def link(self) -> bytes:
        """What the next entry of the chain names: SHA-256 over body and signature."""
        return hashlib.sha256(self.signed.body + self.signed.signature).digest()

    @property
    def size(self) -> int:
        """Bytes that it takes, signature included."""
        return len(self.signed.body) + len(self.signed.signature)


@lru_cache(maxsize=4096)
def peer_of(author: bytes) -> PeerId:
    """Return the peer ID of a public key."""
    return peer_id_of(author)


@lru_cache(maxsize=4096)
def chain_of(author: bytes, instance: bytes) -> bytes:
    """Name the chain of an instance: 16 bytes, so that nobody grinds another's name."""
    return hashlib.sha256(b"crdt/chain/1\0" + author + instance).digest()[:16]


@lru_cache(maxsize=4096)
def _one(name: bytes) -> bytes:
    """Return one object for all that are equal: an author is held once, not per entry."""
    return name


def seal(entry: Entry, signer: Signer) -> Record:
    """Sign an entry of our own. Raises UsageError if it is over a limit of its type."""
    body = codec.encode(entry)
    try:
        record = unseal(Signed(body, signer.sign(TAG, body)))
    except BadMessage as error:
        raise UsageError(f"the store cannot take {entry.key!r}: {error}") from error
    record.is_checked = True
    return record


def finish(record: Record, body: bytes, signer: Signer) -> None:
    """Sign an entry of our own that was decoded before its body was complete."""
    record.signed = Signed(body, signer.sign(TAG, body))
    record.stamp = record.stamp[:8] + hashlib.sha256(body).digest()
    record.is_checked = True


def unseal(signed: Signed) -> Record:
    """Decode what arrived; `is_signed` is a separate, dear step. Raises BadMessage."""
    body = signed.body
    entry = codec.decode(body, _decoder, BODY_MAX)
    if codec.encode(entry) != body:
        raise BadMessage(f"entry {entry.key!r} is not in canonical form")
    problem = _malformation(entry)
    if problem:
        raise BadMessage(f"entry {entry.key!r}: {problem}")
    return _record(signed, entry)


def read_back(signed: Signed) -> Record:
    """Decode what `unseal` took before it was written, and a checksum says is the same: its form
    is not checked again, which saves half. Raises BadMessage.
    """
    return _record(signed, codec.decode(signed.body, _kept_decoder, BODY_MAX))


def _record(signed: Signed, entry: Entry | Kept) -> Record:
    body = signed.body
    stamp = entry.hlc.to_bytes(8) + hashlib.sha256(body).digest()
    return Record(
        signed,
        stamp,
        _one(entry.namespace),
        _one(entry.author),
        chain_of(entry.author, entry.instance),
        entry.seq,
        entry.kind,
        entry.key,
        entry.element,
        entry.expires_ms,
        entry.is_tombstone,
    )


def counted_of(record: Record) -> Counted:
    """Return what a counter entry has counted."""
    return codec.decode(record.entry.value or b"", counted_decoder, VALUE_MAX)


def is_signed(record: Record) -> bool:
    """Check the author's own signature (about 45 µs) unless that was done."""
    if not record.is_checked:
        message = _TAG_PREFIX + record.id
        record.is_checked = verify_plain(record.author, message, record.signed.signature)
    return record.is_checked


_TAG_PREFIX = TAG.encode() + b"\0"


def _malformation(entry: Entry) -> str:
    """Say what is wrong with the shape of an entry of its kind; "" if nothing."""
    kind = entry.kind
    if kind not in KINDS:
        return f"kind {kind} is unknown"
    if (entry.seq == 1) != (entry.prev == NO_LINK):
        return "the first entry of a chain, and no other, has no predecessor"
    if (entry.expires_ms > 0) != (kind == LEASE):
        return "a lease, and nothing else, expires"
    if entry.element and kind not in (ADD, REMOVE):
        return "only sets have elements"
    if entry.seen and kind not in (REMOVE, MULTI):
        return "only removes and multi-value entries name what they have seen"
    if entry.value is not None and entry.blob is not None:
        return "both a value and a blob"
    if kind in (LEASE, COUNTER, GRANT, REVOKE) and entry.is_tombstone:
        return "no value"
    if kind in (REMOVE, COUNTER, GRANT, REVOKE) and entry.blob is not None:
        return "a blob where none belongs"
    if kind == REMOVE and (entry.value is not None or not entry.seen):
        return "a remove names what it has seen, and has no value"
    if kind == COUNTER:
        counted = codec.decode(entry.value or b"", counted_decoder, VALUE_MAX)
        if counted.base_plus > counted.plus or counted.base_minus > counted.minus:
            return "a counter below its base"
    stranger = foreign_owner(entry.key, entry.author)
    return f"{peer_of(entry.author)} may not write the key of @{stranger}" if stranger else ""


def foreign_owner(key: str, author: bytes) -> str:
    """The owner rule: a key with a segment `@PEER` is written by that peer only.

    Returns the owner that the author is not, or "".
    """
    if "@" not in key:
        return ""
    peer = peer_of(author)
    for segment in key.split("/"):
        if segment.startswith("@") and segment[1:] != peer:
            return segment[1:]
    return ""
