"""Putting a snapshot in the store's place, and everything that keeps it from being done."""

import sqlite3
from pathlib import Path

import pytest

from crdt.storage import SCHEMA_VERSION
from node.home import AlreadyRunning, Home
from node.restore import restore
from wire.errors import UsageError


def make_store(path: Path, word: str, version: int = SCHEMA_VERSION) -> None:
    """Write a file that looks like a store, and leave its log unfolded as kill -9 does."""
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute(f"PRAGMA user_version = {version}")
    writer.execute("CREATE TABLE entry (body)")
    writer.execute("INSERT INTO entry VALUES (?)", (word,))
    writer.commit()
    files = path, Path(f"{path}-wal")
    data = [file.read_bytes() for file in files]
    writer.close()
    for file, each in zip(files, data, strict=True):
        file.write_bytes(each)


def words(path: Path) -> list[str]:
    reader = sqlite3.connect(path)
    try:
        return [word for (word,) in reader.execute("SELECT body FROM entry")]
    finally:
        reader.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "backup.db"
    make_store(path, "of before")
    words(path)  # folds the log in
    return path


def test_the_old_store_is_kept_whole_and_its_log_does_not_spoil_the_new_one(
    home: Home, snapshot: Path
) -> None:
    make_store(home.store, "of today")
    kept = restore(home, snapshot)
    assert kept is not None
    assert not Path(f"{home.store}-wal").exists()
    assert words(home.store) == ["of before"]
    assert words(kept) == ["of today"]
    assert home.store.stat().st_mode & 0o777 == 0o600
    assert snapshot.exists()
    again = restore(home, snapshot)
    assert again not in (None, kept)
    assert [path.name for path in home.path.iterdir() if path.name.startswith("restore-")] == []


def test_a_new_machine_has_nothing_to_keep(home: Home, snapshot: Path) -> None:
    Path(f"{home.store}-wal").write_bytes(b"of a store that is gone")
    assert restore(home, snapshot) is None
    assert words(home.store) == ["of before"]


def test_a_running_daemon_keeps_its_store(home: Home, snapshot: Path) -> None:
    make_store(home.store, "of today")
    with home.lock(), pytest.raises(AlreadyRunning, match="is in use"):
        restore(home, snapshot)
    assert words(home.store) == ["of today"]


def test_a_store_that_was_kept_can_be_put_back(home: Home, snapshot: Path) -> None:
    make_store(home.store, "of today")
    kept = restore(home, snapshot)
    assert kept is not None
    assert Path(f"{kept}-wal").stat().st_size > 0
    restore(home, kept)
    assert words(home.store) == ["of today"]
    assert not Path(f"{home.store}-wal").exists()


@pytest.mark.parametrize(
    "damage", ["garbage", "cut", "flipped", "another program's", "of another version", "none"]
)
def test_what_is_no_whole_store_changes_nothing(home: Home, snapshot: Path, damage: str) -> None:
    make_store(home.store, "of today")
    data = snapshot.read_bytes()
    if damage == "garbage":
        snapshot.write_bytes(b"not a database" * 1000)
    elif damage == "cut":
        snapshot.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        snapshot.write_bytes(data[:4096] + bytes(4096) + data[8192:])
    elif damage == "another program's":
        snapshot.unlink()
        sqlite3.connect(snapshot).execute("CREATE TABLE song (name)").connection.close()
    elif damage == "of another version":
        snapshot.unlink()
        make_store(snapshot, "of before", SCHEMA_VERSION + 1)
    else:
        snapshot.unlink()
    with pytest.raises(UsageError, match=r"backup\.db"):
        restore(home, snapshot)
    assert words(home.store) == ["of today"]


def test_there_must_be_a_state_directory(tmp_path: Path, snapshot: Path) -> None:
    with pytest.raises(UsageError, match="no state directory"):
        restore(Home(tmp_path / "nothing"), snapshot)
    assert not (tmp_path / "nothing").exists()
