"""Where entries rest: one SQLite file in WAL mode with full sync. Blocking; used from one thread.

The file holds exactly the winners, as signed bytes. It is trusted (it is ours), but whatever
does not read back is reported as `StoreCorrupt`, never guessed at.
"""

import sqlite3
from pathlib import Path

from crdt.entry import Record, Signed, unseal
from wire.errors import BadMessage, ShoalError

SCHEMA_VERSION = 1
BUSY_S = 2.0  # only a person with the sqlite3 shell can hold the lock; the daemon is alone
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    body BLOB NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID
"""


class StoreCorrupt(ShoalError):
    """The file cannot be read as a store."""

    code = "store_corrupt"
    hint = "move the file aside; the state comes back from the swarm"


class StoreFailed(ShoalError):
    """The disk did not take a write: full, read-only or failing. Nothing of it was kept."""

    code = "store_failed"
    hint = "check the disk's free space and health"


class Storage:
    """One open file."""

    def __init__(self, path: Path | str) -> None:
        """Open or create. `:memory:` keeps nothing. Raises StoreCorrupt, StoreFailed."""
        self.path = path
        # Calls come one at a time, but from whichever thread of the pool is free.
        try:
            self._db = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise StoreFailed(f"cannot open {path}: {error}") from error
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise StoreFailed(f"cannot open {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StoreCorrupt(f"{path} is damaged: {error}") from error
        except StoreCorrupt:
            self._db.close()
            raise

    def load(self) -> list[Record]:
        """Read everything. Signatures were checked before it was written. Raises StoreCorrupt."""
        try:
            rows = self._db.execute("SELECT body, signature FROM entry").fetchall()
            return [unseal(Signed(body, signature)) for body, signature in rows]
        except (sqlite3.Error, BadMessage, TypeError) as error:
            raise StoreCorrupt(f"{self.path} is damaged: {error}") from error

    def write(self, winners: list[Record], dead: list[Record]) -> None:
        """One transaction: durable when it returns, or nothing of it. Raises StoreFailed."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)",
                [
                    (r.entry.namespace, r.entry.key, r.signed.body, r.signed.signature)
                    for r in winners
                ],
            )
            self._db.executemany(
                "DELETE FROM entry WHERE namespace = ? AND key = ? AND body = ?",
                [(r.entry.namespace, r.entry.key, r.signed.body) for r in dead],
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreFailed(f"cannot write to {self.path}: {error}") from error

    def close(self) -> None:
        """Close the file; SQLite folds the log into it."""
        self._db.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise StoreCorrupt(
                f"{self.path} has schema {version}, this version of Shoal reads {SCHEMA_VERSION}",
                hint="use the version of Shoal that wrote it, or move the file aside",
            )
        self._db.execute(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                return  # SQLite has rolled back by itself; the next BEGIN says if not
