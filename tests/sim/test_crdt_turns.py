"""Who leads when two stores meet: one of them, once, however long it takes."""

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
