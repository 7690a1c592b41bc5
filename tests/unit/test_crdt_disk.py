"""The writer and its disk: what goes from it, what is kept on it, when it fails or is full."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from crdt import writer
from crdt.batch import Batch
from crdt.fault import judge
from crdt.namespace import open_genesis
from crdt.storage import Changes, Storage, StoreFailed
from tests.unit.store_files import (
    EPOCH_MS,
    SPACE,
    Author,
    opened,
    put,
    rows_of,
    together,
)
from wire import codec


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


async def test_chores_are_not_put_off_by_those_that_come_after(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.put("a", 1)
        last = await store.put("a", 2)
        for number in range(5):
            await trio.sleep(writer.DELETE_S / 2)
            store.writer.note_synced(EPOCH_MS + number)
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


@pytest.mark.parametrize("has_proofs", [True, False])
async def test_a_fork_of_which_a_crash_took_the_proof_is_found_again(
    has_proofs: bool, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    monkeypatch.setattr(writer, "UNJUDGED_MAX", 1)
    monkeypatch.setattr(writer, "LOAD_SLICE", 1)
    storage = Storage(path)
    storage.commit(Changes([Author().write("a"), Author(wall_ms=EPOCH_MS).write("b")]))
    storage.close()
    async with opened(path, has_proofs=has_proofs) as store:
        assert len(store.replica.faults) == 1
    storage = Storage(path)  # later rows: the commit after it was done, and brought the proof
    assert storage.last_rows(1) == 1
    other = Author(instance=b"and more")
    storage.commit(Changes([other.write("c"), other.write("d")]))
    storage.close()
    async with opened(path, has_proofs=has_proofs) as store:
        assert len(store.replica.faults) == (not has_proofs)


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


async def test_a_sync_by_a_clock_that_was_ahead_is_not_the_last_for_ever(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        store.writer.note_synced(EPOCH_MS + 10**12)
        await trio.sleep(2)
        store.writer.note_synced(EPOCH_MS)
        await trio.sleep(2)
    async with opened(path) as store:
        assert store.kept.meta == {writer.SYNCED: EPOCH_MS}


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


async def test_namespaces_and_proofs_reach_the_disk_whatever_fails_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        store.gate.error = StoreFailed("disk I/O error")
        proven = judge(Author().write("a"), Author(wall_ms=EPOCH_MS).write("b"))
        assert proven is not None
        store.writer.keep(SPACE)
        with pytest.raises(StoreFailed):
            await store.writer.submit(Batch(faults=[proven]))
        assert store.replica.faults == {proven.chain: proven}
        store.gate.error = None
        await trio.sleep(writer.PROBE_MAX_S)
        store.writer.keep(open_genesis("other"))
        await store.put("b")
        storage = Storage(path)
        kept = storage.kept()
        storage.close()
        assert {genesis.name for genesis in kept.geneses} == {"kv", "other"}
        assert kept.faults == [(SPACE.id, codec.encode(proven.fault))]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if not made or made.returncode:
        pytest.skip("needs leave to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_disk_that_our_own_log_has_filled_is_freed_of_it(
    small_disk: Path, autojump_clock: MockClock
) -> None:
    async with opened(small_disk / "store.db") as store:
        for number in range(10):
            await store.put("a", number)
    async with opened(small_disk / "store.db") as store:  # closing has put the log into the file
        (small_disk / "ballast").write_bytes(bytes(512 * 1024))
        failed = 0
        for number in range(1000):
            try:
                await store.put("a", number)
            except StoreFailed:
                failed += 1
                await trio.sleep(writer.PROBE_MAX_S)
                assert store.writer.is_writable
        assert 0 < failed < 100


async def test_a_disk_that_is_really_full(small_disk: Path, autojump_clock: MockClock) -> None:
    path, ballast, author = small_disk / "store.db", small_disk / "ballast", Author()
    async with opened(path) as store:
        first = await store.put("a")
        await store.writer.submit(Batch([author.write("b")]))
        ballast.write_bytes(bytes(512 * 1024))

        async def fill_with_theirs() -> None:
            for number in range(100):
                big = [author.write(f"{number}/{one}", "x" * 1000) for one in range(20)]
                await store.writer.submit(Batch(big))

        async def fill_with_ours() -> None:
            for number in range(1000):
                await store.put(f"own/{number}", "x" * 1000)

        with pytest.raises(StoreFailed, match="the disk is full"):
            await fill_with_theirs()
        with pytest.raises(StoreFailed, match="the disk is full"):
            await fill_with_ours()
        assert store.replica.at("a") == (first,)
        assert not store.writer.is_writable
        ballast.unlink()
        await trio.sleep(writer.PROBE_MAX_S)
        assert store.writer.is_writable
        await store.put("c")
        held = {record.stamp for record in store.replica.records.values()}
    async with opened(path) as store:
        assert set(store.replica.records) == held
        assert store.writer.damaged == 0


@pytest.mark.parametrize("is_crashed", [False, True])
async def test_a_store_on_a_full_disk_opens_serves_and_recovers(
    small_disk: Path, autojump_clock: MockClock, *, is_crashed: bool
) -> None:
    path, ballast = small_disk / "store.db", small_disk / "ballast"
    async with opened(path) as store:
        first = await store.put("a")
        await store.writer.submit(Batch([Author().write("gone")]))
        if is_crashed:
            for name in ("store.db", "store.db-wal"):
                shutil.copy(small_disk / name, small_disk / f"{name}.was")
    if is_crashed:
        for name in ("store.db", "store.db-wal"):
            (small_disk / f"{name}.was").replace(small_disk / name)
    with sqlite3.connect(path) as db:  # a head that nothing needs, to be tidied at the start
        db.execute("DELETE FROM entry WHERE row = 2")
    db.close()
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreFailed, match="the disk is full"):
        Storage(path)  # there is no room for what SQLite shares with readers
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - 40 * 1024)
    async with opened(path) as store:
        assert [record.stamp for record in store.replica.at("a")] == [first.stamp]
        with pytest.raises(StoreFailed, match="the disk is full"):
            await store.put("b", "x" * 1000)
        ballast.unlink()
        await trio.sleep(writer.PROBE_MAX_S)
        assert store.writer.is_writable
        await store.put("c")
