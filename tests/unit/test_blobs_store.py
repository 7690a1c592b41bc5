"""Blobs on disk: whole or known to be not, whatever happens to the disk or the process."""

import hashlib
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from protocols.blobs import files
from protocols.blobs.adding import Adding, Mode, add_file, export_file
from protocols.blobs.files import DiskError
from protocols.blobs.index import Row, fresh_row
from protocols.blobs.manifest import File
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import CHUNK_BYTES, Cid, manifest_cid, raw_cid
from wire import codec
from wire.errors import NotFound, UsageError

T = TypeVar("T")
SIZES = [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7]


def content(size: int, seed: int = 0) -> bytes:
    pattern = b"0123456789abcdef!%d" % seed
    return (pattern * (size // len(pattern) + 1))[:size]


def drive(steps: Generator[int, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def put(store: BlobStore, tmp_path: Path) -> Callable[..., Row]:
    def add(data: bytes, *, mode: Mode = "copy", pin: bool = False) -> Row:
        path = tmp_path / f"in-{hashlib.sha256(data).hexdigest()[:8]}"
        path.write_bytes(data)
        return drive(add_file(store, path, mode=mode, pin=pin))

    return add


def read_all(store: BlobStore, cid: Cid) -> bytes:
    with store.open_stream(cid) as file:
        return file.read()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["copy", "reference", "take"])
def test_a_blob_reads_and_exports_as_it_was_put(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path, size: int, mode: Mode
) -> None:
    data = content(size)
    row = put(data, mode=mode)
    assert (row.size_bytes, row.is_whole) == (size, True)
    assert row.held_bytes == (0 if mode == "reference" else size)
    assert store.path_of(row.cid).exists() == (mode != "reference")
    with store.open_stream(row.cid) as file:
        assert file.read() == data
        file.seek(max(0, size - 5))
        assert file.read(100) == data[max(0, size - 5) :]
        file.seek(size // 2)
        assert file.read(3) == data[size // 2 : size // 2 + 3]
    assert store.read(row.cid, 3, size - 3) == data[3 : max(0, size - 3)]
    for is_fresh in (True, False):
        for _ in export_file(store, row.cid, tmp_path / "out", is_fresh=is_fresh):
            pass
        assert (tmp_path / "out").read_bytes() == data
    assert put(data).cid == row.cid
    assert names(store.scratch) == []


def test_small_blobs_have_the_names_of_ipfs() -> None:
    # `ipfs add --cid-version=1 --raw-leaves` of "hello world\n"
    digest = hashlib.sha256(b"hello world\n").digest()
    assert raw_cid(digest) == "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"


def test_the_file_itself_is_taken_without_a_copy(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path
) -> None:
    row = put(content(3000), mode="take")
    source = next(tmp_path.glob("in-*"))
    assert source.stat().st_ino == store.path_of(row.cid).stat().st_ino


def test_all_is_there_after_a_restart(put: Callable[..., Row], store: BlobStore) -> None:
    rows = [put(content(size), pin=bool(size)) for size in SIZES]
    again = BlobStore(store.folder)
    assert [again.index.get(row.cid) for row in rows] == rows
    assert [read_all(again, row.cid) for row in rows] == [content(size) for size in SIZES]


def test_what_a_crash_left_over_goes(store: BlobStore, put: Callable[..., Row]) -> None:
    row = put(b"fish")
    (store.scratch / "half").write_bytes(b"fi")
    (store.data / raw_cid(bytes(32))).write_bytes(b"renamed, but not in the index yet")
    again = BlobStore(store.folder)
    assert names(again.scratch) == []
    assert names(again.data) == [row.cid]


def test_what_was_not_synced_is_hashed_before_it_is_believed(store: BlobStore) -> None:
    """Files of a folder are synced together at its end; a crash may come before."""
    rows = [store.put_small(content(1000, seed), is_root=False) for seed in range(4)]
    assert all(store.is_whole(row.cid) for row in rows)
    store.known(rows[0].cid, name="", is_root=True, pin=False)  # asked for by itself
    store.settle_all({rows[1].cid})
    again = BlobStore(store.folder)
    assert [again.is_whole(row.cid) for row in rows] == [True, True, False, False]
    again.path_of(rows[3].cid).write_bytes(bytes(1000))  # as a power cut may leave it
    for row in rows:
        again.mend(row.cid)
    assert [again.is_whole(row.cid) for row in rows] == [True, True, True, False]
    assert read_all(again, rows[2].cid) == content(1000, 2)


# --- decay -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 3 * CHUNK_BYTES])
def test_a_decayed_copy_is_not_given_and_is_mended_by_what_it_lacks(
    store: BlobStore, put: Callable[..., Row], size: int
) -> None:
    row = put(content(size))
    with store.path_of(row.cid).open("r+b") as file:
        file.seek(size - 1)
        file.write(b"X")
    with pytest.raises(NotFound, match="not here any more"):
        read_all(store, row.cid)
    assert not store.is_whole(row.cid)
    assert store.decayed == 1
    with store.open(row.cid, unfinished=True) as file:
        last = file.layout.count - 1
        assert [file.have >> i & 1 for i in range(last + 1)] == [1] * last + [0]
        assert file.put(last, content(size)[last * CHUNK_BYTES :])
        store.finish(file)
    assert read_all(store, row.cid) == content(size)


@pytest.mark.parametrize("change", ["touch", "write", "truncate", "remove", "folder"])
def test_a_reference_whose_file_has_changed_is_no_blob_any_more(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path, change: str
) -> None:
    row = put(content(2 * CHUNK_BYTES), mode="reference")
    source = next(tmp_path.glob("in-*"))
    match change:
        case "touch":
            os.utime(source, ns=(1, 1))
        case "write":  # in secret: with the times of before
            before = source.stat()
            with source.open("r+b") as file:
                file.write(b"X")
            os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "truncate":
            source.write_bytes(b"")
        case _:
            source.unlink()
            if change == "folder":
                source.mkdir()
    with pytest.raises(NotFound, match="not here"):
        read_all(store, row.cid)
    assert store.index.get(row.cid) is None


def test_a_lost_file_is_a_lost_blob(store: BlobStore, put: Callable[..., Row]) -> None:
    row = put(b"fish")
    store.path_of(row.cid).unlink()
    with pytest.raises(NotFound, match="its file is gone"), store.open(row.cid):
        pass
    assert not store.is_whole(row.cid)
    assert store.decayed == 1


def test_verify_finds_what_is_wrong(store: BlobStore, put: Callable[..., Row]) -> None:
    good, bad = put(content(20 * CHUNK_BYTES)), put(content(20 * CHUNK_BYTES, 1))
    with store.path_of(bad.cid).open("r+b") as file:
        file.seek(5 * CHUNK_BYTES)
        file.write(b"X")
    for row in (good, bad):
        assert list(store.verify(row.cid))[-1] == 20 * CHUNK_BYTES
    assert (store.is_whole(good.cid), store.is_whole(bad.cid)) == (True, False)


# --- unfinished files ------------------------------------------------------------------------


def begin(store: BlobStore, data: bytes) -> Cid:
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    hashes = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    manifest = codec.encode(File(len(data), hashes))
    cid = manifest_cid(manifest)
    store.put_manifest(manifest, fresh_row(cid, 0, is_root=True))
    return cid


def test_an_unfinished_file_is_sparse_and_not_given(store: BlobStore) -> None:
    data = content(40 * CHUNK_BYTES + 5)
    cid = begin(store, data)
    with store.open(cid, unfinished=True) as file:
        assert file.put(40, data[-5:])
        assert not file.put(1, data[:CHUNK_BYTES])
        assert not file.put(0, data[: CHUNK_BYTES - 1])
        assert store.chunks_here(cid) == (1, True)
        with store.open(cid) as shared:  # others may have what is there
            assert shared.chunk(40) == data[-5:]
            with pytest.raises(NotFound):
                shared.chunk(0)
    assert store.path_of(cid).stat().st_blocks * 512 < CHUNK_BYTES
    assert store.chunks_here(cid) == (0, False)
    with pytest.raises(NotFound, match="not here as a whole"):
        read_all(store, cid)


@pytest.mark.parametrize("loss", ["nothing", "tail", "torn", "zeroed", "all"])
def test_a_restart_believes_only_what_is_right(store: BlobStore, loss: str) -> None:
    """Kill -9 keeps what was written; a power cut may lose or tear any of it."""
    data = b"".join(bytes([65 + number]) * CHUNK_BYTES for number in range(6))
    cid = begin(store, data)
    with store.open(cid, unfinished=True) as file:
        for index in (0, 2, 3):
            assert file.put(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    path = store.path_of(cid)
    expected = {0, 2, 3}
    match loss:
        case "tail":
            os.truncate(path, 3 * CHUNK_BYTES + 10)
            expected = {0, 2}
        case "torn":
            with path.open("r+b") as torn:
                torn.seek(2 * CHUNK_BYTES + 4096)
                torn.write(bytes(4096))
            expected = {0, 3}
        case "zeroed":
            path.write_bytes(bytes(6 * CHUNK_BYTES))
            expected = set()
        case "all":
            path.unlink()
            expected = set()
        case _:
            pass
    again = BlobStore(store.folder)
    with again.open(cid, unfinished=True) as file:
        assert {index for index in range(6) if file.have >> index & 1} == expected
        for index in set(range(6)) - expected:
            assert file.put(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        again.finish(file)
    assert read_all(BlobStore(store.folder), cid) == data


def test_what_a_killed_fetch_has_left_counts(store: BlobStore) -> None:
    data = content(20 * CHUNK_BYTES)
    cid = begin(store, data)
    with store.open(cid, unfinished=True) as file:
        for index in range(4):
            assert file.put(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        os.sync()  # blocks are counted when they are given out
        again = BlobStore(store.folder)  # as after kill -9: nothing was closed
        assert 4 * CHUNK_BYTES <= again.index.held_bytes() < 5 * CHUNK_BYTES


# --- the disk --------------------------------------------------------------------------------


def test_a_disk_that_is_nearly_full_is_left_alone(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.folder)
    monkeypatch.setattr(
        "protocols.blobs.space.shutil.disk_usage", lambda _: usage._replace(free=1 << 20)
    )
    with pytest.raises(DiskError, match="no room for"):
        store.put_small(b"fish", is_root=True)
    assert store.index.count() == 0


@pytest.mark.parametrize("step", ["write_at", "sync_file", "sync_folder", "os.replace"])
def test_a_write_that_fails_at_any_step_leaves_nothing(
    store: BlobStore, put: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = put(content(1000, 7))
    if step == "os.replace":
        monkeypatch.setattr("protocols.blobs.store.os.replace", full)
    else:
        for module in ("adding", "store"):
            if hasattr(__import__(f"protocols.blobs.{module}", fromlist=["x"]), step):
                monkeypatch.setattr(f"protocols.blobs.{module}.{step}", full)
    with pytest.raises(DiskError, match="No space"):
        put(content(2 * CHUNK_BYTES))
    monkeypatch.undo()
    assert [row.cid for row in store.index.all()] == [before.cid]
    assert names(store.scratch) == []
    assert read_all(store, before.cid) == content(1000, 7)
    assert names(BlobStore(store.folder).data) == [before.cid]


@pytest.mark.parametrize("step", range(8))
def test_an_add_that_is_given_up_leaves_nothing(
    store: BlobStore, tmp_path: Path, step: int
) -> None:
    (tmp_path / "in").write_bytes(content(40 * CHUNK_BYTES))
    adding: Adding = add_file(store, tmp_path / "in")
    for _ in range(min(step, 5)):
        next(adding)
    adding.close()
    assert names(store.scratch) == names(store.data) == []
    assert store.space._reserved_bytes == 0


def test_what_cannot_be_added_is_said(store: BlobStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "nothing", "No such file"),
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path, "no regular file"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(UsageError, match=reason):
            drive(add_file(store, path))


def test_a_file_that_changes_meanwhile_is_not_added(store: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(content(20 * CHUNK_BYTES))
    adding = add_file(store, path)
    next(adding)
    path.write_bytes(content(20 * CHUNK_BYTES, 5))
    with pytest.raises(UsageError, match="changed while"):
        drive(adding)
    assert store.index.count() == 0


def test_the_kernel_need_not_copy(
    store: BlobStore, put: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(files.os, "copy_file_range", refuse)
    data = content(3 * CHUNK_BYTES + 1)
    for _ in export_file(store, put(data).cid, tmp_path / "out", is_fresh=True):
        pass
    assert (tmp_path / "out").read_bytes() == data
