"""Putting a snapshot of the store in its place: offline, so that no daemon has the file open."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

from crdt.storage import SCHEMA_VERSION
from node.home import Home
from wire.errors import UsageError

_ADDED = ("-wal", "-shm")  # what SQLite keeps beside a file; of another file, they would spoil it


def restore(home: Home, snapshot: Path) -> Path | None:
    """Put a copy of `snapshot` where the store is; return where the old one is kept, if any.

    Raises AlreadyRunning while a daemon has the state directory, UsageError if the file is no
    store. After a failure in its middle the old store may be aside, but it is whole there.
    """
    if not home.path.is_dir():
        raise UsageError(f"there is no state directory {home.path}", hint="`shoal up` makes one")
    with home.lock():
        try:
            with tempfile.TemporaryDirectory(dir=home.path, prefix="restore-") as folder:
                copy = Path(folder) / "store.db"
                shutil.copyfile(snapshot, copy)
                with contextlib.suppress(FileNotFoundError):  # one that an earlier restore kept
                    shutil.copyfile(f"{snapshot}-wal", f"{copy}-wal")
                _check(copy, snapshot)
                copy.chmod(0o600)
                _sync(copy)
                kept = _set_aside(home.store)
                os.replace(copy, home.store)
            _sync(home.path)
        except OSError as error:
            raise UsageError(f"cannot restore {snapshot}: {error.strerror}") from error
    return kept


def _set_aside(store: Path) -> Path | None:
    """Move the old store and what belongs to it away, together."""
    if not store.exists():
        for end in _ADDED:
            Path(f"{store}{end}").unlink(missing_ok=True)
        return None
    kept = store.with_name(f"{store.name}.before-restore-{time.strftime('%Y%m%dT%H%M%S')}")
    while kept.exists():
        kept = kept.with_name(kept.name + "+")
    for end in (*_ADDED, ""):  # the log first: cut here, an older store is left, and a whole log
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{store}{end}", f"{kept}{end}")
    return kept


def _check(copy: Path, snapshot: Path) -> None:
    """Fold a log into the copy; raise UsageError for a file that is no store, or a damaged one."""
    try:
        with contextlib.closing(sqlite3.connect(copy)) as db:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{snapshot} is no snapshot of a store: {error}") from error
    if verdict != "ok":
        raise UsageError(f"{snapshot} is damaged: {verdict}")
    if "entry" not in tables:
        raise UsageError(f"{snapshot} is no snapshot of a store: it holds no entries")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{snapshot} has schema {version}, this version of Shoal reads {SCHEMA_VERSION}",
            hint="use the version of Shoal that wrote it",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
