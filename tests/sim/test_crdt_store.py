"""The store service: one alone, and swarms of them with cuts, on a virtual clock."""

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from crdt.entry import REGISTER, Record, Signed
from crdt.live import News
from crdt.service import StoreService
from crdt.storage import StoreCorrupt, StoreFailed
from crdt.sync import ANSWERS_MAX
from crdt.wire import Hello, Push
from tests.sim.replicas import EPOCH_MS, Links, Silence, SimClock, Wire, signer, start_store
from tests.unit.crdt_making import OPEN, Chain
from wire import codec
from wire.errors import BadMessage, Busy, NotFound, RemoteError, UsageError
from wire.ports import Store

TOPIC = "shoal/crdt"


def news(*records: Record) -> bytes:
    return codec.encode(News([record.signed for record in records]))


def push(*records: Record) -> bytes:
    return codec.encode(Push(OPEN.id, [record.signed for record in records]))


def roots(stores: list[StoreService]) -> set[bytes]:
    return {store.state_root("runs") for store in stores}


def accept(store: Store) -> Store:
    """The checker sees here that the service is what others expect."""
    return store


async def test_what_was_put_is_read_scanned_and_deleted(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = accept(await start_store(nursery, Links(), 1))
    item = await store.put("runs", "run/b", {"step": 3, "loss": 1.5})
    assert store.get("runs", "run/b") == item
    assert item.value == {"step": 3, "loss": 1.5}
    await store.put("runs", "run/a", [1, b"x", None])
    assert [one.key for one in store.scan("runs", "run/")] == ["run/a", "run/b"]
    await store.delete("runs", "run/b")
    assert store.get("runs", "run/b") is None
    assert store.get("models", "run/a") is None
    await store.delete("runs", "never")


async def test_values_over_a_limit_and_keys_of_others_are_the_callers_fault(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    with pytest.raises(UsageError, match="2051 bytes, the limit is 2048"):
        await store.put("runs", "a", bytes(2048))
    with pytest.raises(UsageError, match="may not write"):
        await store.put("runs", f"x/@{signer(2).peer}", 1)
    with pytest.raises(NotFound, match="no namespace"):
        await store.put("Bad Name", "a", 1)
    with pytest.raises(UsageError):
        await store.put("runs", "a", object())


async def test_a_lease_dies_and_its_watcher_hears_of_it(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    async with store.watch("runs", "lease/") as changes:
        await store.put("runs", "lease/a", 1, ttl_s=30)
        assert await anext(changes) == "lease/a"
        start = trio.current_time()
        assert await anext(changes) == "lease/a"
        assert 29 <= trio.current_time() - start <= 31.5
        assert store.get("runs", "lease/a") is None
    assert store.stats().entries == 1
    await trio.sleep(62)
    assert store.stats().entries == 0


async def test_a_slow_watcher_gets_each_key_once_and_holds_nobody_up(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    async with store.watch("runs", "a/") as changes:
        for value in range(50):
            await store.put("runs", "a/x", value)
            await store.put("runs", "b/x", value)
        await store.put("runs", "a/y", 1)
        assert [await anext(changes), await anext(changes)] == ["a/x", "a/y"]
        with trio.move_on_after(5) as scope:
            await anext(changes)
        assert scope.cancelled_caught


async def test_many_writers_share_commits_and_all_are_kept(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    store = await start_store(nursery, Links(), 1, path=tmp_path / "store.db")
    async with trio.open_nursery() as writers:
        for index in range(300):
            writers.start_soon(store.put, "runs", f"k/{index}", index)
    assert len(store.scan("runs", "k/")) == 300
    again = await start_store(nursery, Links(), 1, path=tmp_path / "store.db")
    assert [one.value for one in again.scan("runs", "k/")] == [
        one.value for one in store.scan("runs", "k/")
    ]
    assert again.state_root("runs") == store.state_root("runs")


async def test_a_new_entry_reaches_everybody_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    stores = [await start_store(nursery, links, number) for number in range(1, 6)]
    await stores[0].put("runs", "k", "v")
    await trio.sleep(0.1)
    assert all(store.get("runs", "k") is not None for store in stores)


async def test_an_old_entry_in_a_new_message_goes_no_further(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    await start_store(nursery, links, 1)
    hear, old, odd = links.listeners[signer(1).peer][TOPIC], Chain(2).put("k"), signer(2).peer
    assert await hear(odd, news(old))
    assert not await hear(odd, news(old))
    assert not await hear(odd, news(old, old))
    with pytest.raises(BadMessage):
        await hear(odd, news())


async def test_news_with_a_forged_entry_that_is_old_here_is_refused_before_it_goes_on(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    await start_store(nursery, links, 1)
    hear, chain, odd = links.listeners[signer(1).peer][TOPIC], Chain(2), signer(2).peer
    older, newer, other = chain.put("k"), chain.put("k"), Chain(2, instance=2).put("n")
    assert await hear(odd, news(newer))
    forged = Signed(older.signed.body, bytes(64))  # to a newcomer it would be news
    with pytest.raises(BadMessage, match="signature"):
        await hear(odd, codec.encode(News([other.signed, forged])))


async def test_what_a_joiner_brings_goes_on_to_those_it_never_met(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    stores = [await start_store(nursery, links, number) for number in range(1, 5)]
    a, hub, *_ = [store._signer.peer for store in stores]
    links.split([a], [signer(3).peer, signer(4).peer])
    links.split([a], [hub])
    await stores[0].put("swarm", "k", "v")
    await trio.sleep(1)
    links.cut.discard(frozenset((a, hub)))
    stores[0].peer_up(hub)
    stores[1].peer_up(a)
    await trio.sleep(2)
    assert all(store.get("swarm", "k") is not None for store in stores)


@pytest.mark.parametrize("seed", range(5))
async def test_replicas_with_cuts_lost_gossip_and_skewed_clocks_become_equal(
    seed: int, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    rng, links = random.Random(seed), Links()
    stores = [
        await start_store(
            nursery, links, number, is_live=rng.random() < 0.5, skew_ms=rng.randrange(-5000, 5000)
        )
        for number in range(1, 9)
    ]
    peers = [store._signer.peer for store in stores]
    for _ in range(30):
        links.cut.clear()
        left = rng.sample(peers, 4)
        links.split(left, [peer for peer in peers if peer not in left])
        for _ in range(5):
            store = rng.choice(stores)
            key = f"k/{rng.randrange(40)}"
            if rng.random() < 0.2:
                await store.delete("runs", key)
            else:
                await store.put("runs", key, rng.random())
        await trio.sleep(rng.uniform(0, 10))
    links.cut.clear()
    await trio.sleep(300)
    assert len(roots(stores)) == 1, f"seed {seed}"
    assert len({str(store.scan("runs")) for store in stores}) == 1
    assert len(stores[0].scan("runs")) > 10


async def test_equal_replicas_sync_in_one_round_trip(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a = await start_store(nursery, links, 1, is_live=False)
    b = await start_store(nursery, links, 2, is_live=False)
    for index in range(100):
        await a.put("runs", f"k/{index}", index)
    first = await b.sync_with(signer(1).peer)
    assert (first.entries_in, first.entries_out) == (100, 0)
    assert (await b.sync_with(signer(1).peer)).round_trips == 1
    assert a.state_root("runs") == b.state_root("runs")
    assert a.state_root("models") == b.state_root("models") != a.state_root("runs")


async def test_an_entry_from_the_future_is_taken_when_its_time_has_come(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    honest = await start_store(nursery, links, 1)
    ahead = await start_store(nursery, links, 2, skew_ms=60_000)
    await ahead.put("runs", "k", "late")
    await trio.sleep(5)
    assert honest.get("runs", "k") is None
    assert honest.stats().refused["future"] >= 1
    await trio.sleep(90)
    assert honest.get("runs", "k") is not None


async def test_a_liar_at_the_bound_is_overwritten_by_the_next_writer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    store, liar = await start_store(nursery, links, 1), signer(2)
    lie = Chain(2).put("k", "lie", ms=round(trio.current_time() * 1000) + 29_999)
    await store.answer(liar.peer, push(lie))
    assert store.get("runs", "k") is not None
    await store.put("runs", "k", "truth")
    item = store.get("runs", "k")
    assert item is not None
    assert item.value == "truth"
    other = await store.put("runs", "other", 1)
    assert other.hlc < lie.hlc


async def test_forged_entries_and_garbage_change_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links, mallory = Links(), signer(2).peer
    store = await start_store(nursery, links, 1)
    hear = links.listeners[signer(1).peer][TOPIC]
    forged = Chain(3).put("k")
    forged.signed = Signed(forged.signed.body, Chain(2).put("k").signed.signature)
    with pytest.raises(BadMessage, match="signature"):
        await store.answer(mallory, push(forged))
    good = [Chain(2, instance=number).put(f"g/{number}") for number in range(50)]
    with pytest.raises(BadMessage, match="signature"):  # many are checked off the loop
        await store.answer(mallory, push(*good, forged))
    for frame in (b"", b"\x00", b"\xff" * 100, codec.encode(["want", ["x"]])):
        with pytest.raises(BadMessage):
            await store.answer(mallory, frame)
        with pytest.raises(BadMessage):
            await hear(mallory, frame)
    assert store.stats().entries == 0
    assert store.stats().refused["forged"] == 2


async def test_values_that_are_not_msgpack_are_ignored_and_counted(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, chain = await start_store(nursery, Links(), 1), Chain(2)
    values = [b"", b"\xc1", b"\x91" * 2000, b"\x01"]
    records = [chain.write(REGISTER, f"k/{i}", value=raw) for i, raw in enumerate(values)]
    await store.answer(signer(2).peer, push(*records))
    assert [item.value for item in store.scan("runs")] == [1]
    assert store.stats().malformed_values == 3
    assert store.stats().entries == 4


async def test_a_peer_that_answers_nonsense_is_an_error_of_that_sync_only(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    store = await start_store(nursery, links, 1, sync_interval_s=5)

    async def nonsense(peer: object, message: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"\xff" * 40_000

    links.answers[signer(2).peer] = nonsense
    with pytest.raises(BadMessage):
        await store.sync_with(signer(2).peer)
    await trio.sleep(60)
    assert store.stats().syncs_failed > 5
    await store.put("runs", "k", 1)


async def test_a_full_disk_fails_the_write_and_not_the_store(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await start_store(nursery, Links(), 1)

    def full(*_: object) -> None:
        raise StoreFailed("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("crdt.storage.Storage.commit", full)
        with pytest.raises(StoreFailed, match="disk full"):
            await store.put("runs", "k", 1)
    assert store.get("runs", "k") is None
    await store.put("runs", "k", 1)
    assert store.get("runs", "k") is not None


async def test_a_writer_is_not_left_waiting_when_the_store_stops(
    autojump_clock: MockClock,
) -> None:
    own, links = signer(1), Links()
    store = StoreService(
        Wire(links, own.peer), Silence(), SimClock(), own, ":memory:", peers=lambda: []
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(StoreFailed, match="closed"):
        await store.put("runs", "k", 1)


async def test_a_damaged_file_is_one_clear_error(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    (tmp_path / "store.db").write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreCorrupt, match="damaged"):
        await start_store(nursery, Links(), 1, path=tmp_path / "store.db")


async def test_errors_of_the_peer_reach_the_caller_typed(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    store = await start_store(nursery, links, 1)

    async def failing(peer: object, message: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise StoreFailed("disk full")

    links.answers[signer(2).peer] = failing
    with pytest.raises(RemoteError) as caught:
        await store.sync_with(signer(2).peer)
    assert caught.value.code == "store_failed"


async def test_a_peer_that_asks_much_at_a_time_is_told_that_we_are_busy(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, outcomes = await start_store(nursery, Links(), 1), list[str]()
    frame = codec.encode(Hello(bytes(8), EPOCH_MS))

    async def ask(number: int) -> None:
        try:
            await store.answer(signer(number).peer, frame)
            outcomes.append("answered")
        except Busy:
            outcomes.append("busy")

    async with trio.open_nursery() as asking:
        for _ in range(50):
            asking.start_soon(ask, 2)
        asking.start_soon(ask, 3)
    assert outcomes.count("answered") == ANSWERS_MAX + 1
    await store.answer(signer(2).peer, frame)  # and later it is served again
