"""The routes of the store over a real service: pages, hostile values, watchers, names."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from crdt.batch import NotAllowed
from crdt.entry import REGISTER, Record
from crdt.live import News
from crdt.reader import LIST_MAX
from crdt.service import StoreService
from node.control.api import Api, Event, Events, Request
from node.control.store import PAGE_BYTES, StoreRoutes, routes
from protocols.blobs.service import BlobService
from shoal.store_api import (
    Grant,
    Named,
    Namespace,
    StoreChange,
    StoreItem,
    StoreLine,
    StorePage,
)
from tests.sim.replicas import Links, SimClock, signer, start_store
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


async def test_a_namespace_of_anothers_with_our_name_is_in_nobodys_way(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    ours, theirs, third = [Caller(await start_store(nursery, links, one)) for one in (1, 2, 3)]
    made = [cast(Namespace, await call("POST", "", {"name": "ns"})) for call in (ours, theirs)]
    await trio.sleep(1)
    assert [cast(Namespace, await call("GET", "ns")).id for call in (ours, theirs)] == [
        one.id for one in made
    ]
    with pytest.raises(UsageError, match="fits 2 namespaces") as caught:
        await third("GET", "ns")
    assert "NAME@OWNER" in caught.value.hint
    for one in made:
        assert one.id[:16] in str(caught.value)


async def test_a_namespace_that_a_sync_brings_is_filled_within_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    one = await start_store(nursery, links, 1)
    await one.create_namespace("ns")
    await one.put("ns", "k", 1)
    two = await start_store(nursery, links, 2)
    two.peer_up(signer(1).peer)
    one.peer_up(signer(2).peer)
    await trio.sleep(4)
    assert two.get("ns", "k") is not None


async def test_what_was_granted_is_handed_on_with_its_bounds_and_refusals_say_why(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    ann, bob, cyd = [Caller(await start_store(nursery, links, one)) for one in (1, 2, 3)]
    name = f"ns@{signer(1).peer}"
    await ann("POST", "", {"name": "ns", "write": "list"})
    await trio.sleep(1)
    until_ms = SimClock().wall_ms() + 3_600_000
    bounds = {"prefix": "b/", "kinds": ["register"], "until_ms": until_ms, "depth": 1}
    await ann("POST", "ns/grants", {"peer": signer(2).peer, **bounds})
    await trio.sleep(1)
    await bob("POST", f"{name}/grants", {"peer": signer(3).peer})
    await trio.sleep(1)
    handed = cast(list[Grant], await cyd("GET", f"{name}/grants"))[1]
    assert (handed.prefix, handed.kinds, handed.until_ms, handed.depth) == (
        "b/", ["register"], until_ms, 0
    )  # fmt: skip
    await cyd("PUT", f"{name}/keys/b%2Fc", {"value": 1})
    with pytest.raises(NotAllowed, match="no grant lets this node write 'x'") as caught:
        await cyd("PUT", f"{name}/keys/x", {"value": 1})
    assert "`shoal store grant NS PEER`" in caught.value.hint
    with pytest.raises(NotAllowed, match="hand that on"):
        await bob("POST", f"{name}/grants", {"peer": signer(3).peer, "prefix": "x/"})
    with pytest.raises(NotAllowed, match="revoked by"):
        await cyd("DELETE", f"{name}/grants/{handed.id}")
    with pytest.raises(NotAllowed, match="kept for the rules"):
        await ann("PUT", "ns/keys/grant", {"value": 1})
    await ann("POST", "", {"name": "mine", "write": "owner"})
    with pytest.raises(NotAllowed, match="no key of this node") as caught:
        await ann("PUT", "mine/keys/x", {"value": 1})
    assert "your peer ID" in caught.value.hint


async def test_a_log_tells_a_deletion_from_a_value_that_is_null(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    call = Caller(await start_store(nursery, Links(), 1))
    await call("PUT", "kv/keys/k", {"value": None})
    await call("PUT", "kv/keys/gone", {"value": 1})
    await call("DELETE", "kv/keys/gone")
    await call("POST", "kv/keys/set/add", {"element": 1})
    lines = cast(list[StoreLine], await call("GET", "kv/log"))
    assert {line.key: line.deleted for line in lines} == {"k": False, "gone": True, "set": False}


async def test_no_key_begins_with_what_is_not_ascii(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    call = Caller(await start_store(nursery, Links(), 1))
    await call("PUT", "kv/keys/%3Fquestion", {"value": 1})
    assert cast(StorePage, await call("GET", "kv/keys", prefix="ü")).items == []
    assert len(cast(StorePage, await call("GET", "kv/keys", after="?")).items) == 1
    assert cast(StorePage, await call("GET", "kv/keys", after="ü")).items == []


async def test_a_snapshot_goes_into_a_folder_that_is_there(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    call = Caller(await start_store(nursery, Links(), 1))
    with pytest.raises(UsageError, match="no folder"):
        await call("POST", "snapshot", {"path": str(tmp_path / "nowhere" / "copy.db")})


async def test_any_key_that_the_store_takes_is_reached_by_its_path(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    call = Caller(await start_store(nursery, Links(), 1))
    for key, path in (("a/b?c", "a%2Fb%3Fc"), ("..", ".."), ("%2F", "%252F"), ("x/log", "x%2Flog")):
        item = cast(StoreItem, await call("PUT", f"kv/keys/{path}", {"value": {"$base64": "AA=="}}))
        assert (item.key, item.value) == (key, {"$base64": "AA=="})
        assert (await call("GET", f"kv/keys/{path}")) == item
