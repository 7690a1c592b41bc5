"""The file: what was written is read back, damage is named, a failed write keeps nothing."""

import random
import sqlite3
from pathlib import Path

import pytest

from crdt import storage as module
from crdt.entry import Record
from crdt.storage import Changes, Storage, StoreCorrupt, StoreFailed, snapshot
from tests.unit.store_files import SPACE, THEM, Author, rows_of
from wire import codec
from wire.ids import Signer


def bodies(records: list[Record]) -> list[bytes]:
    return [record.signed.body for record in records]


def filled(path: Path, count: int = 3) -> list[Record]:
    author = Author()
    records = [author.write(f"key/{number}", "x" * 20) for number in range(count)]
    storage = Storage(path)
    storage.commit(Changes(records))
    storage.close()
    return records


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    path, author = tmp_path / "store.db", Author()
    a, b, c = (author.write(key) for key in "abc")
    c.is_checked = False
    storage = Storage(path)
    storage.commit(Changes([a, b]))
    storage.commit(Changes([c], dead=[b.row]))
    storage.close()
    found = rows_of(path)
    assert [one.signed for one in found] == [a.signed, c.signed]
    assert [(one.stamp, one.row, one.key) for one in found] == [
        (a.stamp, a.row, "a"),
        (c.stamp, c.row, "c"),
    ]
    assert [one.is_checked for one in found] == [True, False]


def test_rows_are_never_used_twice(tmp_path: Path) -> None:
    path, author = tmp_path / "store.db", Author()
    for _ in range(3):
        storage = Storage(path)
        first, second = author.write("a"), author.write("a")
        storage.commit(Changes([first]))
        storage.commit(Changes([second], dead=[first.row]))
        storage.close()
        assert second.row > first.row
    assert [record.row for record in rows_of(path)] == [2, 4, 6]


def test_slices_give_every_row_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    written, found, row = filled(path, 25), list[Record](), 0
    storage = Storage(path)
    while True:
        records, damaged, row = storage.read(row, 10)
        assert not damaged
        if not row:
            break
        found += records
    storage.close()
    assert bodies(found) == bodies(written)


def test_what_all_entries_of_an_author_begin_with_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    written = filled(path, 3)
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT body FROM entry").fetchall()
        heads = db.execute("SELECT bytes FROM head").fetchall()
    db.close()
    assert heads == [(written[0].signed.body[: module.HEAD_BYTES],)]
    assert heads[0][0][4:36] == SPACE.id
    assert heads[0][0].endswith(written[0].author)
    assert [row for (row,) in rows] == [body[module.HEAD_BYTES :] for body in bodies(written)]


def test_heads_beyond_the_limit_rest_in_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEADS_MAX", 2)
    path = tmp_path / "store.db"
    written = [Author(Signer(bytes([number]) * 32)).write("a") for number in range(4)]
    storage = Storage(path)
    storage.commit(Changes(written[:3]))
    storage.commit(Changes(written[3:]))
    (heads,) = storage._db.execute("SELECT count(*) FROM head").fetchone()
    storage.close()
    assert heads == 2
    assert bodies(rows_of(path)) == bodies(written)


def test_heads_that_nothing_needs_go_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    (gone,) = filled(path, 1)
    kept = Author(Signer(bytes(32))).write("b")
    storage = Storage(path)
    storage.commit(Changes([kept]))
    storage.commit(Changes(dead=[1]))
    storage.close()
    storage = Storage(path)
    assert list(storage._heads.values()) == [kept.signed.body[: module.HEAD_BYTES]]
    storage.commit(Changes([gone]))  # takes a number that is free
    storage.close()
    assert bodies(rows_of(path)) == bodies([kept, gone])


def test_namespaces_proofs_and_numbers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    storage = Storage(path)
    storage.commit(Changes(geneses=[SPACE], meta={"synced_ms": 5}))
    storage.commit(Changes(faults=[(b"n", b"c", b"first"), (b"n", b"d", b"other")]))
    storage.commit(
        Changes(geneses=[SPACE], faults=[(b"n", b"c", b"second")], meta={"synced_ms": 7})
    )
    storage.close()
    storage = Storage(path)
    kept = storage.kept()
    storage.close()
    assert kept.geneses == [SPACE]
    assert kept.faults == [(b"n", b"second"), (b"n", b"other")]
    assert kept.meta == {"synced_ms": 7}


