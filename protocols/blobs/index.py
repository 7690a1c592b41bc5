"""The table of blobs, in SQLite: what is here, how much of it, since when, and for whom.

A row is written after the bytes it speaks of are synced, and deleted before they are: whatever a
crash interrupts, no row claims what is not there. Blocking; several threads may use it.
"""

import sqlite3
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocols.blobs.files import DiskError
from protocols.blobs.wire import Cid

VERSION = 1  # of the tables
_COLUMNS = (
    "cid, name, size_bytes, held_bytes, is_whole, is_root, is_pinned, added_ms, used_ms, path,"
    " mtime_ns, ifnull(substr(manifest, 3, 4) = x'74726565', 0)"  # ["tree", …
)
_TABLES = """
CREATE TABLE blobs (
    cid TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    held_bytes INTEGER NOT NULL,  -- of the quota; 0 for a reference
    is_whole INTEGER NOT NULL,    -- 2: not synced yet, see `settle`
    is_root INTEGER NOT NULL,     -- asked for by itself, not only as a part of a tree
    is_pinned INTEGER NOT NULL,
    added_ms INTEGER NOT NULL,
    used_ms INTEGER NOT NULL,
    path TEXT,                    -- of a reference
    mtime_ns INTEGER NOT NULL,
    manifest BLOB
) STRICT;
CREATE TABLE members (
    tree TEXT NOT NULL REFERENCES blobs (cid) ON DELETE CASCADE,
    cid TEXT NOT NULL,
    PRIMARY KEY (tree, cid)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_by_cid ON members (cid);
CREATE TABLE totals (blobs INTEGER NOT NULL, held_bytes INTEGER NOT NULL) STRICT;
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON blobs BEGIN
    UPDATE totals SET blobs = blobs + 1, held_bytes = held_bytes + new.held_bytes;
END;
CREATE TRIGGER changed AFTER UPDATE OF held_bytes ON blobs BEGIN
    UPDATE totals SET held_bytes = held_bytes + new.held_bytes - old.held_bytes;
END;
CREATE TRIGGER gone AFTER DELETE ON blobs BEGIN
    UPDATE totals SET blobs = blobs - 1, held_bytes = held_bytes - old.held_bytes;
END;
"""
_UPSERT = """
INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (cid) DO UPDATE SET
    name = CASE excluded.name WHEN '' THEN name ELSE excluded.name END,
    held_bytes = excluded.held_bytes, is_whole = excluded.is_whole,
    is_root = max(is_root, excluded.is_root), is_pinned = max(is_pinned, excluded.is_pinned),
    used_ms = excluded.used_ms, path = excluded.path, mtime_ns = excluded.mtime_ns
"""
# The time of a tree's last use is that of any of its files.
_IDLE = """
SELECT cid FROM blobs WHERE is_pinned = 0
AND NOT EXISTS (SELECT 1 FROM members WHERE members.cid = blobs.cid)
ORDER BY max(used_ms, ifnull((
    SELECT max(file.used_ms) FROM members JOIN blobs AS file ON file.cid = members.cid
    WHERE members.tree = blobs.cid), 0))
"""
# Files that are here for this tree only.
_ONLY_IN = """
SELECT blobs.cid FROM members JOIN blobs ON blobs.cid = members.cid
WHERE members.tree = ?1 AND is_root = 0 AND is_pinned = 0 AND NOT EXISTS (
    SELECT 1 FROM members AS other WHERE other.cid = blobs.cid AND other.tree != ?1)
"""


@dataclass(frozen=True)
class Row:
    """What the table says of one blob."""

    cid: Cid
    name: str
    size_bytes: int
    held_bytes: int
    is_whole: bool
    is_root: bool
    is_pinned: bool
    added_ms: int
    used_ms: int
    path: str | None = None
    mtime_ns: int = 0
    is_tree: bool = False


def fresh_row(
    cid: Cid, size_bytes: int, *, name: str = "", is_root: bool, pin: bool = False
) -> Row:
    """Return the row of a whole copy that has just come."""
    at_ms = now_ms()
    return Row(cid, name, size_bytes, size_bytes, True, is_root, pin, at_ms, at_ms)


def now_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


