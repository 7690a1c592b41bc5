"""Who leads when stores meet, and who brings how much: a newcomer gets everything about once."""

import math

import pytest
import trio
from trio.testing import MockClock

from benchmarks.agree_entries import by_chain, corpus, size_of
from benchmarks.agree_store import STRANGER, frames
from tests.sim.replicas import EPOCH_MS, Links, signer, start_store

COUNT = 3_000


async def test_a_newcomer_is_sent_everything_once_though_both_would_lead(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links(latency_s=0.4)  # the session goes on when the other's turn comes
    old = await start_store(nursery, links, 1, sync_interval_s=3.0)
    made = by_chain(corpus(old.namespace("kv").id, COUNT, EPOCH_MS))
    for frame in frames(made):
        await old.answer(STRANGER, frame)
    new = await start_store(nursery, links, 2, sync_interval_s=3.0)
    before = links.bytes_moved
    for store, number in ((old, 2), (new, 1)):
        store.peer_up(signer(number).peer)
    await trio.sleep(30)
    assert new.root("kv") == old.root("kv")
    assert links.bytes_moved - before < 1.1 * size_of(made)


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (4, 3, 2, 1), (3, 1, 4, 2)])
async def test_a_newcomer_in_a_swarm_is_sent_everything_once(
    numbers: tuple[int, ...], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links(latency_s=0.1)
    *olds, new_number = numbers
    stores = [await start_store(nursery, links, one, sync_interval_s=math.inf) for one in olds]
    made = by_chain(corpus(stores[0].namespace("kv").id, COUNT, EPOCH_MS))
    for store in stores:
        for frame in frames(made):
            await store.answer(STRANGER, frame)
    for store, other in zip(stores, (olds[1], olds[0], olds[0]), strict=True):
        await store.sync_with(signer(other).peer)
    new = await start_store(nursery, links, new_number, sync_interval_s=math.inf)
    before = links.bytes_moved
    for number, store in zip(olds, stores, strict=True):
        store.peer_up(signer(new_number).peer)
        new.peer_up(signer(number).peer)
    await trio.sleep(30)
    assert new.root("kv") == stores[0].root("kv")
    assert links.bytes_moved - before < 1.1 * size_of(made)


async def test_what_many_peers_have_for_a_newcomer_comes_from_one(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links(latency_s=0.05)
    first = await start_store(nursery, links, 1, sync_interval_s=3.0)
    made = by_chain(corpus(first.namespace("kv").id, COUNT, EPOCH_MS))
    stores = [first, *[await start_store(nursery, links, number) for number in (2, 3, 4, 5)]]
    for store in stores:
        for frame in frames(made):
            await store.answer(STRANGER, frame)
    new = await start_store(nursery, links, 6, sync_interval_s=3.0)
    before = links.bytes_moved
    for number, store in enumerate(stores, 1):
        store.peer_up(signer(6).peer)
        new.peer_up(signer(number).peer)
    await trio.sleep(30)
    assert new.root("kv") == first.root("kv")
    assert links.bytes_moved - before < 3 * size_of(made)  # five times if each could bring it
