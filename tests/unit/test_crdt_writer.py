"""The writer: durable before visible, one commit for all who wait, chains that never fork."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crdt import drafts, writer
from crdt.batch import Batch, News, NotAllowed, StoreFull
from crdt.clock import ClockError, stamp
from crdt.entry import REGISTER, VALUE_MAX, Record, counted_of
from crdt.fault import judge
from crdt.namespace import open_genesis
from crdt.own import Draft
from crdt.storage import StoreFailed
from tests.unit.store_files import (
    EPOCH_MS,
    SPACE,
    US,
    Author,
    Opened,
    assert_one_chain,
    one_commit,
    opened,
    put,
    records_of,
    rows_of,
    together,
)
from wire import codec
from wire.errors import UsageError
from wire.ids import Signer, public_key_of

OWN = public_key_of(US.peer)


async def test_a_write_is_on_the_disk_before_anybody_hears_of_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    heard: list[str] = []

    def on_news(news: News) -> None:
        on_disk = {record.key for record in rows_of(path)}
        assert {record.key for record in news.added} <= on_disk
        heard.extend(record.key for record in news.added)

    async with opened(path, on_news=on_news) as store:
        await store.put("a")
        assert heard == ["a"]
        assert [record.key for record in store.replica.at("a")] == ["a"]
        await store.writer.submit(Batch([Author().write("b")], source="sync"))
    assert heard == ["a", "b"]
    assert [one.source for one in store.news] == ["own", "sync"]
    assert [one.keys for one in store.news] == [{(SPACE.id, "a")}, {(SPACE.id, "b")}]


async def test_writes_are_a_chain_across_commits(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with opened(tmp_path / "store.db") as store:
        first = await store.put("a")
        found = await together(store, *((f"key/{number}", put(number)) for number in range(10)))
        last = await store.put("a")
    assert_one_chain([first, *records_of(found), last])
    assert first.author == OWN
    assert len(store.news) == 3


async def test_increments_in_one_commit_count_on_from_each_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened(tmp_path / "store.db") as store:
        found = await together(store, *[("hits", drafts.increment(by)) for by in (1, 2, -1, 4)])
        assert len(store.news) == 1
        (held,) = store.replica.at("hits")
    counts = {(one.plus, one.minus) for one in map(counted_of, records_of(found))}
    assert len(counts) == 4
    assert (counted_of(held).plus, counted_of(held).minus) == (7, 1)
    assert_one_chain(records_of(found))


async def test_a_counter_that_counts_again_after_its_entry_was_collected_is_no_fault(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whoever kept the old entry must not be able to accuse us with the new one."""
    async with opened(tmp_path / "store.db") as store:
        first = await store.writer.write(SPACE.id, "hits", drafts.increment(5))
        await store.writer.write(SPACE.id, "hits", drafts.delete())
        await trio.sleep(SPACE.rules.gc_ms / 1000 * 0.6)
        store.writer.settle(store.replica, store.replica.pop_due(store.clock.wall_ms()))
        assert [one.kind for one in store.replica.at("hits")] == [REGISTER]
        second = await store.writer.write(SPACE.id, "hits", drafts.increment(1))
        shown = store.replica.view("hits", store.clock.wall_ms())
    assert first is not None
    assert second is not None
    assert first.chain == second.chain
    assert judge(first, second) is None
    assert shown is not None
    assert shown.total == 1


async def test_a_remove_sees_the_add_before_it_in_the_same_commit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    element = codec.encode("x")
    async with opened(tmp_path / "store.db") as store:
        added, removed, nothing = await together(
            store,
            ("set", drafts.add(element, None)),
            ("set", drafts.remove(element, OWN)),
            ("set", drafts.remove(element, OWN)),
        )
    assert isinstance(added, Record)
    assert isinstance(removed, Record)
    assert [(dot.chain, dot.seq) for dot in removed.entry.seen] == [(added.chain, added.seq)]
    assert nothing is None


