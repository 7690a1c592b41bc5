"""The requests about the store: what the two clients send. No I/O."""

import math
import os
import re
from dataclasses import dataclass
from typing import Generic, TypeVar, cast
from urllib.parse import quote, urlencode

from shoal.blob_api import BLOB_TIMEOUT_S
from shoal.errors import UsageError
from shoal.rpc_api import to_json
from shoal.store_api import (
    KEY_MAX,
    TTL_MAX_S,
    AddElement,
    CheckProof,
    Grant,
    Increment,
    Named,
    Namespace,
    NewGrant,
    NewNamespace,
    PutFile,
    PutValue,
    Snapshot,
    StoreItem,
    StoreLine,
    StorePage,
    StoreTotal,
    Synced,
    SyncPeer,
    TakeSnapshot,
    Verdict,
)

R = TypeVar("R")

ASK_TIMEOUT_S = 30.0  # seconds; a write is durable within milliseconds
SYNC_TIMEOUT_S = 600.0  # a first sync may bring all there is
_ROOT = "/v1/store"
_KEY = re.compile(rf"[!-~]{{1,{KEY_MAX}}}")


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
    parts = [_ROOT, *(quote(each, safe="", errors="replace") for each in (namespace, *more))]
    return "/".join(parts) + (f"?{urlencode(query, errors='replace')}" if query else "")


def key_path(namespace: str, key: str, *more: str) -> str:
    """Return the route of a key. Raises UsageError for what is none."""
    if not _KEY.fullmatch(key):
        hint = f"a key is 1 to {KEY_MAX} printable ASCII characters without space"
        raise UsageError(f"{key[:64]!a} is no key", hint=hint)
    return space_path(namespace, "keys", key, *more)


def as_json(value: object) -> object:
    """Return a value as JSON holds it. Raises UsageError for what would arrive otherwise."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case bytes():
            return to_json(value)
        case list() | tuple():
            return [as_json(each) for each in cast(list[object], value)]
        case dict() if all(isinstance(key, str) for key in cast(dict[object, object], value)):
            return {key: as_json(each) for key, each in cast(dict[str, object], value).items()}
        case _:
            what = repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
            raise UsageError(
                f"the store cannot hold {what}",
                hint="it can: None, bool, int, finite float, str, bytes, lists, dicts by str",
            )


def _ttl(ttl_s: float | None) -> float | None:
    if ttl_s is not None and not 0 < ttl_s <= TTL_MAX_S:
        raise UsageError(
            f"a lease of {ttl_s:g} s", hint=f"more than 0, at most {TTL_MAX_S / 3600:.0f} h"
        )
    return ttl_s


def get(namespace: str, key: str) -> Ask[StoreItem]:
    """Ask what a key shows."""
    return Ask("GET", key_path(namespace, key), StoreItem)


def put(
    namespace: str, key: str, value: object, ttl_s: float | None, *, multi: bool
) -> Ask[StoreItem]:
    """Ask to write a value."""
    body = PutValue(as_json(value), _ttl(ttl_s), multi)
    return Ask("PUT", key_path(namespace, key), StoreItem, body, BLOB_TIMEOUT_S)


def put_file(
    namespace: str, key: str, path: str | os.PathLike[str], ttl_s: float | None
) -> Ask[StoreItem]:
    """Ask to write a file, as seen from the caller's folder."""
    body = PutFile(os.path.abspath(path), _ttl(ttl_s))
    return Ask("PUT", key_path(namespace, key, "file"), StoreItem, body, BLOB_TIMEOUT_S)


def increment(namespace: str, key: str, by: int) -> Ask[StoreTotal]:
    """Ask to count."""
    return Ask("POST", key_path(namespace, key, "increment"), StoreTotal, Increment(by))


def add(namespace: str, key: str, element: object, value: object) -> Ask[StoreItem]:
    """Ask to put an element in."""
    body = AddElement(as_json(element), as_json(value))
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


def check(proof: bytes, namespace: str, root: str) -> Ask[Verdict]:
    """Ask what a proof shows."""
    return Ask("POST", f"{_ROOT}/verify", Verdict, CheckProof(proof, namespace, root))


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


def revoke(namespace: str, grant_id: str, discard: bool) -> Ask[Named]:
    """Ask to take a grant back."""
    path = space_path(namespace, "grants", grant_id)
    return Ask("DELETE", f"{path}?discard=1" if discard else path, Named)


def snapshot(path: str | os.PathLike[str]) -> Ask[Snapshot]:
    """Ask for a copy of the store at a path, as seen from the caller's folder."""
    body = TakeSnapshot(os.path.abspath(path))
    return Ask("POST", f"{_ROOT}/snapshot", Snapshot, body, SYNC_TIMEOUT_S)
