"""The routes of the store over a real service: pages, hostile values, watchers, names."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from crdt.entry import REGISTER, Record
from crdt.live import News
from crdt.reader import LIST_MAX
from crdt.service import StoreService
from node.control.api import Api, Event, Events, Request
from node.control.store import PAGE_BYTES, StoreRoutes, routes
from protocols.blobs.service import BlobService
from shoal.store_api import Grant, Named, Namespace, StoreChange, StoreItem, StorePage
from tests.sim.replicas import Links, signer, start_store
from tests.unit.crdt_making import Chain
from wire import codec
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId

NO_BLOBS = cast(BlobService, None)  # no route here asks for them
Told = AsyncGenerator[Event | list[Event]]


class Caller:
    """Asks as the server does, without HTTP."""

    def __init__(self, store: StoreService) -> None:
        self.api = Api()
        routes(self.api, StoreRoutes(store, NO_BLOBS, PeerId, lambda peer: peer[-4:]))

    async def __call__(self, method: str, path: str, body: object = None, **query: str) -> object:
        route, params = self.api.find(method, f"/v1/store/{path}".rstrip("/"))
        data = b"" if body is None else msgspec.json.encode(body)
        return await route.handler(Request(method, path, params, query, data))


async def hear(links: Links, *records: Record) -> None:
    """Let a peer send entries."""
    news = codec.encode(News([record.signed for record in records]))
    await links.listeners[signer(1).peer]["shoal/crdt"](signer(2).peer, news)


async def test_pages_hold_what_fits_and_together_they_hold_everything_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    call = Caller(store)
    for number in range(LIST_MAX + 50):
        await store.put("runs", f"k/{number:05}", "x" * 1500)
    await store.put("runs", "l", 1)
    keys, after, pages = list[str](), "", 0
    while True:
        page = cast(StorePage, await call("GET", "runs/keys", prefix="k/", after=after))
        assert len(msgspec.json.encode(page)) <= PAGE_BYTES + 2000
        keys += [item.key for item in page.items]
        after, pages = page.next, pages + 1
        if not after:
            break
    assert keys == [f"k/{number:05}" for number in range(LIST_MAX + 50)]
    assert pages > 1
    few = cast(StorePage, await call("GET", "runs/keys", limit="2"))
    assert ([item.key for item in few.items], few.next) == (["k/00000", "k/00001"], "k/00001")
    last = cast(StorePage, await call("GET", "runs/keys", prefix="l"))
    assert (len(last.items), last.next) == (1, "")
    for limit in ("0", "1001", "x"):
        with pytest.raises(UsageError):
            await call("GET", "runs/keys", limit=limit)


async def test_a_value_of_a_peer_that_is_none_stops_nobody(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    call = Caller(await start_store(nursery, links, 1))
    chain = Chain(2)
    events = cast(Events, await call("GET", "runs/watch", prefix="k/"))
    async with aclosing(cast(Told, events.source)) as told:
        assert await anext(told) == Event(None, name="ready")
        await hear(links, chain.put("k/a"))
        first = await anext(told)
        assert isinstance(first, Event)
        change = cast(StoreChange, first.data)
        assert change.item is not None
        assert (change.key, change.item.value) == ("k/a", 1)
        await hear(links, chain.write(REGISTER, "k/a", value=b"\xd4\x01\x01"))  # an extension type
        assert await anext(told) == Event(StoreChange("k/a", None))
        await hear(links, chain.put("k/b"))
        assert await anext(told) != Event(StoreChange("k/b", None))
    with pytest.raises(BadMessage, match="extension types"):
        await call("GET", "runs/keys/k%2Fa")
    page = cast(StorePage, await call("GET", "runs/keys", prefix="k/"))
    assert [item.key for item in page.items] == ["k/b"]
    await trio.sleep(1)
    await call("DELETE", "runs/keys/k%2Fa")
    with pytest.raises(NotFound):
        await call("GET", "runs/keys/k%2Fa")


async def test_a_watcher_may_begin_with_all_that_is_there(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    call = Caller(store)
    for number in range(LIST_MAX + 50):
        await store.put("runs", f"k/{number:05}", number)
    events = cast(Events, await call("GET", "runs/watch", prefix="k/", now="1"))
    async with aclosing(cast(Told, events.source)) as told:
        assert await anext(told) == Event(None, name="ready")
        seen = list[object]()
        while len(seen) < LIST_MAX + 50:
            batch = await anext(told)
            assert isinstance(batch, list)
            seen += [cast(StoreChange, event.data).key for event in batch]
        assert seen == sorted(cast(list[str], seen))
        assert len(set(seen)) == LIST_MAX + 50
    with pytest.raises(NotFound, match="no namespace"):
        await call("GET", "nowhere/watch")


async def test_a_namespace_and_its_grants_are_named_as_people_do(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    call, owner = Caller(store), signer(1).peer
    rules = {"name": "ns", "write": "list", "clock_bound_s": 1.5, "author_entries": 7}
    made = cast(Namespace, await call("POST", "", {**rules, "keep_s": 7200}))
    assert (made.clock_bound_s, made.author_entries, made.keep_s) == (1.5, 7, 7200)
    for name in ("ns", f"ns@{owner}", made.id, made.id[:8]):
        assert (await call("GET", name)) == made
    granted = list[str]()
    for _ in range(2):
        wanted = {"peer": signer(2).peer, "kinds": ["add", "register"], "depth": 1}
        granted.append(cast(Named, await call("POST", "ns/grants", wanted)).id)
    found = cast(list[Grant], await call("GET", "ns/grants"))
    assert [(one.id, one.kinds, one.revoked) for one in found] == [
        (grant, ["register", "add"], False) for grant in granted
    ]
    for digits in (granted[0][:7], "0" * 8, "xyz"):
        with pytest.raises(NotFound):
            await call("DELETE", f"ns/grants/{digits}")
    await call("DELETE", f"ns/grants/{granted[0][:8].upper()}")
    found = cast(list[Grant], await call("GET", "ns/grants"))
    assert [one.revoked for one in found] == [True, False]
    for body in ({"peer": owner, "kinds": ["revoke"]}, {"peer": owner, "depth": 4}, {}):
        with pytest.raises(UsageError):
            await call("POST", "ns/grants", body)
    with pytest.raises(UsageError, match="only a list of writers"):
        await call("POST", "kv/grants", {"peer": owner})


async def test_any_key_that_the_store_takes_is_reached_by_its_path(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    call = Caller(await start_store(nursery, Links(), 1))
    for key, path in (("a/b?c", "a%2Fb%3Fc"), ("..", ".."), ("%2F", "%252F"), ("x/log", "x%2Flog")):
        item = cast(StoreItem, await call("PUT", f"kv/keys/{path}", {"value": {"$base64": "AA=="}}))
        assert (item.key, item.value) == (key, {"$base64": "AA=="})
        assert (await call("GET", f"kv/keys/{path}")) == item