class Index:
    """The table. Every method is a transaction, unless it is called within `change`."""

    def __init__(self, path: Path) -> None:
        self._path, self._mutex = path, threading.RLock()
        self._seen = (0, 0)
        with self._lock():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self.is_new = self._db.execute("PRAGMA user_version").fetchone()[0] < VERSION
            if self.is_new:
                self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            self._db.execute("UPDATE blobs SET is_whole = 0 WHERE is_whole = 2")

    @contextmanager
    def _lock(self) -> Generator[None]:
        """Use the database alone. What SQLite says of it is raised as DiskError."""
        with self._mutex:
            try:
                yield
            except sqlite3.Error as error:
                raise _disk_error(self._path, error) from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def change(self) -> Generator[None]:
        """Make several changes one; an exception takes them back."""
        with self._lock(), self._db:  # which commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def get(self, cid: Cid) -> Row | None:
        """Return the row of a blob."""
        found = self._select("WHERE cid = ?", cid)
        return found[0] if found else None

    def manifest(self, cid: Cid) -> bytes | None:
        """Return the manifest of a blob that is not raw."""
        with self._lock():
            row = self._db.execute("SELECT manifest FROM blobs WHERE cid = ?", (cid,)).fetchone()
        return None if row is None else row[0]

    def roots(self) -> list[Row]:
        """Return what was asked for by itself, newest first."""
        return self._select("WHERE is_root ORDER BY added_ms DESC, cid")

    def all(self) -> list[Row]:
        """Return every row, newest first."""
        return self._select("ORDER BY added_ms DESC, cid")

    def held_bytes(self) -> int:
        """Return how much of the quota is taken."""
        return self._number("SELECT held_bytes FROM totals")

    def pinned_bytes(self) -> int:
        """Return how much of it is pinned."""
        return self._number("SELECT ifnull(sum(held_bytes), 0) FROM blobs WHERE is_pinned")

    def count(self) -> int:
        """Return how many blobs there are."""
        return self._number("SELECT blobs FROM totals")

    def glance(self) -> tuple[int, int]:
        """Return count and held bytes at once: while a thread writes, those seen last."""
        if self._mutex.acquire(blocking=False):
            try:
                self._seen = (self.count(), self.held_bytes())
            finally:
                self._mutex.release()
        return self._seen

    def put(
        self,
        row: Row,
        manifest: bytes | None = None,
        files: Iterable[Cid] = (),
        *,
        is_lazy: bool = False,
    ) -> None:
        """Write a row. What it says of a blob already known is joined with what was known.

        is_lazy: neither its file nor the row is synced; `settle` does it. Until then a restart
        takes it for unfinished.
        """
        with self._lock():
            sizes = (row.cid, row.name, row.size_bytes, row.held_bytes)
            flags = (2 if is_lazy else int(row.is_whole), row.is_root, row.is_pinned)
            source = (row.path, row.mtime_ns, manifest)
            values = (*sizes, *flags, row.added_ms, row.used_ms, *source)
            pairs = [(row.cid, cid) for cid in files]
            if is_lazy:
                self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute(_UPSERT, values)
                self._db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?)", pairs)
            finally:
                if is_lazy:
                    self._db.execute("PRAGMA synchronous = FULL")

    def is_lazy(self, cid: Cid) -> bool:
        """Tell whether a blob is here, but not synced."""
        query = "SELECT 1 FROM blobs WHERE cid = ? AND is_whole = 2"
        with self._lock():
            return self._db.execute(query, (cid,)).fetchone() is not None

    def settle(self, cids: Iterable[Cid]) -> None:
        """The files of these are synced: now their rows are, too."""
        with self.change():
            self._db.executemany(
                "UPDATE blobs SET is_whole = 1 WHERE is_whole = 2 AND cid = ?",
                [(cid,) for cid in cids],
            )

    def set_state(self, cid: Cid, *, is_whole: bool, held_bytes: int) -> None:
        """Say how much of a blob is here."""
        self._do("UPDATE blobs SET is_whole = ?, held_bytes = ? WHERE cid = ?",
                 is_whole, held_bytes, cid)  # fmt: skip

    def set_root(self, cid: Cid, *, name: str, is_pinned: bool) -> None:
        """Somebody asked for a blob by itself."""
        self._do(
            "UPDATE blobs SET is_root = 1, is_pinned = max(is_pinned, ?1),"
            " name = CASE ?2 WHEN '' THEN name ELSE ?2 END WHERE cid = ?3",
            is_pinned, name, cid,
        )  # fmt: skip

    def unset_root(self, cid: Cid) -> None:
        """Nobody wants a blob by itself any more."""
        self._do("UPDATE blobs SET is_root = 0, is_pinned = 0 WHERE cid = ?", cid)

    def set_pinned(self, cid: Cid, *, is_pinned: bool) -> None:
        """Pin a blob, or let it go."""
        self._do("UPDATE blobs SET is_pinned = ? WHERE cid = ?", is_pinned, cid)

    def touch(self, cid: Cid, now_ms: int) -> None:
        """A blob is used now."""
        self._do("UPDATE blobs SET used_ms = ? WHERE cid = ?", now_ms, cid)

    def delete(self, cid: Cid) -> None:
        """Forget a blob; of a tree, which files it had."""
        self._do("DELETE FROM blobs WHERE cid = ?", cid)

    def idle(self) -> list[Cid]:
        """Return what could go: not pinned and in no tree, longest unused first."""
        return self._cids(_IDLE)

    def only_in(self, tree: Cid) -> list[Cid]:
        """Return the files that nobody would miss but this tree."""
        return self._cids(_ONLY_IN, tree)

    def trees_with(self, cid: Cid) -> list[Cid]:
        """Return the trees that have a file."""
        return self._cids("SELECT tree FROM members WHERE cid = ?", cid)

    def broken_files(self, tree: Cid) -> list[Cid]:
        """Return the files of a tree that are not whole here."""
        return self._cids(
            "SELECT members.cid FROM members LEFT JOIN blobs ON blobs.cid = members.cid"
            " WHERE members.tree = ? AND ifnull(is_whole, 0) = 0",
            tree,
        )

    def partial_bytes(self, tree: Cid) -> int:
        """Return how much is here of the files of a tree that are not whole."""
        return self._number(
            "SELECT ifnull(sum(held_bytes), 0) FROM members JOIN blobs ON blobs.cid = members.cid"
            " WHERE members.tree = ? AND is_whole = 0",
            tree,
        )

    def references_in(self, tree: Cid) -> list[Row]:
        """Return the files of a tree that are references."""
        return self._select(
            "WHERE path IS NOT NULL AND cid IN (SELECT cid FROM members WHERE tree = ?)", tree
        )

    # --- inside --------------------------------------------------------------------------------

    def _select(self, rest: str, *values: object) -> list[Row]:
        with self._lock():
            found = self._db.execute(f"SELECT {_COLUMNS} FROM blobs {rest}", values).fetchall()
        return [_row(*columns) for columns in found]

    def _cids(self, query: str, *values: object) -> list[Cid]:
        with self._lock():
            return [Cid(cid) for (cid,) in self._db.execute(query, values).fetchall()]

    def _number(self, query: str, *values: object) -> int:
        with self._lock():
            return int(self._db.execute(query, values).fetchone()[0])

    def _do(self, query: str, *values: object) -> None:
        with self._lock():
            self._db.execute(query, values)


def _disk_error(path: Path, error: sqlite3.Error) -> DiskError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        hint = f"stop the daemon and move {path}* away: what is in `data` is then added again"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = f"does another program use {path}?"
    else:
        hint = f"is the disk of {path} full, or read-only?"
    return DiskError(f"the table of blobs: {error}", hint=hint)  # no path: peers may read it


def _row(
    cid: str,
    name: str,
    size_bytes: int,
    held_bytes: int,
    is_whole: int,
    is_root: int,
    is_pinned: int,
    added_ms: int,
    used_ms: int,
    path: str | None,
    mtime_ns: int,
    is_tree: int,
) -> Row:
    flags = (bool(is_whole), bool(is_root), bool(is_pinned))
    times = (added_ms, used_ms)
    return Row(
        Cid(cid), name, size_bytes, held_bytes, *flags, *times, path, mtime_ns, bool(is_tree)
    )
