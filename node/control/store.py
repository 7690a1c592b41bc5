"""The routes of the replicated store, under /v1/store: values, their history, proofs, and rules."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from crdt.entry import KINDS, VALUE_MAX
from crdt.namespace import Rules
from crdt.reader import LIST_MAX, LOG_MAX
from crdt.service import StoreService
from node.control.api import Api, Event, Events, Raw, Request
from node.control.blobs import absolute
from node.control.store_bodies import (
    AddBody,
    CheckBody,
    FileBody,
    GrantBody,
    IncrementBody,
    NamespaceBody,
    PutBody,
    RemoveBody,
    SnapshotBody,
    SyncBody,
)
from node.control.store_proofs import verdict
from node.control.store_values import small, split
from node.control.store_views import StoreViews
from protocols.blobs.service import BlobService
from shoal import store_api as shapes
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId

PAGE_BYTES = 1024 * 1024  # of one answer with many keys: 3 ms of encoding on the event loop

ID_DIGITS = 64  # of a whole ID
HEX = set("0123456789abcdef")

_NUMBER_OF = {name: number for number, name in KINDS.items()}


class StoreRoutes:
    """The handlers; each is one route."""

    def __init__(
        self,
        store: StoreService,
        blobs: BlobService,
        resolve: Callable[[str], PeerId],
        name_of: Callable[[PeerId], str],
    ) -> None:
        self._store, self._blobs, self._resolve = store, blobs, resolve
        self._views = StoreViews(name_of)

    # --- values ---------------------------------------------------------------------------------

    async def show(self, request: Request) -> shapes.StoreItem:
        """Show a key."""
        return self._item_at(*self._place(request))

    async def index(self, request: Request) -> shapes.StorePage:
        """List keys: as many as fit one answer."""
        limit = int(request.number("limit", LIST_MAX, least=1, most=LIST_MAX))
        prefix, after = request.query.get("prefix", ""), request.query.get("after", "")
        return await self._page(self._space(request), prefix, after, limit)

    async def put(self, request: Request) -> shapes.StoreItem:
        """Write a value; a large one goes as a blob."""
        namespace, key = self._place(request)
        body = request.read(PutBody)
        if body.multi and body.ttl_s is not None:
            raise UsageError("a lease cannot be one of several values")
        value, data = split(body.value)
        if data is not None:
            if body.multi:
                raise UsageError(
                    f"a value over {VALUE_MAX} B cannot be one of several",
                    hint="add it as a blob, and put its CID",
                )
            await self._store.put_bytes(namespace, key, data, ttl_s=body.ttl_s)
        elif body.multi:
            await self._store.put_multi(namespace, key, value)
        else:
            await self._store.put(namespace, key, value, ttl_s=body.ttl_s)
        return self._item_at(namespace, key)

    async def put_file(self, request: Request) -> shapes.StoreItem:
        """Write a file of this machine, of any size, as a blob."""
        namespace, key = self._place(request)
        body = request.read(FileBody)
        path = absolute(body.path)
        self._store.id_of(namespace)  # raises before the file is read
        await trio.to_thread.run_sync(_check_file, path)
        row = await self._blobs.add(path, name=key[:64], pin=True)
        await self._store.put_blob(namespace, key, row.cid, row.size_bytes, ttl_s=body.ttl_s)
        return self._item_at(namespace, key)

    async def delete(self, request: Request) -> None:
        """Delete a key that is there."""
        namespace, key = self._place(request)
        with suppress(BadMessage):  # a value that is none can be deleted, too
            self._item_at(namespace, key)
        await self._store.delete(namespace, key)

    async def increment(self, request: Request) -> shapes.StoreTotal:
        """Count."""
        by = request.read(IncrementBody).by
        return shapes.StoreTotal(await self._store.increment(*self._place(request), by))

    async def add(self, request: Request) -> shapes.StoreItem:
        """Put an element in."""
        namespace, key = self._place(request)
        body = request.read(AddBody)
        element, value = small(body.element, "element"), small(body.value, "value")
        await self._store.add(namespace, key, element, value)
        return self._item_at(namespace, key)

    async def remove(self, request: Request) -> None:
        """Take an element out that is there."""
        namespace, key = self._place(request)
        element = small(request.read(RemoveBody).element, "element")
        if not await self._store.remove(namespace, key, element):
            raise NotFound(f"no such element at {key[:64]!r} in {namespace}")

    async def log(self, request: Request) -> list[shapes.StoreLine]:
        """List entries, the latest first."""
        limit = int(request.number("limit", 100, least=1, most=LOG_MAX))
        prefix = request.query.get("prefix", "")
        lines = await self._store.log(self._space(request), prefix, limit=limit)
        return [self._views.line(line) for line in lines]

    async def watch(self, request: Request) -> Events:
        """Tell what changes; a namespace that is not there is said before the stream begins."""
        namespace = self._space(request)
        self._store.id_of(namespace)
        prefix, now = request.query.get("prefix", ""), request.number("now", 0, most=1) > 0
        return Events(self._changes(namespace, prefix, now=now))

    async def _changes(
        self, namespace: str, prefix: str, *, now: bool
    ) -> AsyncGenerator[Event | list[Event]]:
        async with self._store.watch(namespace, prefix) as keys:
            yield Event(None, name="ready")
            after: str | None = "" if now else None
            while after is not None:
                page = await self._page(namespace, prefix, after, LIST_MAX)
                if page.items:
                    yield [Event(shapes.StoreChange(item.key, item)) for item in page.items]
                after = page.next or None
            async for key in keys:
                yield Event(shapes.StoreChange(key, self._item_or_none(namespace, key)))

    # --- replicas and rules ---------------------------------------------------------------------

    async def prove(self, request: Request) -> Raw:
        """Prove what a key holds, or that it holds nothing."""
        proof = await self._store.prove(*self._place(request))
        return Raw(proof, "application/octet-stream")

    async def verify(self, request: Request) -> shapes.Verdict:
        """Check a proof, also of a namespace that is not here."""
        body = request.read(CheckBody)
        if len(body.namespace) == ID_DIGITS and not set(body.namespace) - HEX:
            namespace_id = bytes.fromhex(body.namespace)
        else:
            namespace_id = self._store.id_of(self._named(body.namespace))
        known = bytes.fromhex(body.root) or None
        return await trio.to_thread.run_sync(verdict, body.proof, namespace_id, known)

    async def sync(self, request: Request) -> list[shapes.Synced]:
        """Sync with one peer, or with all that are connected."""
        name = request.read(SyncBody).peer
        if name:
            peer = self._resolve(name)
            return [self._views.synced(peer, await self._store.sync_with(peer))]
        found = await self._store.sync_all()
        return [self._views.synced(peer, report) for peer, report in found.items()]

    async def snapshot(self, request: Request) -> shapes.Snapshot:
        """Write a copy of the store to a new file."""
        path = absolute(request.read(SnapshotBody).path)
        await trio.to_thread.run_sync(_check_free, path)
        await self._store.snapshot(path)
        size_bytes = (await trio.Path(path).stat()).st_size
        return shapes.Snapshot(str(path), size_bytes)

    async def spaces(self, _: Request) -> list[shapes.Namespace]:
        """List the namespaces that are replicated here."""
        await self._store.hash_ahead()
        return [self._views.namespace(info) for info in self._store.namespaces()]

    async def space(self, request: Request) -> shapes.Namespace:
        """Show one of them."""
        namespace = self._space(request)
        await self._store.hash_ahead(namespace)
        return self._views.namespace(self._store.namespace(namespace))

    async def create(self, request: Request) -> shapes.Namespace:
        """Make one of our own."""
        body = request.read(NamespaceBody)
        rules = Rules(
            max_skew_ms=round(body.clock_bound_s * 1000),
            author_entries=body.author_entries,
            gc_ms=round(body.keep_s * 1000),
        )
        info = await self._store.create_namespace(body.name, write=body.write, rules=rules)
        return self._views.namespace(info)

    async def grants(self, request: Request) -> list[shapes.Grant]:
        """List the grants of a namespace."""
        return [self._views.grant(info) for info in self._store.grants(self._space(request))]

    async def grant(self, request: Request) -> shapes.Named:
        """Let a peer write."""
        body = request.read(GrantBody)
        mask = 0
        for kind in body.kinds:
            mask |= 1 << _NUMBER_OF[kind]
        grant_id = await self._store.grant(
            self._space(request),
            self._resolve(body.peer),
            prefix=body.prefix,
            kinds=mask,
            not_before_ms=body.from_ms,
            not_after_ms=body.until_ms,
            depth=body.depth,
        )
        return shapes.Named(grant_id.hex())

    async def revoke(self, request: Request) -> shapes.Named:
        """Take a grant back; with ?discard=1 nothing that was written under it counts."""
        is_discarded = request.number("discard", 0, most=1) > 0
        namespace, given = self._space(request), request.params["grant"].lower()
        fits = [one.id for one in self._store.grants(namespace) if one.id.hex().startswith(given)]
        if not fits or len(given) < 8:
            raise NotFound(
                f"no grant {given[:64]!r}", hint=f"see `shoal store ns grants {namespace}`"
            )
        if len(fits) > 1:
            raise UsageError(f"{given!r} fits {len(fits)} grants", hint="give more digits")
        revoked = await self._store.revoke(namespace, fits[0], is_discarded=is_discarded)
        return shapes.Named(revoked.hex())

    # --- inside ---------------------------------------------------------------------------------

    def _space(self, request: Request) -> str:
        """Return the namespace's name; the owner in NAME@PEER may be called by name too."""
        return self._named(request.params["namespace"])

    def _named(self, namespace: str) -> str:
        name, at, owner = namespace.partition("@")
        return f"{name}@{self._resolve(owner)}" if at else name

    def _place(self, request: Request) -> tuple[str, str]:
        return self._space(request), request.params["key"]

    def _item_at(self, namespace: str, key: str) -> shapes.StoreItem:
        shown = self._store.show(namespace, key)
        if shown is None:
            raise NotFound(f"nothing at {key[:64]!r} in {namespace}")
        return self._views.item(shown)

    def _item_or_none(self, namespace: str, key: str) -> shapes.StoreItem | None:
        """Return what a watcher hears of a key: of what cannot be read, as little as `index`."""
        try:
            return self._item_at(namespace, key)
        except (NotFound, BadMessage):
            return None

    async def _page(self, namespace: str, prefix: str, after: str, limit: int) -> shapes.StorePage:
        items, size = list[shapes.StoreItem](), 0
        found = await self._store.listing(namespace, prefix, after=after, limit=limit)
        for shown in found:
            item = self._views.item(shown)
            size += len(msgspec.json.encode(item))
            if items and size > PAGE_BYTES:
                return shapes.StorePage(items, items[-1].key)
            items.append(item)
        return shapes.StorePage(items, items[-1].key if items and len(found) == limit else "")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is no file")


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already", hint="name a new file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")


