"""Where entries rest: one SQLite file in WAL mode with full sync. Blocking; one call at a time.

The file holds what the replicas retain, as signed bytes. It is ours, so signatures are not checked
again, but every row carries a checksum: damage is found and named, never served. Rows are numbered
here and only grow, so that new ones go to the end of the file's tree. Format: docs/protocols/
store.md, Storage.
"""

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from crdt.entry import Record, Signed, read_back
from crdt.namespace import Genesis, genesis_decoder
from wire import codec
from wire.errors import BadMessage, ShoalError

T = TypeVar("T")
SCHEMA_VERSION = 2
BUSY_S = 2.0  # only a person with the sqlite3 shell can hold the lock; the daemon is alone
HEAD_BYTES = 70  # version, namespace and author: the same in all that an author writes there
HEADS_MAX = 4096  # of them are kept once instead of in each row: 0.5 MB; the rest stay whole
LOG_PAGES = 256  # the log is folded into the file each MB: more would outweigh a small store
LOG_BYTES = 2 * 1024 * 1024  # what a burst may leave of the log file
ROWS_AT_ONCE = 50  # in one statement. Each gives up the interpreter and waits for it: 40 us a row
# beside a busy event loop if it went by rows, 7 so
VACUUM_PAGES = 256  # moved in one commit while the file shrinks: 1 MB of log
FREE_PAGES = 16  # not worth a move
_ROLLBACK_MODE = b"\1\1"  # bytes 18 and 19 of a file that is not in WAL mode
_SCHEMA = """
CREATE TABLE head (head INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE entry (
    row INTEGER PRIMARY KEY,
    head INTEGER NOT NULL,
    body BLOB NOT NULL,
    signature BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    is_checked INTEGER NOT NULL
);
CREATE TABLE namespace (id BLOB PRIMARY KEY, genesis BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE fault (
    namespace BLOB, chain BLOB, proof BLOB NOT NULL, PRIMARY KEY (namespace, chain)
) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class StoreCorrupt(ShoalError):
    """The file cannot be read as a store."""

    code = "store_corrupt"
    hint = "move the file aside; the state comes back from the swarm"


class StoreFailed(ShoalError):
    """The disk did not take a write: full, read-only or failing. Nothing of it counts."""

    code = "store_failed"
    hint = "check the disk's free space and health"


@dataclass
class Changes:
    """What one transaction does.

    dead: rows to delete. faults: (namespace, chain, proof), one per chain is kept; an empty proof
    takes away what is there.
    meta: numbers to remember by name.
    """

    records: Sequence[Record] = ()
    dead: Sequence[int] = ()
    faults: Sequence[tuple[bytes, bytes, bytes]] = ()
    geneses: Sequence[Genesis] = ()
    meta: dict[str, int] = field(default_factory=dict[str, int])


@dataclass
class Kept:
    """What a file holds besides entries."""

    geneses: list[Genesis]
    faults: list[tuple[bytes, bytes]]  # namespace, encoded proof
    digests: dict[bytes, dict[bytes, bytes]]  # of the proofs, by namespace and chain
    meta: dict[str, int]


class Storage:
    """One open file."""

    def __init__(self, path: Path | str) -> None:
        """Open or create. `:memory:` keeps nothing. Raises StoreCorrupt, StoreFailed."""
        self.path = path
        try:
            _drop_stale_log(Path(path))
            # Calls come one at a time, but from whichever thread of the pool is free.
            self._db = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(f"cannot open {path}: {error}") from error
        self._db.text_factory = bytes  # a blob whose type was damaged is a row like others
        try:
            self._prepare()
            self._heads: dict[int, bytes] = dict(self._db.execute("SELECT head, bytes FROM head"))
            (last,) = self._db.execute("SELECT max(row) FROM entry").fetchone()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise self._failed(error) from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StoreCorrupt(f"{path} is damaged: {error}") from error
        except StoreCorrupt:
            self._db.close()
            raise
        self._next_row: int = (last or 0) + 1
        self._head_numbers = {head: number for number, head in self._heads.items()}

    def kept(self) -> Kept:
        """Read what is not entries. Raises StoreCorrupt."""
        try:
            geneses = self._db.execute("SELECT id, genesis FROM namespace").fetchall()
            faults = self._db.execute("SELECT namespace, chain, proof FROM fault").fetchall()
            digests: dict[bytes, dict[bytes, bytes]] = {}
            for namespace, chain, proof in faults:
                digests.setdefault(namespace, {})[chain] = hashlib.sha256(proof).digest()
            meta = self._db.execute("SELECT key, value FROM meta").fetchall()
            numbers = {key.decode(): int(value) for key, value in meta}
            decoded = [codec.decode(raw, genesis_decoder, len(raw)) for _, raw in geneses]
        except (sqlite3.DatabaseError, BadMessage, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{self.path} is damaged: {error}") from error
        if [one.id for one in decoded] != [id for id, _ in geneses]:
            raise StoreCorrupt(f"{self.path} is damaged: a namespace is not what its ID says")
        return Kept(decoded, [(one, proof) for one, _, proof in faults], digests, numbers)

    def read(self, after: int, limit: int) -> tuple[list[Record], list[int], int]:
        """Read the next rows: the entries, the rows that are damaged, the last row (0: no more).

        Cost: 5 us an entry. Raises StoreCorrupt.
        """
        try:
            rows = self._db.execute(
                "SELECT row, head, body, signature, checksum, is_checked FROM entry"
                " WHERE row > ? ORDER BY row LIMIT ?",
                (after, limit),
            ).fetchall()
        except sqlite3.DatabaseError as error:
            raise StoreCorrupt(f"{self.path} is damaged: {error}") from error
        records, damaged = list[Record](), list[int]()
        heads = self._heads | {0: b""}
        for row, head, rest, signature, checksum, is_checked in rows:
            try:
                body = heads[head] + rest
                if _checksum(body, signature) != checksum:
                    raise BadMessage("checksum")
                record = read_back(Signed(body, signature))
            except (BadMessage, KeyError, TypeError):
                damaged.append(row)
                continue
            record.row, record.is_checked = row, bool(is_checked)
            records.append(record)
        return records, damaged, rows[-1][0] if rows else 0

    def last_rows(self, count: int) -> int:
        """Return the row before the last `count` ones; 0 if there are no more. Raises
        StoreCorrupt.
        """
        query = "SELECT row FROM entry ORDER BY row DESC LIMIT 1 OFFSET ?"
        try:
            found = self._db.execute(query, (count,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise StoreCorrupt(f"{self.path} is damaged: {error}") from error
        return found[0] if found is not None else 0

    def commit(self, changes: Changes) -> None:
        """One transaction: durable when it returns; then the records know their rows.

        Raises StoreFailed: then nothing of it counts, though a crash may bring it back.
        """
        db = self._db
        first, new_heads = self._next_row, dict[bytes, int]()
        rows = self._rows(changes.records, new_heads)
        self._next_row += len(rows)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO head VALUES (?, ?)", _swapped(new_heads).items())
            for part in _parts(rows):
                values = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(part))
                fields = [field for row in part for field in row]
                db.execute(f"INSERT INTO entry VALUES {values}", fields)
            for dead in _parts(changes.dead):
                marks = ", ".join("?" * len(dead))
                db.execute(f"DELETE FROM entry WHERE row IN ({marks})", dead)
            db.executemany(
                "INSERT OR REPLACE INTO fault VALUES (?, ?, ?)",
                [fault for fault in changes.faults if fault[2]],
            )
            db.executemany(
                "DELETE FROM fault WHERE namespace = ? AND chain = ?",
                [fault[:2] for fault in changes.faults if not fault[2]],
            )
            db.executemany(
                "INSERT OR REPLACE INTO namespace VALUES (?, ?)",
                [(genesis.id, codec.encode(genesis)) for genesis in changes.geneses],
            )
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", changes.meta.items())
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._failed(error) from error
        self._head_numbers |= new_heads
        self._heads |= _swapped(new_heads)
        for row, record in enumerate(changes.records, first):
            record.row = row
        if changes.dead:
            self._shrink()

    def fold_log(self) -> None:
        """Put the log into the file and empty it: a full disk may have room for more after that."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            return  # the write that follows says what is wrong

    def close(self) -> None:
        """Close the file; SQLite folds the log into it."""
        self._db.close()

    def _rows(
        self, records: Sequence[Record], new_heads: dict[bytes, int]
    ) -> list[tuple[int, int, bytes, bytes, int, bool]]:
        numbers = self._head_numbers
        rows: list[tuple[int, int, bytes, bytes, int, bool]] = []
        for row, record in enumerate(records, self._next_row):
            body, signature = record.signed.body, record.signed.signature
            checksum = _checksum(body, signature)
            head = body[:HEAD_BYTES]
            number = numbers.get(head) or new_heads.get(head) or 0
            if not number and len(numbers) + len(new_heads) < HEADS_MAX:
                number = new_heads[head] = max(self._heads, default=0) + len(new_heads) + 1
            rest = body[HEAD_BYTES:] if number else body
            rows.append((row, number, rest, signature, checksum, record.is_checked))
        return rows

    def _prepare(self) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise StoreCorrupt(
                f"{self.path} has schema {version}, this version of Shoal reads {SCHEMA_VERSION}",
                hint="use the version of Shoal that wrote it, or move the file aside",
            )
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file: before its first page
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        if version == 0:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
            return
        faults = db.execute("PRAGMA quick_check(1)").fetchall()  # 30 ms for 100,000 entries
        if faults != [(b"ok",)]:
            raise StoreCorrupt(f"{self.path} is damaged: {faults[0][0].decode()}")
        # Only here: while the daemon runs the table of heads is bounded, but not tidy.
        with suppress(sqlite3.OperationalError):  # of a full disk: it is as well served so
            db.execute("DELETE FROM head WHERE head NOT IN (SELECT head FROM entry)")

    def _shrink(self) -> None:
        """Give pages back to the disk, some at a time, once a quarter of the file is free."""
        try:
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            if free > FREE_PAGES and free > pages // 4:
                # Not `execute`, which takes one step of a pragma without columns: one page.
                self._db.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        except sqlite3.Error:
            return  # the file stays as large as it is; what was committed is

    def _failed(self, error: sqlite3.Error) -> StoreFailed:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL or _is_full(Path(self.path)):
            return StoreFailed(
                f"the disk is full: {self.path} takes no writes",
                hint="free some space; reads go on, and writes by themselves then",
            )
        return StoreFailed(f"cannot use {self.path}: {error}")

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                return  # SQLite has rolled back by itself; the next BEGIN says if not


