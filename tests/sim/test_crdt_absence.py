"""Replicas that were away for longer than deletions are remembered, on a virtual clock."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from crdt.service import StoreService
from crdt.wire import Hello
from tests.sim.replicas import Links, Silence, SimClock, Wire, signer, start_store
from wire import codec
from wire.errors import Busy

T = TypeVar("T")
DAY_S = 24 * 3600.0


async def sleep(days: float, clock: MockClock) -> None:
    """Let days pass at once: nobody's periodic work runs meanwhile, as in a machine that is off."""
    clock.jump(days * DAY_S)
    await trio.sleep(61)


async def test_what_was_deleted_while_a_replica_was_away_does_not_come_back(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b, c = [await start_store(nursery, links, number) for number in range(1, 4)]
    for key in ("deleted", "kept"):
        await a.put("kv", key, 1)
    await trio.sleep(100)
    one, two, three = (signer(number).peer for number in range(1, 4))
    links.split([one], [two, three])
    await b.delete("kv", "deleted")
    for _ in range(8):  # b and c stay in touch
        await sleep(1, autojump_clock)
    await a.put("kv", "late", 1)
    assert not any(record.key == "deleted" for record in await b.log("kv"))  # the tombstone is gone
    assert a.get("kv", "deleted") is not None
    links.cut.clear()
    a.peer_up(two)
    b.peer_up(one)
    await trio.sleep(100)
    for store in (a, b, c):
        assert [item.key for item in store.scan("kv")] == ["kept", "late"]
    assert a.stats().refused["gone"] == 1


async def test_a_swarm_that_was_off_for_weeks_keeps_its_state_and_its_deletions(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b = [await start_store(nursery, links, number) for number in (1, 2)]
    for key in ("deleted", "kept"):
        await a.put("kv", key, 1)
    await trio.sleep(100)
    links.split([signer(1).peer], [signer(2).peer])
    await a.delete("kv", "deleted")  # b does not hear of it
    for _ in range(20):
        await sleep(1, autojump_clock)
    links.cut.clear()
    a.peer_up(signer(2).peer)
    b.peer_up(signer(1).peer)
    await trio.sleep(100)
    for store in (a, b):
        assert [item.key for item in store.scan("kv")] == ["kept"]
        assert "gone" not in store.stats().refused
    await sleep(8, autojump_clock)  # in touch again, they forget the deletion
    await trio.sleep(100)
    assert [line.key for line in await a.log("kv")] == ["kept"]


async def test_a_replica_that_was_away_keeps_its_state_before_an_empty_newcomer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b = [await start_store(nursery, links, number) for number in (1, 2)]
    await a.put("kv", "kept", 1)
    await trio.sleep(100)
    links.split([signer(1).peer], [signer(2).peer])
    for _ in range(10):
        await sleep(1, autojump_clock)
    del links.answers[signer(2).peer]  # it never returns
    links.cut.clear()
    newcomer = await start_store(nursery, links, 3)
    a.peer_up(signer(3).peer)
    newcomer.peer_up(signer(1).peer)
    await trio.sleep(200)
    for store in (a, newcomer):
        assert [item.key for item in store.scan("kv")] == ["kept"]
    assert b.get("kv", "kept") is not None


async def test_a_replica_that_is_alone_forgets_as_always(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    await store.put("kv", "k", 1)
    await store.delete("kv", "k")
    for _ in range(8):
        await sleep(1, autojump_clock)
    assert store.stats().entries == 0


async def test_a_store_that_is_still_loading_answers_nobody(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """What it has not read yet would seem to be deleted, to a peer that was away."""
    links, own, gate = Links(), signer(1), trio.Event()

    async def gated(work: Callable[[], T]) -> T:
        await gate.wait()
        return work()

    store = StoreService(
        Wire(links, own.peer),
        Silence(),
        SimClock(),
        own,
        tmp_path / "store.db",
        peers=list,
        off_loop=gated,
    )
    hello = codec.encode(Hello(bytes(8), 0, []))
    with pytest.raises(Busy):
        await store.answer(signer(2).peer, hello)
    nursery.start_soon(store.run)
    await trio.sleep(1)
    with pytest.raises(Busy):
        await store.answer(signer(2).peer, hello)
    gate.set()
    await trio.sleep(1)
    await store.answer(signer(2).peer, hello)
