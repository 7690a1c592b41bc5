"""How much disk blobs take, and which go first."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocols.blobs import space
from protocols.blobs.adding import add_file, add_tree
from protocols.blobs.files import DiskError
from protocols.blobs.index import fresh_row
from protocols.blobs.space import QuotaError
from protocols.blobs.store import HALF_OF_FREE, BlobStore
from protocols.blobs.wire import Cid, raw_cid
from tests.unit.test_blobs_store import content, drive, names
from wire.errors import Busy, UsageError

# --- quota -----------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "small", quota_bytes=10_000)


def small_put(store: BlobStore, size: int, seed: int, *, pin: bool = False) -> Cid:
    return store.put_small(content(size, seed), is_root=True, pin=pin).cid


def use(store: BlobStore, cid: Cid, at_ms: int) -> None:
    store.index.touch(cid, at_ms)


def test_the_longest_unused_goes_first_and_pins_stay(small: BlobStore) -> None:
    first, second, third = (small_put(small, 3000, n, pin=n == 0) for n in range(3))
    for cid, at_ms in ((first, 1), (second, 3), (third, 2)):
        use(small, cid, at_ms)
    fourth = small_put(small, 3000, 4)
    here = {row.cid for row in small.index.all()}
    assert here == {first, second, fourth}
    assert set(names(small.data)) == here
    assert small.space.usage().held_bytes == 9000


def test_what_does_not_fit_is_refused_and_costs_nothing(small: BlobStore) -> None:
    kept = [small_put(small, 3000, n, pin=n == 0) for n in range(3)]
    with pytest.raises(QuotaError, match="no room for"):
        small_put(small, 7001, 9)
    assert all(small.is_whole(cid) for cid in kept)
    small_put(small, 7000, 9)
    assert [small.is_whole(cid) for cid in kept] == [True, False, False]


def test_what_is_open_kept_or_linked_is_not_collected(small: BlobStore, tmp_path: Path) -> None:
    opened, kept, linked, idle = (small_put(small, 2000, n) for n in range(4))
    assert small.link(linked, tmp_path / "link")
    with small.open(opened), small.keep([kept]):
        assert small.space.collect() == (1, 2000)
        assert not small.is_whole(idle)
        for cid in (opened, kept):
            with pytest.raises(Busy):
                small.space.remove(cid)
    (tmp_path / "link").unlink()
    assert small.space.collect() == (3, 6000)
    assert names(small.data) == []


def test_a_folder_goes_with_its_files_and_files_stay_with_their_folder(
    small: BlobStore, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        root = tmp_path / name
        root.mkdir()
        (root / "both").write_bytes(content(1000))
        (root / "own").write_bytes(content(1000, ord(name)))
    a = drive(add_tree(small, tmp_path / "a")).cid
    b = drive(add_tree(small, tmp_path / "b", pin=True)).cid
    both = raw_cid(hashlib.sha256(content(1000)).digest())
    assert small.space.collect()[0] == 2  # a, and the file that only a has
    assert small.index.get(a) is None
    assert small.is_whole(b)
    assert small.is_whole(both)
    with small.path_of(both).open("r+b") as file:
        file.write(b"decayed")
    assert list(small.verify(both)) == [1000]
    assert not small.is_whole(b)


def test_references_take_no_quota(small: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(content(50_000))
    row = drive(add_file(small, tmp_path / "large", mode="reference"))
    assert small.is_whole(row.cid)
    assert small.space.usage().held_bytes == 0
    (tmp_path / "other").write_bytes(content(50_000, 1))
    with pytest.raises(QuotaError):
        drive(add_file(small, tmp_path / "other"))


def test_what_is_being_written_counts(small: BlobStore) -> None:
    with small.space.room(6000), pytest.raises(QuotaError):
        small.space.reserve(6000)
    small.space.reserve(6000)


def test_the_totals_are_those_of_the_rows(small: BlobStore, tmp_path: Path) -> None:
    for seed in range(12):  # some give way to others
        cid = small_put(small, 1500 + seed, seed, pin=seed % 4 == 0)
        small_put(small, 1500 + seed, seed)
        small.index.set_state(cid, is_whole=True, held_bytes=1000 + seed)
    small.space.remove(cid)
    rows = small.index.all()
    assert small.space.usage().held_bytes == sum(row.held_bytes for row in rows) > 0
    assert small.space.usage().pinned_bytes == sum(r.held_bytes for r in rows if r.is_pinned)
    assert small.space.usage().blobs == len(rows)


def test_a_disk_is_never_filled(small: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = small_put(small, 1000, 1)
    disk = SimpleNamespace(total=100_000, free=9000)  # a twentieth of it is not ours
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert small.space.usage().free_bytes == 4000
    with pytest.raises(DiskError, match="the disk has"):
        small.space.reserve(5001)
    with small.space.room(3000):
        with pytest.raises(DiskError, match="the disk has"):
            small.space.reserve(2001)
        small.space.make(1000)
        assert small.is_whole(idle)
        small.space.make(1001)
        assert not small.is_whole(idle)
    disk.free = 50_000
    assert small.space.usage().free_bytes == 10_000


def test_there_are_so_many_blobs(small: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "BLOBS_MAX", 2)
    for seed in range(2):
        small_put(small, 100, seed)
    with pytest.raises(QuotaError, match="2 blobs are here"):
        small.space.check_count()
    with pytest.raises(QuotaError, match="2 blobs are here"):
        small.space.reserve(10)


def test_the_default_quota_is_half_of_the_disk(tmp_path: Path) -> None:
    quota = BlobStore(tmp_path / "blobs", quota_bytes=HALF_OF_FREE).space.quota_bytes
    assert 0.3 < quota / shutil.disk_usage(tmp_path).free < 0.7


def test_what_leaves_with_a_folder_goes_in_the_same_collection(
    small: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(content(4000))
    cid = drive(add_file(small, folder / "a")).cid
    drive(add_tree(small, folder))
    use(small, cid, 10**15)  # used later than all else
    assert small.space.collect()[0] == 2
    assert small.index.count() == 0


def test_a_file_that_a_folder_has_is_not_thrown_away_by_itself(
    small: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(content(4000))
    cid = drive(add_file(small, folder / "a", pin=True)).cid
    tree = drive(add_tree(small, folder, pin=True)).cid
    assert small.space.remove(cid) == 0
    assert [row.cid for row in small.index.roots()] == [tree]
    assert small.is_whole(tree)
    with pytest.raises(UsageError, match="is a file of folder"):
        small.space.remove(cid)
    small.space.remove(tree)
    assert small.index.count() == 0


def test_a_pinned_file_outlives_its_folder(small: BlobStore, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(content(1000))
    (folder / "b").write_bytes(content(1000, 1))
    tree = drive(add_tree(small, folder)).cid
    kept, other = (raw_cid(hashlib.sha256(content(1000, seed)).digest()) for seed in range(2))
    small.index.set_pinned(kept, is_pinned=True)
    small.space.remove(tree)
    assert [small.is_whole(cid) for cid in (kept, other)] == [True, False]


def test_what_comes_again_for_another_reason_stays_pinned_and_named(small: BlobStore) -> None:
    index, cid = small.index, small_put(small, 100, 1)
    index.set_root(cid, name="fish", is_pinned=True)
    index.set_root(cid, name="", is_pinned=False)
    index.put(fresh_row(cid, 100, is_root=False))
    row = index.get(cid)
    assert row is not None
    assert (row.name, row.is_root, row.is_pinned) == ("fish", True, True)


def test_what_is_released_goes_unless_something_needs_it(small: BlobStore, tmp_path: Path) -> None:
    idle, pinned, linked, other = (small_put(small, 1000, n, pin=n == 1) for n in range(4))
    assert small.link(linked, tmp_path / "linked")
    with small.keep([idle]):
        assert small.space.release([idle]) == 0
    assert small.space.release([idle, pinned, linked, raw_cid(bytes(32))]) == 1000
    assert [small.is_whole(cid) for cid in (idle, pinned, linked, other)] == [
        *(False, True, True, True)
    ]
    (tmp_path / "linked").unlink()
    assert small.space.release([linked]) == 1000
