"""What a store has no room for, and what it does about it, on a virtual clock."""

import math

import pytest
import trio
from trio.testing import MockClock

from crdt import spaces
from crdt.batch import StoreFull
from crdt.entry import Record
from crdt.holding import REFUSED_FIRST_S
from crdt.namespace import Genesis, Rules
from crdt.wire import Push
from tests.sim.replicas import Links, signer, start_store
from tests.unit.crdt_making import OPEN, Chain
from wire import codec


async def test_what_is_over_a_quota_is_not_fetched_again_at_every_sync(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = Links()
    store = await start_store(nursery, links, 1, is_live=False, sync_interval_s=math.inf)
    other = await start_store(nursery, links, 2, is_live=False, sync_interval_s=math.inf)
    for index in range(13):
        await other.put("runs", f"k{index}", index)
        if index < 3:
            await store.put("runs", f"own{index}", index)
    monkeypatch.setattr(spaces, "ENTRIES_MAX", 3)
    await store.sync_with(signer(2).peer)
    refused = store.stats().refused["full"]
    assert refused == 13
    assert store.stats().entries == 3
    assert (await store.sync_with(signer(2).peer)).entries_in == 0
    await other.sync_with(signer(1).peer)  # nor is it checked again when it is given
    assert store.stats().refused["full"] == refused
    monkeypatch.undo()
    await trio.sleep(REFUSED_FIRST_S + 10)
    await store.sync_with(signer(2).peer)
    assert store.root("runs") == other.root("runs")


async def test_what_was_acknowledged_is_not_pushed_out_by_our_own_next_write(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    await store.create_namespace("small", rules=Rules(author_entries=5))
    full = list[StoreFull]()

    async def put(number: int) -> None:
        try:
            await store.put("small", f"k/{number}", number)
        except StoreFull as error:
            full.append(error)

    async with trio.open_nursery() as writing:
        for number in range(8):
            writing.start_soon(put, number)
    assert len(full) == 3
    held = store.scan("small")
    assert len(held) == 5
    await store.put("small", held[0].key, "again")  # in its place
    await store.delete("small", held[1].key)
    assert len(store.scan("small")) == 4


async def test_of_one_owner_only_so_many_namespaces_are_replicated(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    chain = Chain(2, store.id_of("namespaces"))
    records: list[Record] = []
    for number in range(spaces.OWNER_SPACES_MAX + 3):
        genesis = Genesis(1, f"n{number}", chain.key, "open")
        records.append(chain.put(spaces.directory_key(genesis), codec.encode(genesis)))
    message = codec.encode(Push(store.id_of("namespaces"), [one.signed for one in records]))
    await store.answer(signer(2).peer, message)
    assert len(store.namespaces()) == len(spaces.BUILT_IN) + spaces.OWNER_SPACES_MAX
    assert store.stats().refused["namespaces_full"] == 3


async def test_only_what_is_young_is_news(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    links = Links()
    store, other = [await start_store(nursery, links, number) for number in (1, 2)]
    old, young = Chain(3).put("old", ms=-60_001), Chain(4).put("young")
    message = codec.encode(Push(OPEN.id, [old.signed, young.signed]))
    await store.answer(signer(9).peer, message)
    await trio.sleep(1)
    assert [item.key for item in store.scan("runs")] == ["old", "young"]
    assert [item.key for item in other.scan("runs")] == ["young"]
