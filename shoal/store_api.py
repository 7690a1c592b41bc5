"""What the daemon says of the store: the JSON of `--json`, and the bodies of requests. Fields stay.

Fields may be added; none is renamed or changes its meaning within /v1. Values are what JSON holds;
bytes in them are written as {"$base64": "aGk="} and are bytes in the Python clients.
"""

from typing import Any, TypeVar

import msgspec

from shoal.rpc_api import from_json, to_json

DEFAULT = "kv"  # the namespace of whoever names none: everybody in the swarm writes
PAGE_MAX = 1000  # keys of one answer; a client asks again for more
BYTES_MAX = 6_000_000  # of one value: base64 in JSON, it is a request of up to 8 MiB
PROOF_MAX = 1024 * 1024  # bytes; a plain key takes 2 kB
KEY_MAX = 256  # printable ASCII characters without space
TTL_MAX_S = 365 * 86_400.0  # of a lease; what should stay longer is none


class _Shape(msgspec.Struct, frozen=True):
    """Common options: immutable; unknown fields of newer daemons are ignored."""


class PutValue(_Shape, frozen=True):
    """Write a value. `ttl_s` makes it a lease that dies; `multi` keeps what others write at the
    same time beside it. Over 2 KiB it goes as a blob: bytes as they are, text as UTF-8, the rest
    as JSON.
    """

    value: Any
    ttl_s: float | None = None
    multi: bool = False


class PutFile(_Shape, frozen=True):
    """Write a file at an absolute path of the daemon's machine, of any size, as a blob."""

    path: str
    ttl_s: float | None = None


class Increment(_Shape, frozen=True):
    """Add to a counter, or take from it."""

    by: int = 1


class AddElement(_Shape, frozen=True):
    """Put an element into a set, or with a value an entry into a map."""

    element: Any
    value: Any = None


class RemoveElement(_Shape, frozen=True):
    """Take an element out of a set or map."""

    element: Any


class StoreItem(_Shape, frozen=True):
    """What a key shows.

    kind: register, lease, multi, counter, set or map. value: of a register or lease, the value
    (null where `cid` names the blob that holds it); multi: the list of values; counter: the total;
    set: the list of elements; map: the list of pairs. author, name, written_ms: of the latest
    entry. expires_ms: of a lease, else 0. entries: how many make it up.
    """

    namespace: str
    key: str
    kind: str
    value: Any
    author: str
    name: str
    hlc: int
    written_ms: int
    expires_ms: int = 0
    cid: str = ""
    blob_bytes: int = 0
    entries: int = 1


class StorePage(_Shape, frozen=True):
    """Keys in order. `next`: ask again with ?after= it; "" if that was all."""

    items: list[StoreItem]
    next: str = ""


class StoreChange(_Shape, frozen=True):
    """A key that changed, and what it shows now; null if it is gone.

    A reader that is slow gets each changed key once, with what it shows when it is read.
    """

    key: str
    item: StoreItem | None = None


class StoreTotal(_Shape, frozen=True):
    """What a counter stands at."""

    value: int


class StoreLine(_Shape, frozen=True):
    """One entry that is kept. chain: author and start of its daemon; seq: its number there.

    kind: register, lease, multi, counter, add, remove, grant or revoke. value: of a counter, what
    its chain has added and taken, and how much of both was there when the key was last deleted; of
    grants and revocations, as docs/protocols/store.md has them. counts: false for what no reader
    ever sees: not allowed any more, or of a chain that was caught. deleted: it deletes the key.
    """

    id: str
    author: str
    name: str
    instance: str
    seq: int
    hlc: int
    written_ms: int
    kind: str
    key: str
    element: Any
    value: Any
    cid: str
    blob_bytes: int
    expires_ms: int
    counts: bool
    entry_bytes: int
    deleted: bool = False


class NewNamespace(_Shape, frozen=True):
    """Make a namespace of our own. write: open, owner (each its own keys), or list (by grants).

    clock_bound_s: how far ahead an author's clock may be. author_entries: how much one author may
    hold. keep_s: how long a deletion is remembered. None can be changed later: the ID says them.
    """

    name: str
    write: str = "open"
    clock_bound_s: float = 30.0
    author_entries: int = 10_000
    keep_s: float = 7 * 86_400.0


class Namespace(_Shape, frozen=True):
    """A namespace and what of it is here. `root`: equal where the state is equal.

    faults: chains of authors that were caught breaking the rules.
    """

    id: str
    name: str
    owner: str
    owner_name: str
    write: str
    clock_bound_s: float
    author_entries: int
    keep_s: float
    entries: int
    size_bytes: int
    authors: int
    faults: int
    root: str
    built_in: bool


class NewGrant(_Shape, frozen=True):
    """Let a peer write: keys with a prefix, of some kinds (all if none), within some time.

    from_ms, until_ms: wall clock; 0 is no bound. depth: how often it may hand that on.
    """

    peer: str
    prefix: str = ""
    kinds: list[str] = []
    from_ms: int = 0
    until_ms: int = 0
    depth: int = 0


class Grant(_Shape, frozen=True):
    """A grant. `above`: the one that it hands on, or ""."""

    id: str
    issuer: str
    issuer_name: str
    subject: str
    subject_name: str
    prefix: str
    kinds: list[str]
    from_ms: int
    until_ms: int
    depth: int
    revoked: bool
    above: str


class Named(_Shape, frozen=True):
    """The ID of what was written."""

    id: str


class SyncPeer(_Shape, frozen=True):
    """Sync with this peer; with all that are connected if it is ""."""

    peer: str = ""


class Synced(_Shape, frozen=True):
    """What a sync with a peer moved. overhead_bytes: of messages, without the entries in them.

    error: why it failed.
    """

    peer: str
    name: str
    round_trips: int = 0
    entries_in: int = 0
    entries_out: int = 0
    overhead_bytes: int = 0
    error: str = ""


class CheckProof(_Shape, frozen=True):
    """Check a proof by the ID of its namespace (64 hex digits), or by the name of one here.

    root: the state root that it must be about, in hex; "" is any.
    """

    proof: bytes
    namespace: str
    root: str = ""


class Verdict(_Shape, frozen=True):
    """What a proof that holds shows. item: null if the key shows nothing.

    namespace: its ID. root: of the state that it is about, which the attester says was its own.
    """

    namespace: str
    name: str
    owner: str
    key: str
    item: StoreItem | None
    root: str
    attester: str
    attested_ms: int
    proven: list[str]
    not_proven: list[str]


class TakeSnapshot(_Shape, frozen=True):
    """Write a consistent copy of the store to an absolute path of the daemon's machine."""

    path: str


class Snapshot(_Shape, frozen=True):
    """The copy."""

    path: str
    size_bytes: int


# --- bytes in values ----------------------------------------------------------------------------

Valued = TypeVar("Valued", StoreItem, StoreLine)


def with_bytes(item: Valued) -> Valued:
    """Return an answer with the bytes in its values as bytes."""
    if isinstance(item, StoreLine):
        element, value = from_json(item.element), from_json(item.value)
        return msgspec.structs.replace(item, element=element, value=value)
    return msgspec.structs.replace(item, value=from_json(item.value))


def with_base64(item: Valued) -> Valued:
    """Return it as JSON can hold it."""
    if isinstance(item, StoreLine):
        element, value = to_json(item.element), to_json(item.value)
        return msgspec.structs.replace(item, element=element, value=value)
    return msgspec.structs.replace(item, value=to_json(item.value))