def routes(api: Api, handlers: StoreRoutes) -> None:
    """Declare the routes."""
    _value_routes(api, handlers)
    _space_routes(api, handlers)


def _value_routes(api: Api, it: StoreRoutes) -> None:
    space = "/v1/store/{namespace}"
    key, add = f"{space}/keys/{{key}}", api.add
    add("GET", f"{space}/keys", it.index, summary="Keys with ?prefix=, ?after=, up to ?limit=",
        reply=shapes.StorePage)  # fmt: skip
    add("GET", key, it.show, summary="What a key shows", reply=shapes.StoreItem)
    add("PUT", key, it.put, summary="Write a value; over 2 KiB it goes as a blob",
        body=PutBody, reply=shapes.StoreItem)  # fmt: skip
    add("PUT", f"{key}/file", it.put_file, summary="Write a file of this machine, as a blob",
        body=FileBody, reply=shapes.StoreItem)  # fmt: skip
    add("DELETE", key, it.delete, summary="Delete a key")
    add("POST", f"{key}/increment", it.increment, summary="Add to a counter",
        body=IncrementBody, reply=shapes.StoreTotal)  # fmt: skip
    add("POST", f"{key}/add", it.add, summary="Put an element into a set or map",
        body=AddBody, reply=shapes.StoreItem)  # fmt: skip
    add("POST", f"{key}/remove", it.remove, summary="Take an element out", body=RemoveBody)
    add("GET", f"{key}/proof", it.prove, summary="A proof of what it holds, or of nothing",
        reply=Raw)  # fmt: skip
    add("GET", f"{space}/log", it.log, summary="Entries with ?prefix=, latest first, up to ?limit=",
        reply=list[shapes.StoreLine])  # fmt: skip
    add("GET", f"{space}/watch", it.watch, reply=shapes.StoreChange, events=True,
        summary='Changes under ?prefix=; the event "ready" comes first, with ?now=1 all there is',
    )  # fmt: skip


