"""What is large must not keep the event loop: others get turns between its parts."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from trio.testing import MockClock

from crdt.batch import Batch
from crdt.entry import Record
from crdt.service import StoreService
from tests.sim.replicas import EPOCH_MS, Links, start_store
from tests.unit.crdt_making import NOW_MS, Chain

COUNT = 3_000


@dataclass
class Turns:
    count: int = 0


@asynccontextmanager
async def turns() -> AsyncGenerator[Turns]:
    """Count how often another task gets a turn in the block."""
    found = Turns()

    async def take() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            found.count += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        yield found
        nursery.cancel_scope.cancel()


async def filled(nursery: trio.Nursery, *, keys: int = COUNT) -> tuple[StoreService, list[Record]]:
    """A store with a tombstone under each key, and those."""
    assert NOW_MS == EPOCH_MS
    store = await start_store(nursery, Links(), 1)
    chain = Chain(2, store.id_of("kv"), ms=-COUNT - 1)
    made = [chain.delete(f"k/{number}") for number in range(keys)]
    await store._hall.writer.submit(Batch(made))
    return store, made


async def test_a_listing_that_finds_nothing_yields(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, _ = await filled(nursery)
    async with turns() as others:
        assert await store.listing("kv") == []
    assert others.count >= 2


async def test_a_log_that_finds_nothing_yields(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, made = await filled(nursery, keys=9_000)
    async with turns() as others:
        assert await store.log("kv", "other/") == []
    assert others.count >= 2
    lines = await store.log("kv", limit=2)
    assert [line.id for line in lines] == [record.id for record in made[:-3:-1]]


async def test_a_batch_of_which_nothing_is_taken_yields(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, made = await filled(nursery)
    async with turns() as others:
        assert await store._hall.writer.submit(Batch(made[:1000])) == []
    assert others.count >= 3


async def test_a_root_that_was_prepared_costs_nothing_more(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, _ = await filled(nursery)
    tree = store._hall.spaces.find("kv").tree
    assert not tree.settle(0)
    await store.hash_ahead("kv")
    assert tree.settle(0)
    before = store.root("kv")
    await store.put("kv", "one", 1)
    await store.hash_ahead()
    assert store.root("kv") != before


async def test_much_that_dies_at_once_goes_in_pieces(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    chain = Chain(2, store.id_of("kv"), ms=-COUNT - 1)
    leases = [chain.lease(f"k/{number}", 10_000 + COUNT - number) for number in range(COUNT)]
    await store._hall.writer.submit(Batch(leases))
    replica = store._hall.spaces.find("kv")
    await trio.sleep(69)
    assert len(replica.records) == COUNT
    await trio.sleep(3)
    assert len(replica.records) == 0
