"""The writer: durable before visible, one commit for all who wait, chains that never fork."""

import shutil
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crdt import drafts, writer
from crdt.batch import Batch, News, NotAllowed, StoreFull
from crdt.clock import ClockError, stamp
from crdt.entry import NO_LINK, VALUE_MAX, Record, is_signed
from crdt.fault import counted_of, judge
from crdt.namespace import open_genesis
from crdt.own import Build, Draft
from crdt.storage import Changes, Storage, StoreFailed
from tests.unit.store_files import (
    EPOCH_MS,
    SPACE,
    US,
    Author,
    Opened,
    opened,
    put,
    rows_of,
)
from wire import codec
from wire.errors import ShoalError, UsageError
from wire.ids import public_key_of

OWN = public_key_of(US.peer)
Outcome = Record | ShoalError | None


@asynccontextmanager
async def one_commit(store: Opened) -> AsyncGenerator[trio.Nursery]:
    """What is started in the block goes into one commit."""
    async with trio.open_nursery() as nursery:
        with store.gate.shut():
            nursery.start_soon(store.writer.submit, Batch())
            await wait_all_tasks_blocked()  # until the writer waits for the disk
            yield nursery
            await wait_all_tasks_blocked()


async def together(store: Opened, *writes: tuple[str, Build]) -> list[Outcome]:
    """Make writes that go into one commit, in this order; returns what became of each."""
    outcomes: dict[int, Outcome] = {}

    async def one(index: int, key: str, build: Build) -> None:
        try:
            outcomes[index] = await store.writer.write(SPACE.id, key, build)
        except ShoalError as error:
            outcomes[index] = error

    async with one_commit(store) as nursery:
        for index, (key, build) in enumerate(writes):
            nursery.start_soon(one, index, key, build)
            await wait_all_tasks_blocked()
    return [outcomes[index] for index in range(len(writes))]


def records_of(outcomes: Sequence[Outcome]) -> list[Record]:
    return [one for one in outcomes if isinstance(one, Record)]


def assert_one_chain(records: Sequence[Record]) -> None:
    """Records are a chain from its beginning: numbered, linked, later and later, signed."""
    records = sorted(records, key=lambda one: one.seq)
    assert [one.seq for one in records] == list(range(1, len(records) + 1))
    assert [one.entry.prev for one in records] == [NO_LINK, *(one.link for one in records[:-1])]
    assert all(a.hlc < b.hlc for a, b in pairwise(records))
    assert len({(one.chain, one.author) for one in records}) == 1
    for record in records:
        record.is_checked = False
        assert is_signed(record)


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

    def room(record: Record, now_ms: int) -> bool:
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


async def test_a_write_is_later_than_what_its_key_holds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    ahead = Author(wall_ms=EPOCH_MS + 5_000).write("a")
    async with opened(tmp_path / "store.db") as store:
        await store.writer.submit(Batch([ahead]))
        assert (await store.put("a")).stamp > ahead.stamp
        assert (
            await store.put("b")
        ).stamp > ahead.stamp  # our clock follows others', within reason


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


async def test_what_merging_drops_leaves_the_disk_within_a_second_or_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.put("a", 1)
        last = await store.put("a", 2)
        assert len(rows_of(path)) == 2
        await trio.sleep(writer.DELETE_S + 0.1)
        assert [record.stamp for record in rows_of(path)] == [last.stamp]


async def test_what_a_crash_left_of_superseded_rows_is_healed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, author = tmp_path / "store.db", Author()
    old, new = author.write("a", 1), author.write("a", 2)
    storage = Storage(path)
    storage.commit(Changes([new, old]))
    storage.commit(Changes([new]))  # and once more, as if a commit had come back
    storage.close()
    async with opened(path) as store:
        assert [one.stamp for one in store.replica.at("a")] == [new.stamp]
        await trio.sleep(2)
        assert [record.stamp for record in rows_of(path)] == [new.stamp]


async def test_damaged_rows_are_counted_and_go(tmp_path: Path, autojump_clock: MockClock) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await together(store, ("a", put(1)), ("b", put(2)))
    db = sqlite3.connect(path)
    db.execute("UPDATE entry SET signature = zeroblob(64) WHERE row = 1")
    db.commit()
    db.close()
    async with opened(path) as store:
        assert store.writer.damaged == 1
        assert store.replica.at("a") == ()
        await trio.sleep(2)
    async with opened(path) as store:
        assert store.writer.damaged == 0
        assert len(store.replica.at("b")) == 1