def _space_routes(api: Api, it: StoreRoutes) -> None:
    root, add = "/v1/store", api.add
    space = f"{root}/{{namespace}}"
    add("GET", root, it.spaces, summary="Namespaces here", reply=list[shapes.Namespace])
    add("POST", root, it.create, summary="Make a namespace", body=NamespaceBody,
        reply=shapes.Namespace)  # fmt: skip
    add("GET", space, it.space, summary="A namespace, its size and its root",
        reply=shapes.Namespace)  # fmt: skip
    add("GET", f"{space}/grants", it.grants, summary="Who may write", reply=list[shapes.Grant])
    add("POST", f"{space}/grants", it.grant, summary="Let a peer write", body=GrantBody,
        reply=shapes.Named)  # fmt: skip
    add("DELETE", f"{space}/grants/{{grant}}", it.revoke,
        summary="Take a grant back; ?discard=1 what is under it, too",
        reply=shapes.Named)  # fmt: skip
    add("POST", f"{root}/verify", it.verify, summary="Check a proof by its namespace's ID or name",
        body=CheckBody, reply=shapes.Verdict)  # fmt: skip
    add("POST", f"{root}/sync", it.sync, summary="Sync with a peer, or with all connected",
        body=SyncBody, reply=list[shapes.Synced])  # fmt: skip
    add("POST", f"{root}/snapshot", it.snapshot, summary="Copy the store to a path of this machine",
        body=SnapshotBody, reply=shapes.Snapshot)  # fmt: skip