def test_a_namespace_that_is_not_what_its_id_says_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    storage = Storage(path)
    storage.commit(Changes(geneses=[SPACE]))
    storage._db.execute("UPDATE namespace SET id = ?", (bytes(32),))
    with pytest.raises(StoreCorrupt, match="namespace"):
        storage.kept()
    storage.close()


def test_a_file_of_garbage_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreCorrupt, match=r"store\.db is damaged") as caught:
        Storage(path)
    assert "move the file aside" in caught.value.hint


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entry SET body = substr(body, 1, 20) || x'00' || substr(body, 22) WHERE row = 2",
        "UPDATE entry SET body = 'text' WHERE row = 2",
        "UPDATE entry SET signature = zeroblob(64) WHERE row = 2",
        "UPDATE entry SET signature = 7 WHERE row = 2",
        "UPDATE entry SET checksum = checksum + 1 WHERE row = 2",
        "UPDATE entry SET head = 9 WHERE row = 2",
        "UPDATE entry SET head = 0 WHERE row = 2",
    ],
)
def test_a_damaged_row_is_named_and_the_others_are_served(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store.db"
    written = filled(path)
    storage = Storage(path)
    storage._db.execute(damage)
    records, damaged, last = storage.read(0, 10)
    storage.close()
    assert bodies(records) == bodies([written[0], written[2]])
    assert damaged == [2]
    assert last == 3


def _serves_only(path: Path, written: set[bytes]) -> bool:
    """Whether a file opens; then whatever it serves was written, or this fails."""
    try:
        storage = Storage(path)
    except (StoreCorrupt, StoreFailed):
        return False
    try:
        storage.kept()
        records, _, _ = storage.read(0, 10_000)
    except StoreCorrupt:
        return False
    finally:
        storage.close()
    assert set(bodies(records)) <= written
    return True


def test_a_file_cut_off_anywhere_serves_nothing_wrong(tmp_path: Path) -> None:
    path, cut = tmp_path / "store.db", tmp_path / "cut.db"
    written = set(bodies(filled(path, 300)))
    whole = path.read_bytes()
    rng = random.Random(3)
    offsets = [15, 16, 99, 100, *(rng.randrange(100, len(whole)) for _ in range(100))]
    for offset in offsets:
        cut.write_bytes(whole[:offset])
        in_last_page = offset > len(whole) - 4096  # then what it lost are the rows in there
        assert _serves_only(cut, written) <= in_last_page, offset


def test_a_flipped_bit_anywhere_serves_nothing_wrong(tmp_path: Path) -> None:
    path, bad = tmp_path / "store.db", tmp_path / "bad.db"
    written = set(bodies(filled(path, 300)))
    whole = path.read_bytes()
    rng, opened = random.Random(4), 0
    for _ in range(400):
        raw = bytearray(whole)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        bad.write_bytes(raw)
        opened += _serves_only(bad, written)
    assert 0 < opened < 400  # most hit a row, some the tree


def test_a_row_that_the_tree_has_lost_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    filled(path, 300)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"key/150") // 4096 * 4096  # the page of some entries
    assert raw[at] == 0x0D
    raw[at + 4] -= 1  # says that it has a row less
    path.write_bytes(raw)
    with pytest.raises(StoreCorrupt, match="damaged"):
        Storage(path)


def test_a_file_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="schema 9"):
        Storage(path)
    assert path.read_bytes() == before


def test_a_folder_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="cannot open"):
        Storage(tmp_path / "missing" / "store.db")


def test_a_write_that_fails_keeps_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    path, author, other = tmp_path / "store.db", Author(), Author(Signer(bytes(32)))
    storage = Storage(path)
    first = author.write("a")
    storage.commit(Changes([first]))
    (pages,) = storage._db.execute("PRAGMA page_count").fetchone()
    storage._db.execute(f"PRAGMA max_page_count = {pages + 2}")  # as on a full disk
    many = [other.write(f"b/{index}") for index in range(200)]
    with pytest.raises(StoreFailed, match="the disk is full"):
        storage.commit(Changes(many, dead=[first.row]))
    assert {record.row for record in many} == {0}
    storage._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    last = other.write("c")
    storage.commit(Changes([last]))
    storage.close()
    assert bodies(rows_of(path)) == bodies([first, last])