async def test_entries_of_unknown_namespaces_stay_where_they_are(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, stranger = tmp_path / "store.db", Author(space=open_genesis("other")).write("a")
    storage = Storage(path)
    storage.commit(Changes([stranger]))
    storage.close()
    async with opened(path) as store:
        await store.put("b")
        await trio.sleep(2)
        assert not store.replica.at("a")
    assert [record.key for record in rows_of(path)] == ["a", "b"]


async def test_proofs_are_kept_those_that_the_replica_keeps(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    one, other = Author(), Author()
    one.write("a"), other.write("a")
    third, fork = one.write("b"), other.write("c")
    later = judge(third, fork)  # of seq 2
    first = judge(Author().write("d"), Author(wall_ms=EPOCH_MS).write("e"))  # of seq 1
    assert later is not None
    assert first is not None

    def on_disk() -> list[bytes]:
        storage = Storage(path)
        faults = [raw for _, raw in storage.kept().faults]
        storage.close()
        return faults

    async with opened(path) as store:
        await store.writer.submit(Batch(faults=[later], source="sync"))
        assert store.news[-1].faults == [later]
        assert on_disk() == [codec.encode(later.fault)]
        await store.writer.submit(Batch(faults=[first]))
        await store.writer.submit(Batch(faults=[later]))
        assert on_disk() == [codec.encode(first.fault)]
        del store.replica.faults[first.chain]  # as when an author has too many
        store.writer.settle(store.replica, store.replica.merge_fault(later))
        await trio.sleep(2)
        assert on_disk() == [codec.encode(later.fault)]


async def test_a_fork_found_while_merging_is_proven_on_the_disk(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.writer.submit(Batch([Author().write("a")]))
        await store.writer.submit(Batch([Author(wall_ms=EPOCH_MS).write("b")]))
        (proven,) = store.replica.faults.values()
        assert [one.faults for one in store.news] == [[], [proven]]
        await trio.sleep(2)
    async with opened(path) as store:
        assert store.kept.faults == [(SPACE.id, codec.encode(proven.fault))]
        assert store.kept.digests == {SPACE.id: {proven.chain: proven.digest}}


async def test_a_proof_found_here_is_kept_without_waiting(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    proven = judge(Author().write("a"), Author(wall_ms=EPOCH_MS).write("b"))
    assert proven is not None
    async with opened(tmp_path / "store.db") as store:
        store.writer.found(proven)
        await trio.sleep(1)
        assert store.replica.faults == {proven.chain: proven}
    async with opened(tmp_path / "store.db") as store:
        assert len(store.kept.faults) == 1


async def test_the_time_of_the_last_sync_is_known_to_the_minute(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, began = tmp_path / "store.db", EPOCH_MS
    async with opened(path) as store:
        store.writer.note_synced(began)
        await trio.sleep(2)
        store.writer.note_synced(began + 59_000)  # not alone
        await trio.sleep(2)
    async with opened(path) as store:
        assert store.kept.meta == {writer.SYNCED: began}
        store.writer.note_synced(began + 59_000)
        await store.put("a")
    async with opened(path) as store:
        assert store.kept.meta == {writer.SYNCED: began + 59_000}


async def test_more_than_a_commit_holds_waits(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "COMMIT_RECORDS_MAX", 10)
    monkeypatch.setattr(writer, "WRITES_MAX", 5)
    author = Author()
    batches = [Batch([author.write(f"{number}/{n}") for n in range(7)]) for number in range(4)]
    async with opened(tmp_path / "store.db") as store:
        async with one_commit(store) as nursery:
            for batch in batches:
                nursery.start_soon(store.writer.submit, batch)
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


async def test_a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        first = await store.put("a", 1)
        last = await store.put("a", 2)
        storage = store.writer._storage
        assert storage is not None
        pages = storage._db.execute("PRAGMA page_count").fetchone()[0]
        storage._db.execute(f"PRAGMA max_page_count = {pages}")
        author = Author()
        for _ in range(3):
            big = [author.write(f"big/{number}", "x" * 1000) for number in range(50)]
            with pytest.raises(StoreFailed, match="the disk is full"):
                await store.writer.submit(Batch(big))
        assert not store.writer.is_writable
        assert store.replica.at("a") == (last,)
        await trio.sleep(30)  # a small write finds room: the rows of what was superseded are gone
        assert [record.stamp for record in rows_of(path)] == [last.stamp]
        assert store.writer.is_writable
        with pytest.raises(StoreFailed, match="the disk is full"):
            await store.writer.submit(Batch(big))
        storage._db.execute("PRAGMA max_page_count = 100000")
        assert len(await store.writer.submit(Batch(big))) == 50
        again = await store.put("a", 3)
    assert first.chain == last.chain != again.chain
