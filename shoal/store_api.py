"""What the daemon says of the store: the JSON of `--json`, and the requests. Fields stay.

Fields may be added; none is renamed or changes its meaning within /v1. Values are what JSON holds;
bytes in them are written as {"$base64": "aGk="} and are bytes in the Python clients.
"""

import os
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from shoal.blob_api import BLOB_TIMEOUT_S
from shoal.rpc_api import from_json, to_json

R = TypeVar("R")

DEFAULT = "kv"  # the namespace of whoever names none: everybody in the swarm writes
ASK_TIMEOUT_S = 30.0  # seconds; a write is durable within milliseconds
SYNC_TIMEOUT_S = 600.0  # a first sync may bring all there is
PAGE_MAX = 1000  # keys of one answer; a client asks again for more
BYTES_MAX = 6_000_000  # of one value: base64 in JSON, it is a request of up to 8 MiB
VALUE_BYTES = 2048  # of an encoded value; what is larger rests as a blob
_ROOT = "/v1/store"


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

    counts: whether readers see it or its effect. kind: register, lease, multi, counter, add,
    remove, grant or revoke.
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


# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask(Generic[R]):
    """One request, and the type of its answer: what the two clients send."""

    method: str
    path: str
    reply: type[R]
    body: object = None
    timeout_s: float = ASK_TIMEOUT_S


def space_path(namespace: str, *more: str, **query: object) -> str:
    """Return the route of a namespace, or of what is in it."""
    parts = [_ROOT, quote(namespace, safe=""), *(quote(each, safe="") for each in more)]
    return "/".join(parts) + (f"?{urlencode(query)}" if query else "")


def key_path(namespace: str, key: str, *more: str) -> str:
    """Return the route of a key."""
    return space_path(namespace, "keys", key, *more)


def get(namespace: str, key: str) -> Ask[StoreItem]:
    """Ask what a key shows."""
    return Ask("GET", key_path(namespace, key), StoreItem)


def put(
    namespace: str, key: str, value: object, ttl_s: float | None, *, multi: bool
) -> Ask[StoreItem]:
    """Ask to write a value."""
    body = PutValue(to_json(value), ttl_s, multi)
    return Ask("PUT", key_path(namespace, key), StoreItem, body, BLOB_TIMEOUT_S)


def increment(namespace: str, key: str, by: int) -> Ask[StoreTotal]:
    """Ask to count."""
    return Ask("POST", key_path(namespace, key, "increment"), StoreTotal, Increment(by))


def add(namespace: str, key: str, element: object, value: object) -> Ask[StoreItem]:
    """Ask to put an element in."""
    body = AddElement(to_json(element), to_json(value))
    return Ask("POST", key_path(namespace, key, "add"), StoreItem, body)


def page(namespace: str, prefix: str, after: str, limit: int) -> Ask[StorePage]:
    """Ask for the next keys."""
    path = space_path(namespace, "keys", prefix=prefix, after=after, limit=limit)
    return Ask("GET", path, StorePage)


def log(namespace: str, prefix: str, limit: int) -> Ask[list[StoreLine]]:
    """Ask for the latest entries."""
    return Ask("GET", space_path(namespace, "log", prefix=prefix, limit=limit), list[StoreLine])


def watch_path(namespace: str, prefix: str, *, now: bool) -> str:
    """Return the route of the event stream of changes."""
    return space_path(namespace, "watch", prefix=prefix, now=int(now))


def sync(peer: str) -> Ask[list[Synced]]:
    """Ask to sync."""
    return Ask("POST", f"{_ROOT}/sync", list[Synced], SyncPeer(peer), SYNC_TIMEOUT_S)


def prove(namespace: str, key: str) -> Ask[bytes]:
    """Ask for a proof."""
    return Ask("GET", key_path(namespace, key, "proof"), bytes)


def spaces() -> Ask[list[Namespace]]:
    """Ask for all namespaces."""
    return Ask("GET", _ROOT, list[Namespace])


def space(namespace: str) -> Ask[Namespace]:
    """Ask for one namespace."""
    return Ask("GET", space_path(namespace), Namespace)


def create(wanted: NewNamespace) -> Ask[Namespace]:
    """Ask for a new namespace."""
    return Ask("POST", _ROOT, Namespace, wanted)


def grants(namespace: str) -> Ask[list[Grant]]:
    """Ask for the grants of a namespace."""
    return Ask("GET", space_path(namespace, "grants"), list[Grant])


def grant(namespace: str, wanted: NewGrant) -> Ask[Named]:
    """Ask to let a peer write."""
    return Ask("POST", space_path(namespace, "grants"), Named, wanted)


def revoke(namespace: str, grant_id: str) -> Ask[Named]:
    """Ask to take a grant back."""
    return Ask("DELETE", space_path(namespace, "grants", grant_id), Named)


def snapshot(path: str | os.PathLike[str]) -> Ask[Snapshot]:
    """Ask for a copy of the store at a path, as seen from the caller's folder."""
    body = TakeSnapshot(os.path.abspath(path))
    return Ask("POST", f"{_ROOT}/snapshot", Snapshot, body, SYNC_TIMEOUT_S)
