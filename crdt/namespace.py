"""A namespace: a named part of the store whose ID commits to its rules.

Whoever knows the ID can check the rules, and by them every entry: all replicas hold the same
limits. A namespace whose writers are listed has an owner, who grants and revokes.
"""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from crdt.entry import Dot, Hash, Stamp
from wire import codec
from wire.codec import Message

DAY_MS = 24 * 3600 * 1000
GENESIS_MAX = 512  # bytes
GRANT_DEPTH_MAX = 3  # how far a grant may be handed on
GRANT_CHAINS_MAX = 64  # chains that a revocation lets stand
TAG = b"crdt/ns/1\0"
Write = Literal["open", "owner", "list"]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.-]{0,63}\Z")]


class Rules(Message, frozen=True):
    """What every replica of a namespace holds its authors to.

    max_skew_ms: how far ahead of a replica's clock an entry may be.
    author_entries: entries that one author may have in it; of more, the oldest fall off.
    gc_ms: how long a deletion is remembered. What lost to something newer goes after half of it.
    """

    max_skew_ms: Annotated[int, Meta(ge=1_000, le=600_000)] = 30_000
    author_entries: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    gc_ms: Annotated[int, Meta(ge=3_600_000, le=365 * DAY_MS)] = 7 * DAY_MS


class Genesis(Message, frozen=True):
    """How a namespace begins; its hash is the ID.

    write: "open", any member of the swarm; "owner", every author its own keys, those with a
    segment `@PEER`; "list", the owner and whom it granted it.
    salt: so that two namespaces of one name, or of two swarms, differ.
    """

    version: Annotated[int, Meta(ge=1, le=1)]
    name: Name
    owner: Hash | None
    write: Write
    salt: Annotated[bytes, Meta(max_length=32)] = b""
    rules: Rules = Rules()

    @property
    def id(self) -> bytes:
        """32 bytes."""
        return hashlib.sha256(TAG + codec.encode(self)).digest()


class Grant(Message, frozen=True):
    """The value of a grant entry: who may write what, and when. The entry's own `grant` is the
    one that allowed its author to grant; None if the owner wrote it.

    prefix: of the keys; "" is all. kinds: bit mask, 1 << kind; 0 is all but granting.
    not_before_ms, not_after_ms: wall clock of the entries' stamps; 0 is unbounded.
    depth: how often the subject may hand it on.
    """

    subject: Hash
    prefix: Annotated[str, Meta(max_length=256)] = ""
    kinds: Annotated[int, Meta(ge=0, le=0x3FFFF)] = 0
    not_before_ms: Stamp = 0
    not_after_ms: Stamp = 0
    depth: Annotated[int, Meta(ge=0, le=GRANT_DEPTH_MAX)] = 0


class Revoke(Message, frozen=True):
    """The value of a revocation: a grant, and what was written under it that still counts.

    What its chains hold beyond these dots does not count, whatever its stamps say, nor does what
    is later than the revocation, whatever its number. An author may have left numbers out: these
    it can still fill in, dated before the revocation.
    """

    grant: Hash
    kept: Annotated[tuple[Dot, ...], Meta(max_length=GRANT_CHAINS_MAX)] = ()


genesis_decoder = msgspec.msgpack.Decoder(Genesis)
grant_decoder = msgspec.msgpack.Decoder(Grant)
revoke_decoder = msgspec.msgpack.Decoder(Revoke)


def open_genesis(name: str, salt: bytes = b"") -> Genesis:
    """Return the namespace that the swarm's own state of this name lives in: everybody writes."""
    return Genesis(1, name, None, "open", salt)