def snapshot(source: Path, target: Path) -> None:
    """Copy a store that may be open and written to; the copy is one consistent, compact file.

    Blocking, writes go on meanwhile. To restore it, put it in the place of a store that is closed.
    Raises StoreFailed: then what was at `target` is still there.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        db = sqlite3.connect(source, timeout=BUSY_S, isolation_level=None)
        try:
            db.execute("VACUUM INTO ?", (str(part),))
        finally:
            db.close()
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    except (sqlite3.Error, OSError) as error:
        part.unlink(missing_ok=True)
        raise StoreFailed(f"cannot write a snapshot to {target}: {error}") from error


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _drop_stale_log(path: Path) -> None:
    """Remove the log of another file. A snapshot is not in WAL mode: a log beside one belongs to
    the store that it was put in the place of, and SQLite would apply it.
    """
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or not path.exists():
        return
    with path.open("rb") as file:
        mode = file.read(20)[18:]
    if mode == _ROLLBACK_MODE:
        log.unlink()
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def _checksum(body: bytes, signature: bytes) -> int:
    """Return 32 bits over a row, as SQLite stores them in four bytes."""
    return zlib.crc32(signature, zlib.crc32(body)) - 0x8000_0000


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE))


def _swapped(heads: dict[bytes, int]) -> dict[int, bytes]:
    return {number: head for head, number in heads.items()}


def _is_full(path: Path) -> bool:
    try:
        return os.statvfs(path).f_bavail == 0
    except OSError:
        return False
