"""What the store tells its users: plain values, no bytes to be checked."""

from dataclasses import dataclass, field

from crdt.entry import BlobRef
from crdt.namespace import Rules
from wire.ids import PeerId


@dataclass(frozen=True)
class Shown:
    """What a key shows.

    kind: "register", "lease", "multi", "counter", "set" or "map".
    value: of a register or lease, the value (None where there is a `blob`); of a multi-value
    register, the list of values; of a counter, the total; of a set, the list of elements; of a
    map, the list of pairs [element, value].
    author, hlc, expires_ms: of the latest entry that counts.
    entries: how many entries make it up.
    """

    namespace: str
    key: str
    kind: str
    value: object
    author: PeerId
    hlc: int
    expires_ms: int = 0
    blob: BlobRef | None = None
    entries: int = 1


@dataclass(frozen=True)
class LogLine:
    """One entry that is retained. `counts`: it is allowed and not cut off by a proof; readers see
    it or its effect unless something later hides it. is_tombstone: it deletes the key.
    """

    id: bytes
    author: PeerId
    instance: bytes
    seq: int
    hlc: int
    kind: str
    key: str
    element: object
    value: object
    blob: BlobRef | None
    expires_ms: int
    counts: bool
    size: int
    is_tombstone: bool = False


@dataclass(frozen=True)
class NamespaceInfo:
    """A namespace and what it holds here. `size` is in bytes of entries."""

    id: bytes
    name: str
    owner: PeerId | None
    write: str
    rules: Rules
    entries: int
    size: int
    root: bytes
    faults: int
    authors: int
    is_built_in: bool


@dataclass(frozen=True)
class GrantInfo:
    """A grant in a namespace whose writers are listed. `above` is the grant it hands on."""

    id: bytes
    issuer: PeerId
    subject: PeerId
    prefix: str
    kinds: int
    not_before_ms: int
    not_after_ms: int
    depth: int
    is_revoked: bool
    above: bytes | None


@dataclass
class SyncReport:
    """What one sync moved. Bytes are of the messages, without the entries in them."""

    round_trips: int = 0
    entries_in: int = 0
    entries_out: int = 0
    overhead_bytes: int = 0


@dataclass(frozen=True)
class StoreStats:
    """Counts since the start, and what is held now."""

    entries: int
    namespaces: int
    syncs: int
    syncs_failed: int
    entries_in: int
    entries_out: int
    malformed_values: int
    news_dropped: int
    deferred: int
    faults: int
    clock_skew_ms: int  # of this clock against the median of those of peers; 0 if fewer than 3
    is_writable: bool  # False while the disk is full
    damaged: int  # rows of the file that were no entries any more when it was opened
    refused: dict[str, int] = field(default_factory=dict[str, int])
