"""Valid entries of any author, for tests: chains that can also be made to lie."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from crdt.clock import stamp
from crdt.entry import (
    ADD,
    COUNTER,
    GRANT,
    LEASE,
    MULTI,
    NO_LINK,
    REGISTER,
    REMOVE,
    REVOKE,
    BlobRef,
    Counted,
    Dot,
    Entry,
    Record,
    Signed,
    chain_of,
    seal,
    unseal,
)
from crdt.namespace import Genesis, Grant, Revoke, Rules, open_genesis
from wire import codec
from wire.ids import Signer, public_key_of

NOW_MS = 1_800_000_000_000
OPEN = open_genesis("runs")


def signer(number: int) -> Signer:
    """One of many fixed identities."""
    return Signer(hashlib.sha256(f"author {number}".encode()).digest())


def key_of(number: int) -> bytes:
    """The public key of an identity."""
    return public_key_of(signer(number).peer)


def listed(owner: int = 0, rules: Rules | None = None) -> Genesis:
    """A namespace whose writers are listed."""
    return Genesis(1, "listed", key_of(owner), "list", b"", rules or Rules())


def dot(record: Record) -> Dot:
    """Everything of a record's chain up to it."""
    return Dot(record.chain, record.seq)


@dataclass
class Chain:
    """An author's next entry in a namespace. Every write takes `ms` (from `NOW_MS`) for its clock;
    without it, a millisecond after the one before. `seq`, `prev` and `hlc` may be set to lie.
    """

    author: int = 1
    namespace: bytes = OPEN.id
    instance: int = 1
    seq: int = 0
    prev: bytes = NO_LINK
    ms: int = -1

    def __post_init__(self) -> None:
        self.signer = signer(self.author)
        self.key = public_key_of(self.signer.peer)

    @property
    def id(self) -> bytes:
        """The chain's name."""
        return chain_of(self.key, self.instance.to_bytes(8))

    def fork(self) -> "Chain":
        """Another line that goes on from here: writing in both is the fault."""
        return Chain(self.author, self.namespace, self.instance, self.seq, self.prev, self.ms)

    def write(
        self,
        kind: int,
        key: str,
        *,
        ms: int | None = None,
        hlc: int | None = None,
        element: bytes = b"",
        seen: Sequence[Dot] = (),
        value: bytes | None = None,
        blob: BlobRef | None = None,
        expires_ms: int = 0,
        grant: bytes | None = None,
    ) -> Record:
        """Write any entry, as the chain's next."""
        self.seq += 1
        self.ms = self.ms + 1 if ms is None else ms
        entry = Entry(
            1,
            self.namespace,
            self.key,
            self.instance.to_bytes(8),
            self.seq,
            self.prev,
            stamp(NOW_MS + self.ms) if hlc is None else hlc,
            kind,
            key,
            element,
            tuple(seen),
            value,
            blob,
            expires_ms,
            grant,
        )
        record = seal(entry, self.signer)
        self.prev = record.link
        return record

    def put(
        self, key: str, value: object = 1, *, ms: int | None = None, grant: bytes | None = None
    ) -> Record:
        """Set a register."""
        return self.write(REGISTER, key, ms=ms, value=codec.encode(value), grant=grant)

    def delete(self, key: str, *, ms: int | None = None) -> Record:
        """Delete a key."""
        return self.write(REGISTER, key, ms=ms)

    def lease(self, key: str, ttl_ms: int, value: object = 1, *, ms: int | None = None) -> Record:
        """Take a lease that expires `ttl_ms` after it is written."""
        start_ms = NOW_MS + (self.ms + 1 if ms is None else ms)
        raw = codec.encode(value)
        return self.write(LEASE, key, ms=ms, value=raw, expires_ms=start_ms + ttl_ms)

    def multi(
        self, key: str, value: object, seen: Sequence[Dot] = (), *, ms: int | None = None
    ) -> Record:
        """Write a multi-value register; None deletes what was seen."""
        raw = None if value is None else codec.encode(value)
        return self.write(MULTI, key, ms=ms, seen=seen, value=raw)

    def count(
        self, key: str, plus: int, minus: int = 0, base: tuple[int, int] = (0, 0),
        *, ms: int | None = None,
    ) -> Record:  # fmt: skip
        """Say what this chain has counted so far."""
        return self.write(COUNTER, key, ms=ms, value=codec.encode(Counted(plus, minus, *base)))

    def add(
        self, key: str, element: object, value: object = None, *, ms: int | None = None
    ) -> Record:
        """Add an element to a set, or to a map if it has a value."""
        raw = None if value is None else codec.encode(value)
        return self.write(ADD, key, ms=ms, element=codec.encode(element), value=raw)

    def remove(
        self, key: str, element: object, seen: Sequence[Dot], *, ms: int | None = None
    ) -> Record:
        """Remove what was seen of an element."""
        return self.write(REMOVE, key, ms=ms, element=codec.encode(element), seen=seen)

    def grant(self, grant: Grant, *, ms: int | None = None, under: bytes | None = None) -> Record:
        """Grant, or hand a grant on."""
        return self.write(GRANT, "grant", ms=ms, value=codec.encode(grant), grant=under)

    def revoke(
        self, grant: bytes, kept: Sequence[Dot] = (), *, ms: int | None = None,
        under: bytes | None = None,
    ) -> Record:  # fmt: skip
        """Take a grant back, all but what is kept."""
        raw = codec.encode(Revoke(grant, tuple(kept)))
        return self.write(REVOKE, "revoke", ms=ms, value=raw, grant=under)


def unsigned(record: Record) -> Record:
    """The same entry as it travels within a run: not checked by itself."""
    return unseal(record.signed)


def missigned(record: Record) -> Record:
    """The same entry with a signature that is wrong."""
    return unseal(Signed(record.signed.body, bytes(64)))