def test_a_write_that_fails_half_way_is_rolled_back(tmp_path: Path) -> None:
    path, author = tmp_path / "store.db", Author()
    storage = Storage(path)
    storage._db.execute(
        "CREATE TEMP TRIGGER stop BEFORE DELETE ON main.entry BEGIN SELECT RAISE(ABORT, 'x'); END"
    )
    first, second = author.write("a"), author.write("b")
    storage.commit(Changes([first]))
    with pytest.raises(StoreFailed):
        storage.commit(Changes([author.write("c")], dead=[first.row]))
    storage.commit(Changes([second]))
    storage.close()
    assert bodies(rows_of(path)) == bodies([first, second])


def test_the_file_shrinks_when_most_of_it_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    written = filled(path, 5000)
    size = path.stat().st_size
    storage = Storage(path)
    for start in range(0, 4900, 100):
        storage.commit(Changes(dead=[one.row for one in written[start : start + 100]]))
    storage.fold_log()
    assert path.stat().st_size < size / 4
    assert (tmp_path / "store.db-wal").stat().st_size == 0
    storage.close()
    assert bodies(rows_of(path)) == bodies(written[4900:])


def test_a_burst_leaves_a_bounded_log(tmp_path: Path) -> None:
    storage, author = Storage(tmp_path / "store.db"), Author()
    storage.commit(Changes([author.write(f"{number}", "x" * 1000) for number in range(5000)]))
    for number in range(3):
        storage.commit(Changes([author.write(f"later/{number}")]))
    assert (tmp_path / "store.db-wal").stat().st_size <= module.LOG_BYTES
    storage.close()


def test_a_snapshot_is_the_store_of_one_moment(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    written = filled(path)
    storage = Storage(path)
    storage.commit(Changes(geneses=[SPACE], meta={"synced_ms": 5}))
    snapshot(path, copy)
    storage.commit(Changes([Author(Signer(bytes(32))).write("later")], dead=[1]))
    storage.close()
    assert bodies(rows_of(copy)) == bodies(written)
    restored = Storage(copy)
    assert restored.kept().geneses == [SPACE]
    assert restored.kept().meta == {"synced_ms": 5}
    assert restored._db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert restored._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert restored._db.execute("PRAGMA journal_mode").fetchone() == (b"wal",)
    restored.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.db", "store.db"]


def test_a_snapshot_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    filled(path)
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(module, "_sync", lambda one: synced.append((one.name, copy.exists())))
    snapshot(path, copy)
    assert synced == [("copy.db.part", False), (tmp_path.name, True)]


def test_a_snapshot_restored_over_a_killed_store_is_not_mixed_with_its_log(tmp_path: Path) -> None:
    path, copy, killed = tmp_path / "store.db", tmp_path / "copy.db", tmp_path / "killed"
    written = filled(path)
    snapshot(path, copy)
    storage = Storage(path)
    storage.commit(Changes([Author(Signer(bytes(32))).write("later")], dead=[1, 2, 3]))
    killed.mkdir()
    for one in tmp_path.glob("store.db*"):  # as they lie when the process dies
        (killed / one.name).write_bytes(one.read_bytes())
    storage.close()
    assert (killed / "store.db-wal").stat().st_size > 0
    copy.replace(killed / "store.db")
    assert bodies(rows_of(killed / "store.db")) == bodies(written)


def test_the_log_of_a_killed_store_is_kept(tmp_path: Path) -> None:
    path, killed = tmp_path / "store.db", tmp_path / "killed"
    storage, author = Storage(path), Author()
    storage.commit(Changes([author.write("a")]))
    killed.mkdir()
    for one in tmp_path.glob("store.db*"):
        (killed / one.name).write_bytes(one.read_bytes())
    storage.close()
    assert [record.key for record in rows_of(killed / "store.db")] == ["a"]


def test_a_snapshot_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"precious")
    bad = tmp_path / "bad.db"
    bad.write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreFailed, match="snapshot"):
        snapshot(bad, copy)
    assert copy.read_bytes() == b"precious"
    with pytest.raises(StoreFailed, match="snapshot"):
        snapshot(bad, tmp_path / "missing" / "copy.db")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.db", "copy.db"]


def test_what_was_read_back_is_what_unseals(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    (written,) = filled(path, 1)
    (found,) = rows_of(path)
    for name in written.__struct_fields__:
        assert getattr(found, name) == getattr(written, name), name
    assert found.peer == THEM.peer
    assert codec.encode(found.entry) == written.signed.body