async def test_one_that_is_refused_fails_alone_and_leaves_no_gap(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def bad(held: Sequence[Record], chain: bytes) -> Draft:
        raise UsageError("no")

    def room(record: Record, old: Record | None, now_ms: int) -> bool:
        return record.key != "full"

    async with opened(tmp_path / "store.db", room=room) as store:
        outcomes = await together(
            store,
            ("a", put(1)),
            ("b", put("x" * VALUE_MAX)),
            ("c", bad),
            ("full", put(1)),
            ("white space", put(1)),
            ("stranger/@12D3KooW", put(1)),
            ("d", put(2)),
        )
        assert dict(store.writer.refused) == {"full": 1}
    kinds = [type(one) for one in outcomes]
    assert kinds == [Record, UsageError, UsageError, StoreFull, UsageError, UsageError, Record]
    assert_one_chain(records_of(outcomes))


async def test_a_member_without_a_grant_is_told_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened(tmp_path / "store.db") as store:
        store.replica.refusal = lambda record, now_ms: "no_grant"  # type: ignore[method-assign]
        with pytest.raises(NotAllowed, match="no_grant"):
            await store.put("a")


async def test_a_write_is_later_than_what_was_seen_and_than_what_its_key_holds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    ahead = Author(wall_ms=EPOCH_MS + 5_000).write("a")
    further = Author(Signer(bytes(32)), wall_ms=EPOCH_MS + 20_000).write("a")
    async with opened(tmp_path / "store.db") as store:
        await store.writer.submit(Batch([ahead]))
        assert (await store.put("b")).stamp > ahead.stamp  # our clock follows others' so far
        await store.writer.submit(Batch([further]))
        assert (await store.put("a")).stamp > further.stamp


async def test_a_stamp_far_ahead_does_not_carry_our_other_writes_along(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    liar = Author(wall_ms=EPOCH_MS + 29_000).write("contested")
    async with opened(tmp_path / "store.db") as store:
        before = await store.put("a")
        await store.writer.submit(Batch([liar]))
        over = await store.put("contested")
        after = [await store.put("b"), await store.put("c")]
    assert over.stamp > liar.stamp
    assert before.chain == over.chain
    assert after[0].hlc < stamp(EPOCH_MS + 1_000)
    assert_one_chain([before, over])
    assert_one_chain(after)


async def test_a_clock_that_went_back_far_refuses_and_recovers(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened(tmp_path / "store.db") as store:
        first = await store.put("a")
        store.clock.skew_ms = -20_000
        second = await store.put("b")
        store.clock.skew_ms = -40_000
        with pytest.raises(ClockError):
            await store.put("c")
        store.clock.skew_ms = 0
        third = await store.put("d")
    assert_one_chain([first, second, third])


async def test_what_a_commit_did_not_take_is_nowhere_and_begins_a_new_chain(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        first = await store.put("a")
        store.gate.error = StoreFailed("disk I/O error")
        with pytest.raises(StoreFailed, match="I/O"):
            await store.put("b")
        with pytest.raises(StoreFailed, match="I/O"):
            await store.writer.submit(Batch([Author().write("c")]))
        assert not store.writer.is_writable
        assert store.replica.at("b") == store.replica.at("c") == ()
        store.gate.error = None
        second = await store.put("d")
        assert store.writer.is_writable
    assert_one_chain([first])
    assert_one_chain([second])
    assert first.chain != second.chain
    assert [record.key for record in rows_of(path)] == ["a", "d"]


async def test_an_entry_of_our_chain_that_is_not_by_us_ends_the_chain(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Another process goes on from our memory: a machine that was copied while it ran."""
    async with opened(tmp_path / "store.db") as store:
        first = await store.put("a")
        double = Author(US, instance=first.entry.instance, seq=1, link=first.link)
        double.wall_ms = EPOCH_MS + 1
        await store.writer.submit(Batch([double.write("theirs")]))
        second = await store.put("b")
        third = await store.put("c")
        assert not store.replica.faults
    assert second.chain != first.chain
    assert_one_chain([second, third])


async def test_a_proof_against_our_chain_ends_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with opened(tmp_path / "store.db") as store:
        first = await store.put("a")
        proven = judge(first, Author(US, instance=first.entry.instance).write("other"))
        assert proven is not None
        await store.writer.submit(Batch(faults=[proven]))
        second = await store.put("b")
    assert second.chain != first.chain


async def test_a_copied_folder_that_runs_twice_never_forks_a_chain(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    written: list[Record] = []
    async with opened(path) as store:
        written.append(await store.put("a"))
    shutil.copy(path, copy)
    async with opened(path) as one, opened(copy) as other:
        for number in range(3):
            written += [await one.put("a", number), await other.put("a", -number)]
    places = {(record.chain, record.seq) for record in written}
    assert len(places) == len(written) == 7
    assert len({record.chain for record in written}) == 3


async def test_a_file_restored_from_before_never_forks_a_chain(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    async with opened(path) as store:
        written = [await store.put("a", 1)]
    shutil.copy(path, copy)
    async with opened(path) as store:
        written += [await store.put("a", 2), await store.put("a", 3)]
    copy.replace(path)
    async with opened(path) as store:
        written += [await store.put("a", 4), await store.put("a", 5)]
    assert len({(record.chain, record.seq) for record in written}) == 5


async def test_only_news_is_written_and_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    path, author = tmp_path / "store.db", Author()
    old, new, other = author.write("a", 1), author.write("a", 2), author.write("b")
    async with opened(path) as store:
        assert await store.writer.submit(Batch([new, other])) == [new, other]
        assert await store.writer.submit(Batch([old, new])) == []
        found: list[list[Record]] = []

        async def submit(record: Record) -> None:
            found.append(await store.writer.submit(Batch([record])))

        late = author.write("b", 2)
        async with one_commit(store) as nursery:
            for _ in range(3):  # as by the channel and two syncs
                nursery.start_soon(submit, late)
        assert sorted(map(len, found)) == [0, 0, 1]
        await trio.sleep(2)
        assert [record.key for record in rows_of(path)] == ["a", "b"]
        assert [record.row for record in rows_of(path)] == [1, 3]


async def test_what_is_refused_is_counted_and_named(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    ahead = Author(wall_ms=EPOCH_MS + 60_000).write("future")
    async with opened(tmp_path / "store.db") as store:
        stranger = Author(space=open_genesis("other")).write("elsewhere")
        news = await store.writer.submit(Batch([ahead, stranger, Author().write("a")]))
        assert [record.key for record in news] == ["a"]
        assert store.refused == [("future", "future"), ("elsewhere", "unknown")]
        assert dict(store.writer.refused) == {"future": 1, "unknown": 1}


async def test_more_than_a_commit_holds_waits(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "COMMIT_RECORDS_MAX", 10)
    monkeypatch.setattr(writer, "WRITES_MAX", 5)
    author = Author()
    batches = [Batch([author.write(f"{number}/{n}") for n in range(7)]) for number in range(4)]
    async with opened(tmp_path / "store.db") as store:
        before = store.gate.count
        async with one_commit(store) as nursery:
            for batch in batches:
                nursery.start_soon(store.writer.submit, batch)
        assert store.gate.count == before + 1 + len(batches)  # two of them do not fit together
        assert [len(news.added) for news in store.news] == [7, 7, 7, 7]
        store.news.clear()
        outcomes = await together(store, *((f"key/{number}", put(1)) for number in range(12)))
        assert [len(news.added) for news in store.news] == [5, 5, 2]
    assert_one_chain(records_of(outcomes))
    async with opened(tmp_path / "store.db") as store:
        large = Batch([author.write(f"large/{number}") for number in range(25)])
        assert len(await store.writer.submit(large)) == 25  # one that is too large goes alone


async def test_those_who_wait_when_it_closes_are_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    errors: list[str] = []

    async def put_one(store: Opened, key: str) -> None:
        with pytest.raises(StoreFailed) as caught:
            await store.put(key)
        errors.append(str(caught.value))

    async with trio.open_nursery() as outside, opened(tmp_path / "store.db") as store:
        with store.gate.shut():
            outside.start_soon(put_one, store, "a")
            await wait_all_tasks_blocked()
            outside.start_soon(put_one, store, "b")
            await wait_all_tasks_blocked()
            store.task.cancel()
    with pytest.raises(StoreFailed, match="closed"):
        await store.put("c")
    assert errors == ["the store is closed"] * 2
