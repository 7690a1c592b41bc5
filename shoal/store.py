"""The store's part of the two clients: `client.store`, plain and for trio.

Every method takes `namespace`: a name (default: `kv`), NAME@PEER, or hex digits of an ID. What is
not there is an ApiError with the code "not_found".
"""

import os
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from shoal import store_asks as asks
from shoal.messages import decode_reply
from shoal.store_api import (
    DEFAULT,
    PAGE_MAX,
    Grant,
    Namespace,
    NewGrant,
    NewNamespace,
    RemoveElement,
    Snapshot,
    StoreChange,
    StoreItem,
    StoreLine,
    Synced,
    Verdict,
    with_bytes,
)
from shoal.store_asks import Ask

if TYPE_CHECKING:
    from shoal.async_client import AsyncClient
    from shoal.client import Client

R = TypeVar("R")

SILENCE_S = 30.0  # between two events; the daemon says something every 15 s


class Store:
    """The swarm's memory, as one daemon sees it."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def get(self, key: str, *, namespace: str = DEFAULT) -> StoreItem:
        """Return what a key shows. A value in a blob is fetched with `client.read(item.cid)`."""
        return with_bytes(self._ask(asks.get(namespace, key)))

    def put(
        self,
        key: str,
        value: object,
        *,
        ttl_s: float | None = None,
        multi: bool = False,
        namespace: str = DEFAULT,
    ) -> StoreItem:
        """Write a value: None, bool, int, float, str, bytes, and lists and dicts of them.

        It is on the disk when this returns. The last writer wins; with `multi`, what others write
        at the same time stays beside it. `ttl_s` makes it a lease, which ends by itself. What is
        over 2 KiB goes as a blob: bytes as they are, text as UTF-8, the rest as JSON.
        """
        return with_bytes(self._ask(asks.put(namespace, key, value, ttl_s, multi=multi)))

    def put_file(
        self,
        key: str,
        path: str | os.PathLike[str],
        *,
        ttl_s: float | None = None,
        namespace: str = DEFAULT,
    ) -> StoreItem:
        """Write a file of the daemon's machine, of any size, as a blob."""
        return with_bytes(self._ask(asks.put_file(namespace, key, path, ttl_s)))

    def delete(self, key: str, *, namespace: str = DEFAULT) -> None:
        """Delete a key."""
        self._client.call("DELETE", asks.key_path(namespace, key))

    def incr(self, key: str, by: int = 1, *, namespace: str = DEFAULT) -> int:
        """Add to a counter (or take, if negative); return where it stands, as far as we know."""
        return self._ask(asks.increment(namespace, key, by)).value

    def add(
        self, key: str, element: object, value: object = None, *, namespace: str = DEFAULT
    ) -> StoreItem:
        """Put an element into a set, or with a value an entry into a map."""
        return with_bytes(self._ask(asks.add(namespace, key, element, value)))

    def remove(self, key: str, element: object, *, namespace: str = DEFAULT) -> None:
        """Take an element out. Who adds it at the same time wins."""
        self._client.call("POST", asks.key_path(namespace, key, "remove"), _element(element))

    def ls(self, prefix: str = "", *, namespace: str = DEFAULT) -> Generator[StoreItem]:
        """Yield what all keys with a prefix show, in order."""
        after: str | None = ""
        while after is not None:
            page = self._ask(asks.page(namespace, prefix, after, PAGE_MAX))
            yield from map(with_bytes, page.items)
            after = page.next or None

    def log(
        self, prefix: str = "", *, limit: int = 100, namespace: str = DEFAULT
    ) -> list[StoreLine]:
        """Return the entries behind what is shown, the latest first."""
        return [with_bytes(line) for line in self._ask(asks.log(namespace, prefix, limit))]

    def watch(
        self, prefix: str = "", *, now: bool = False, namespace: str = DEFAULT
    ) -> Generator[StoreChange]:
        """Yield what changes, until the daemon stops or the generator is closed.

        now: begin with all that is there. A slow reader gets each changed key once.
        """
        path = asks.watch_path(namespace, prefix, now=now)
        for event in self._client.events("GET", path, timeout_s=SILENCE_S):
            if event.name != "ready":
                yield _change(event.data)

    def sync(self, peer: str = "") -> list[Synced]:
        """Sync with a peer, or with all that are connected; return what that moved."""
        return self._ask(asks.sync(peer))

    def root(self, *, namespace: str = DEFAULT) -> bytes:
        """Return the state root: 32 bytes, equal on all nodes with the same state."""
        return bytes.fromhex(self.namespace(namespace).root)

    def prove(self, key: str, *, namespace: str = DEFAULT) -> bytes:
        """Return a proof of what a key holds, or that it holds nothing (`shoal store verify`)."""
        return self._ask(asks.prove(namespace, key))

    def verify(
        self, proof: bytes, *, namespace: str = DEFAULT, root: bytes | None = None
    ) -> Verdict:
        """Return what a proof shows; raises with the code "wrong_proof" if it is wrong.

        namespace: a name, or all 64 digits of an ID. root: the state that it must be about.
        """
        found = self._ask(asks.check(proof, namespace, "" if root is None else root.hex()))
        return _verdict(found)

    def namespaces(self) -> list[Namespace]:
        """Return all namespaces that are replicated here."""
        return self._ask(asks.spaces())

    def namespace(self, name: str) -> Namespace:
        """Return one of them."""
        return self._ask(asks.space(name))

    def create_namespace(
        self,
        name: str,
        *,
        write: str = "open",
        clock_bound_s: float = 30.0,
        author_entries: int = 10_000,
        keep_s: float = 7 * 86_400.0,
    ) -> Namespace:
        """Make a namespace of our own; `store_api.NewNamespace` tells the rules, which stay."""
        return self._ask(
            asks.create(NewNamespace(name, write, clock_bound_s, author_entries, keep_s))
        )

    def grants(self, namespace: str) -> list[Grant]:
        """Return who may write in a namespace whose writers are listed."""
        return self._ask(asks.grants(namespace))

    def grant(
        self,
        namespace: str,
        peer: str,
        *,
        prefix: str = "",
        kinds: Sequence[str] = (),
        from_ms: int = 0,
        until_ms: int = 0,
        depth: int = 0,
    ) -> str:
        """Let a peer write; `store_api.NewGrant` tells the bounds. Returns the grant's ID."""
        wanted = NewGrant(peer, prefix, list(kinds), from_ms, until_ms, depth)
        return self._ask(asks.grant(namespace, wanted)).id

    def revoke(self, namespace: str, grant_id: str, *, discard: bool = False) -> None:
        """Take a grant back: what was written under it and is not here yet counts nowhere."""
        self._ask(asks.revoke(namespace, grant_id, discard))

    def snapshot(self, path: str | os.PathLike[str]) -> Snapshot:
        """Write a consistent copy of the store to a new file (`shoal store restore`)."""
        return self._ask(asks.snapshot(path))

    def _ask(self, ask: Ask[R]) -> R:
        return self._client.call(
            ask.method, ask.path, ask.body, reply=ask.reply, timeout_s=ask.timeout_s
        )


