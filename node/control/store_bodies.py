"""What the routes of the store take: the requests of `shoal.store_api` with their bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from crdt.namespace import DAY_MS, GRANT_DEPTH_MAX, Name, Write
from crdt.proof import PROOF_MAX
from shoal.store_api import TTL_MAX_S

COUNT_MAX = 2**53  # of one step of a counter: what any JSON can hold

_Ttl = Annotated[float, Meta(gt=0, le=TTL_MAX_S)]
_Path = Annotated[str, Meta(min_length=1, max_length=4096)]  # what Linux takes
_Peer = Annotated[str, Meta(min_length=1, max_length=128)]
_GrantKind = Literal["register", "add", "remove", "counter", "multi", "lease"]
_Millis = Annotated[int, Meta(ge=0, le=2**53)]


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


class PutBody(msgspec.Struct):
    """`shoal.store_api.PutValue` with its bounds; the body's own limit bounds the value."""

    value: msgspec.Raw
    ttl_s: _Ttl | None = None
    multi: bool = False


class IncrementBody(msgspec.Struct):
    """`shoal.store_api.Increment` with its bounds."""

    by: Annotated[int, Meta(ge=-COUNT_MAX, le=COUNT_MAX)] = 1


class AddBody(msgspec.Struct):
    """`shoal.store_api.AddElement`; the store bounds both."""

    element: msgspec.Raw
    value: msgspec.Raw = msgspec.field(default_factory=_null)


class RemoveBody(msgspec.Struct):
    """`shoal.store_api.RemoveElement`; the store bounds it."""

    element: msgspec.Raw


class NamespaceBody(msgspec.Struct):
    """`shoal.store_api.NewNamespace` with its bounds, those of `crdt.namespace.Rules`."""

    name: Name
    write: Write = "open"
    clock_bound_s: Annotated[float, Meta(ge=1, le=600)] = 30.0
    author_entries: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    keep_s: Annotated[float, Meta(ge=3600, le=365 * DAY_MS / 1000)] = 7 * DAY_MS / 1000


class GrantBody(msgspec.Struct):
    """`shoal.store_api.NewGrant` with its bounds."""

    peer: _Peer
    prefix: Annotated[str, Meta(max_length=256)] = ""
    kinds: Annotated[list[_GrantKind], Meta(max_length=16)] = []
    from_ms: _Millis = 0
    until_ms: _Millis = 0
    depth: Annotated[int, Meta(ge=0, le=GRANT_DEPTH_MAX)] = 0


class SyncBody(msgspec.Struct):
    """`shoal.store_api.SyncPeer` with its bounds."""

    peer: Annotated[str, Meta(max_length=128)] = ""


class CheckBody(msgspec.Struct):
    """`shoal.store_api.CheckProof` with its bounds."""

    proof: Annotated[bytes, Meta(max_length=PROOF_MAX)]
    namespace: Annotated[str, Meta(min_length=1, max_length=256)]
    root: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


class SnapshotBody(msgspec.Struct):
    """`shoal.store_api.TakeSnapshot` with its bounds."""

    path: _Path


class FileBody(msgspec.Struct):
    """`shoal.store_api.PutFile` with its bounds."""

    path: _Path
    ttl_s: _Ttl | None = None
