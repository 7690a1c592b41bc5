"""What users do with each kind, through the service, on several nodes at once."""

import trio
from trio.testing import MockClock

from tests.sim.replicas import Links, signer, start_store


async def test_concurrent_values_are_siblings_until_somebody_who_saw_both_writes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b = [await start_store(nursery, links, number) for number in (1, 2)]
    links.split([signer(1).peer], [signer(2).peer])
    await a.put_multi("kv", "k", "from a")
    await b.put_multi("kv", "k", "from b")
    links.cut.clear()
    await a.sync_with(signer(2).peer)
    shown = a.show("kv", "k")
    assert shown is not None
    assert sorted(map(str, shown.value)) == ["from a", "from b"]  # type: ignore[call-overload]
    assert (await a.put_multi("kv", "k", "both seen")).value == ["both seen"]
    # The next value takes the place of the one that had seen b's, and must say so too.
    await a.put_multi("kv", "k", "once more")
    await b.sync_with(signer(1).peer)
    for store in (a, b):
        shown = store.show("kv", "k")
        assert shown is not None
        assert shown.value == ["once more"]
    assert a.root("kv") == b.root("kv")


async def test_an_add_that_a_remove_did_not_see_wins(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b = [await start_store(nursery, links, number) for number in (1, 2)]
    await a.add("kv", "s", "x")
    await a.add("kv", "s", "y")
    await trio.sleep(1)
    links.split([signer(1).peer], [signer(2).peer])
    assert await b.remove("kv", "s", "x")
    assert await b.remove("kv", "s", "y")
    await a.add("kv", "s", "x")  # again, not seen by b
    links.cut.clear()
    await a.sync_with(signer(2).peer)
    for store in (a, b):
        shown = store.show("kv", "s")
        assert shown is not None
        assert shown.value == ["x"]
    assert not await a.remove("kv", "s", "never there")


async def test_counts_add_up_over_nodes_restarts_and_deletions(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b = [await start_store(nursery, links, number) for number in (1, 2)]
    async with trio.open_nursery() as counting:
        for _ in range(50):
            counting.start_soon(a.increment, "kv", "c", 2)
            counting.start_soon(b.increment, "kv", "c", -1)
    await trio.sleep(1)
    assert [store.show("kv", "c").value for store in (a, b)] == [50, 50]  # type: ignore[union-attr]
    await a.delete("kv", "c")
    await trio.sleep(1)
    assert b.show("kv", "c") is None
    assert await a.increment("kv", "c", 3) == 3
    await trio.sleep(1)
    assert await b.increment("kv", "c", 1) == 4