class AsyncStore:
    """The same for trio. Close the generators (`contextlib.aclosing`) when leaving them early."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def get(self, key: str, *, namespace: str = DEFAULT) -> StoreItem:
        """Return what a key shows. A value in a blob is fetched with `client.read(item.cid)`."""
        return with_bytes(await self._ask(asks.get(namespace, key)))

    async def put(
        self,
        key: str,
        value: object,
        *,
        ttl_s: float | None = None,
        multi: bool = False,
        namespace: str = DEFAULT,
    ) -> StoreItem:
        """Write a value: None, bool, int, float, str, bytes, and lists and dicts of them.

        It is on the disk when this returns. The last writer wins; with `multi`, what others write
        at the same time stays beside it. `ttl_s` makes it a lease, which ends by itself. What is
        over 2 KiB goes as a blob: bytes as they are, text as UTF-8, the rest as JSON.
        """
        return with_bytes(await self._ask(asks.put(namespace, key, value, ttl_s, multi=multi)))

    async def put_file(
        self,
        key: str,
        path: str | os.PathLike[str],
        *,
        ttl_s: float | None = None,
        namespace: str = DEFAULT,
    ) -> StoreItem:
        """Write a file of the daemon's machine, of any size, as a blob."""
        return with_bytes(await self._ask(asks.put_file(namespace, key, path, ttl_s)))

    async def delete(self, key: str, *, namespace: str = DEFAULT) -> None:
        """Delete a key."""
        await self._client.call("DELETE", asks.key_path(namespace, key))

    async def incr(self, key: str, by: int = 1, *, namespace: str = DEFAULT) -> int:
        """Add to a counter (or take, if negative); return where it stands, as far as we know."""
        return (await self._ask(asks.increment(namespace, key, by))).value

    async def add(
        self, key: str, element: object, value: object = None, *, namespace: str = DEFAULT
    ) -> StoreItem:
        """Put an element into a set, or with a value an entry into a map."""
        return with_bytes(await self._ask(asks.add(namespace, key, element, value)))

    async def remove(self, key: str, element: object, *, namespace: str = DEFAULT) -> None:
        """Take an element out. Who adds it at the same time wins."""
        await self._client.call("POST", asks.key_path(namespace, key, "remove"), _element(element))

    async def ls(self, prefix: str = "", *, namespace: str = DEFAULT) -> AsyncGenerator[StoreItem]:
        """Yield what all keys with a prefix show, in order."""
        after: str | None = ""
        while after is not None:
            page = await self._ask(asks.page(namespace, prefix, after, PAGE_MAX))
            for item in page.items:
                yield with_bytes(item)
            after = page.next or None

    async def log(
        self, prefix: str = "", *, limit: int = 100, namespace: str = DEFAULT
    ) -> list[StoreLine]:
        """Return the entries behind what is shown, the latest first."""
        return [with_bytes(line) for line in await self._ask(asks.log(namespace, prefix, limit))]

    async def watch(
        self, prefix: str = "", *, now: bool = False, namespace: str = DEFAULT
    ) -> AsyncGenerator[StoreChange]:
        """Yield what changes, until the daemon stops or the generator is closed.

        now: begin with all that is there. A slow reader gets each changed key once.
        """
        path = asks.watch_path(namespace, prefix, now=now)
        async with aclosing(self._client.events("GET", path, timeout_s=SILENCE_S)) as events:
            async for event in events:
                if event.name != "ready":
                    yield _change(event.data)

    async def sync(self, peer: str = "") -> list[Synced]:
        """Sync with a peer, or with all that are connected; return what that moved."""
        return await self._ask(asks.sync(peer))

    async def root(self, *, namespace: str = DEFAULT) -> bytes:
        """Return the state root: 32 bytes, equal on all nodes with the same state."""
        return bytes.fromhex((await self.namespace(namespace)).root)

    async def prove(self, key: str, *, namespace: str = DEFAULT) -> bytes:
        """Return a proof of what a key holds, or that it holds nothing (`shoal store verify`)."""
        return await self._ask(asks.prove(namespace, key))

    async def verify(
        self, proof: bytes, *, namespace: str = DEFAULT, root: bytes | None = None
    ) -> Verdict:
        """Return what a proof shows; raises with the code "wrong_proof" if it is wrong.

        namespace: a name, or all 64 digits of an ID. root: the state that it must be about.
        """
        found = await self._ask(asks.check(proof, namespace, "" if root is None else root.hex()))
        return _verdict(found)

    async def namespaces(self) -> list[Namespace]:
        """Return all namespaces that are replicated here."""
        return await self._ask(asks.spaces())

    async def namespace(self, name: str) -> Namespace:
        """Return one of them."""
        return await self._ask(asks.space(name))

    async def create_namespace(
        self,
        name: str,
        *,
        write: str = "open",
        clock_bound_s: float = 30.0,
        author_entries: int = 10_000,
        keep_s: float = 7 * 86_400.0,
    ) -> Namespace:
        """Make a namespace of our own; `store_api.NewNamespace` tells the rules, which stay."""
        return await self._ask(
            asks.create(NewNamespace(name, write, clock_bound_s, author_entries, keep_s))
        )

    async def grants(self, namespace: str) -> list[Grant]:
        """Return who may write in a namespace whose writers are listed."""
        return await self._ask(asks.grants(namespace))

    async def grant(
        self,
        namespace: str,
        peer: str,
        *,
        prefix: str = "",
        kinds: Sequence[str] = (),
        from_ms: int = 0,
        until_ms: int = 0,
        depth: int = 0,
    ) -> str:
        """Let a peer write; `store_api.NewGrant` tells the bounds. Returns the grant's ID."""
        wanted = NewGrant(peer, prefix, list(kinds), from_ms, until_ms, depth)
        return (await self._ask(asks.grant(namespace, wanted))).id

    async def revoke(self, namespace: str, grant_id: str, *, discard: bool = False) -> None:
        """Take a grant back: what was written under it and is not here yet counts nowhere."""
        await self._ask(asks.revoke(namespace, grant_id, discard))

    async def snapshot(self, path: str | os.PathLike[str]) -> Snapshot:
        """Write a consistent copy of the store to a new file (`shoal store restore`)."""
        return await self._ask(asks.snapshot(path))

    async def _ask(self, ask: Ask[R]) -> R:
        return await self._client.call(
            ask.method, ask.path, ask.body, reply=ask.reply, timeout_s=ask.timeout_s
        )


def _element(element: object) -> RemoveElement:
    return RemoveElement(asks.as_json(element))


def _change(data: bytes) -> StoreChange:
    change = decode_reply(data, StoreChange)
    if change.item is None:
        return change
    return StoreChange(change.key, with_bytes(change.item))


def _verdict(found: Verdict) -> Verdict:
    if found.item is None:
        return found
    return msgspec.structs.replace(found, item=with_bytes(found.item))
