"""The file: what was written is read back, damage is named, a failed write keeps nothing."""

import sqlite3
from pathlib import Path

import pytest

from crdt.clock import stamp
from crdt.entry import REGISTER, Entry, Record, seal
from crdt.storage import Storage, StoreCorrupt, StoreFailed
from tests.sim.replicas import signer

OWN = signer(1)


def record(key: str, hlc: int = 1) -> Record:
    return seal(Entry(1, "runs", key, OWN.peer, stamp(1000) + hlc, REGISTER, b"\x01", 0), OWN)


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    storage = Storage(path)
    storage.write([record("a"), record("b")], [])
    storage.write([record("a", hlc=2)], [record("b")])
    storage.close()
    storage = Storage(path)
    assert storage.load() == [record("a", hlc=2)]
    storage.close()


def test_a_dead_record_goes_only_if_it_was_not_overwritten(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store.db")
    storage.write([record("a", hlc=2)], [record("a", hlc=1)])
    assert storage.load() == [record("a", hlc=2)]
    storage.close()


def test_a_file_of_garbage_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreCorrupt, match=r"store\.db is damaged"):
        Storage(path)


def test_rows_that_are_no_entries_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    Storage(path).close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO entry VALUES ('runs', 'a', 'text', x'00')")
    db.close()
    storage = Storage(path)
    with pytest.raises(StoreCorrupt, match="damaged"):
        storage.load()
    storage.close()


def test_a_file_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(StoreCorrupt, match="schema 9"):
        Storage(path)


def test_a_folder_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="cannot open"):
        Storage(tmp_path / "missing" / "store.db")


def test_a_write_that_fails_keeps_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store.db")
    storage.write([record("a")], [])
    (pages,) = storage._db.execute("PRAGMA page_count").fetchone()
    storage._db.execute(f"PRAGMA max_page_count = {pages + 2}")  # as on a full disk
    with pytest.raises(StoreFailed, match="full"):
        storage.write([record(f"b/{index}") for index in range(1000)], [])
    storage._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    storage.write([record("c")], [])
    assert [one.entry.key for one in storage.load()] == ["a", "c"]
    storage.close()
