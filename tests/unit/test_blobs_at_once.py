"""Blobs when more than one thing happens at once, and in places where something is already."""

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols.blobs.adding import add_file, export_file
from protocols.blobs.files import DiskError
from protocols.blobs.index import Row
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import CHUNK_BYTES
from tests.unit.test_blobs_store import content, drive, put, read_all, store
from wire.errors import NotFound, UsageError

__all__ = ["put", "store"]  # fixtures


def test_a_size_that_lies_is_no_empty_blob(store: BlobStore) -> None:
    with pytest.raises(UsageError, match="more in it than its size"):
        drive(add_file(store, Path("/proc/cpuinfo")))


def test_only_a_plain_file_is_written_over(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path
) -> None:
    cid = put(b"new").cid
    place, other = tmp_path / "place", tmp_path / "other"
    other.write_text("other")
    place.symlink_to(other)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path in (place, tmp_path / "folder", tmp_path / "fifo", Path("/"), tmp_path / "no" / "x"):
        with pytest.raises(UsageError):
            list(export_file(store, cid, path, is_fresh=False))
    assert place.is_symlink()
    assert other.read_text() == "other"
    list(export_file(store, cid, other, is_fresh=False))
    assert other.read_text() == "new"
    assert not list(tmp_path.glob(".shoal-*"))


def test_two_exports_to_one_path_do_not_meet(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path
) -> None:
    data = content(3 * CHUNK_BYTES)
    cid, path = put(data).cid, tmp_path / "out"
    first = export_file(store, cid, path, is_fresh=False)
    next(first)
    second = export_file(store, cid, path, is_fresh=False)
    next(second)
    list(first)
    assert path.read_bytes() == data
    list(second)
    assert path.read_bytes() == data


def test_a_copy_asked_for_outlives_the_file_that_was_referred_to(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path
) -> None:
    data = content(2 * CHUNK_BYTES)
    cid = put(data, mode="reference").cid
    assert put(data).cid == cid
    for path in tmp_path.glob("in-*"):
        path.unlink()
    assert store.is_whole(cid)
    assert read_all(store, cid) == data


def test_a_reference_that_decays_while_it_is_read_does_not_take_the_copy_with_it(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path
) -> None:
    data = content(2 * CHUNK_BYTES)
    cid = put(data, mode="reference").cid
    (source,) = tmp_path.glob("in-*")
    with store.open(cid) as old:
        put(data)
        os.truncate(source, 5)
        with pytest.raises(NotFound):
            old.chunk(1)
    assert store.is_whole(cid)
    assert read_all(store, cid) == data


def test_a_file_of_a_folder_does_not_make_an_acknowledged_one_unsure(
    store: BlobStore, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    path.write_bytes(content(3 * CHUNK_BYTES * 8))
    as_part = add_file(store, path, is_root=False)
    next(as_part)  # under way, and not known yet
    cid = drive(add_file(store, path)).cid
    drive(as_part)
    as_reference = add_file(store, path, mode="reference")
    drive(as_reference)
    store.index.close()  # as a crash does, before the folder is settled
    again = BlobStore(store.folder)
    assert again.is_whole(cid)
    row = again.index.get(cid)
    assert row is not None
    assert row.path is None


def test_a_damaged_table_is_said_and_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    folder.mkdir()
    (folder / "index.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(DiskError, match="not a database") as caught:
        BlobStore(folder)
    assert "index.db* away" in caught.value.hint
    assert (folder / "index.db").read_bytes().startswith(b"no database")


def test_what_sqlite_says_is_an_error_of_ours(store: BlobStore, put: Callable[..., Row]) -> None:
    cid = put(b"x").cid
    with sqlite3.connect(store.folder / "index.db", isolation_level=None) as other:
        other.execute("DROP TABLE members")
    other.close()
    with pytest.raises(DiskError, match="no such table"):
        store.space.collect()
    assert store.index.get(cid) is not None
    with store.open(cid) as file:
        assert file.chunk(0) == b"x"


def test_a_glance_does_not_wait_for_who_writes(store: BlobStore, put: Callable[..., Row]) -> None:
    put(b"one")
    assert store.index.glance() == (1, 3)
    is_writing, may_end = threading.Event(), threading.Event()

    def write() -> None:
        with store.index.change():
            is_writing.set()
            may_end.wait(10)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert is_writing.wait(10)
        assert store.index.glance() == (1, 3)
        assert not may_end.is_set()
    finally:
        may_end.set()
        thread.join()
    put(b"three")
    assert store.index.glance() == (2, 8)
