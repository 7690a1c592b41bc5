"""Blobs on disk: DIR/index.db says what is here, DIR/data/CID holds the bytes of each.

Blocking: call it on a thread; several may use it at once. What is read is hashed, so what has
decayed is taken for absent, and whoever wants it back fetches just that. File names are CIDs.
"""

import io
import logging
import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from protocols.blobs.files import BlobFile, DiskError, sync_file, sync_folder, write_at
from protocols.blobs.index import Index, Row, fresh_row, now_ms
from protocols.blobs.manifest import File, Tree, decode_manifest, layout_of
from protocols.blobs.reading import BlobStream
from protocols.blobs.space import Space
from protocols.blobs.wire import CHUNK_BYTES, Cid, hash_of, is_raw, raw_cid
from wire.errors import NotFound

TOUCH_MS = 60_000  # how exactly we know when a blob was last used
HALF_OF_FREE = -1  # as a quota: half of what is free, and of what is held already
VERIFY_CHUNKS = 16  # hashed at a time, so that it can be cancelled

log = logging.getLogger(__name__)


class BlobStore:
    """All blobs of a node."""

    def __init__(self, folder: Path, *, quota_bytes: int = 0) -> None:
        """Open the folder, making it if need be; throw away what a crash has left over.

        A quota of 0 is none but the disk, see also `HALF_OF_FREE`.
        """
        self.folder = folder
        self.data, self.scratch = folder / "data", folder / "tmp"
        self.found = folder / "found"  # blobs whose table is lost: the service adds them again
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.index = Index(folder / "index.db")
        if self.index.is_new and self.data.exists() and not self.found.exists():
            self.data.rename(self.found)
        for inside in (self.data, self.scratch):
            inside.mkdir(exist_ok=True, mode=0o700)
        self.decayed = 0  # chunks found to be wrong, or gone, since the start
        self._lock = threading.RLock()
        self._opening = threading.Lock()  # one unfinished file is hashed at a time
        self._open: dict[Cid, BlobFile] = {}
        self._kept: Counter[Cid] = Counter()
        self._keeping = threading.Lock()  # of the counter: held for a moment only
        if quota_bytes == HALF_OF_FREE:
            quota_bytes = (shutil.disk_usage(folder).free + self.index.held_bytes()) // 2
        self.space = Space(
            self.index, self.data, quota_bytes, lock=self._lock, is_busy=self._is_busy
        )
        for left in self.scratch.iterdir():
            left.unlink(missing_ok=True)
        self.space.take_stock()

    def path_of(self, cid: Cid) -> Path:
        """Return where our own copy of a blob is, if there is one."""
        return self.data / cid

    def manifest(self, cid: Cid) -> File | Tree | None:
        """Return the manifest of a blob that has one and is known here."""
        data = None if is_raw(cid) else self.index.manifest(cid)
        return None if data is None else decode_manifest(data)

    def is_whole(self, cid: Cid) -> bool:
        """Tell whether nothing of a blob is missing here."""
        row = self.index.get(cid)
        if row is None or not row.is_whole:
            return False
        for each in self.index.references_in(cid) if row.is_tree else [row]:
            if not self._is_there(each):
                self._forget(each)
                return False
        return not (row.is_tree and self.index.broken_files(cid))

    def object(self, cid: Cid) -> bytes:
        """Return what the CID names: a manifest, or the bytes of a small blob. Raises NotFound."""
        if is_raw(cid):
            with self.open(cid) as file:
                return b"".join(file.chunk(index) for index in range(file.layout.count))
        data = self.index.manifest(cid)
        if data is None:
            raise NotFound(f"blob {cid} is not here")
        return data

    def chunks_here(self, cid: Cid) -> tuple[int, bool]:
        """Return how many chunks of a blob can be had from here now (a tree counts as one), and
        whether it is being fetched.
        """
        with self._lock:
            file = self._open.get(cid)
            if file is not None:
                is_whole = file.is_whole
                return max(file.have.bit_count(), int(is_whole)), not is_whole
        row = self.index.get(cid)
        if row is None or not row.is_whole:
            return 0, False
        count = 1 if row.is_tree else max(1, -(-row.size_bytes // CHUNK_BYTES))
        return (count if row.is_tree or self._is_there(row) else 0), False

    # --- reading -------------------------------------------------------------------------------

    @contextmanager
    def open(self, cid: Cid, *, unfinished: bool = False) -> Generator[BlobFile]:
        """Open a file that is whole, or one that others are fetching now; with `unfinished` any
        whose manifest is here. It is not collected meanwhile. Raises NotFound.
        """
        file = self.acquire(cid, unfinished=unfinished)
        try:
            yield file
        finally:
            self.release(file)

    def acquire(self, cid: Cid, *, unfinished: bool = False) -> BlobFile:
        """Open a file, see `open`; `release` it once."""
        with self._opening if unfinished else nullcontext():
            with self._lock:
                if (shared := self._open.get(cid)) is not None:
                    shared.users += 1
                    return shared
                row = self._openable(cid, unfinished=unfinished)
            opened = self._opened(row)
            with self._lock:
                file = self._open.setdefault(cid, opened)
                if file is not opened:  # another thread was faster
                    file.users += 1
                    opened.close()
            return file

    def release(self, file: BlobFile) -> None:
        """Close what `acquire` has opened."""
        with self._lock:
            file.users -= 1
            if file.users:
                return
            cid = Cid(file.cid)
            if self._open.get(cid) is file:
                del self._open[cid]
                row = self.index.get(cid)
                if row is not None and row.path is None and row.held_bytes != file.held_bytes:
                    self.index.set_state(cid, is_whole=row.is_whole, held_bytes=file.held_bytes)
        file.close()

    def read(self, cid: Cid, start: int, stop: int) -> bytes:
        """Return bytes of a file, of which these must be here. Raises NotFound."""
        with self.open(cid, unfinished=True) as file:
            chunks = file.layout.of_range(start, stop)
            data = b"".join(file.chunk(index) for index in chunks)
        before = start - chunks.start * CHUNK_BYTES
        return data[before : before + stop - start] if chunks else b""

    def open_stream(self, cid: Cid) -> io.BufferedReader:
        """Open a whole file for reading and seeking. Raises NotFound."""
        self.touch(cid)
        file = self.acquire(cid)
        if not file.is_whole:
            self.release(file)
            raise NotFound(f"blob {cid} is not here as a whole")
        return io.BufferedReader(BlobStream(file, self.release), CHUNK_BYTES)

    def touch(self, cid: Cid) -> None:
        """Remember that a blob is used now."""
        row, at_ms = self.index.get(cid), now_ms()
        if row is not None and at_ms - row.used_ms > TOUCH_MS:
            self.index.touch(cid, at_ms)

    def verify(self, cid: Cid) -> Iterator[int]:
        """Hash a file, step by step; yields the bytes hashed. What is wrong is gone afterwards."""
        with suppress(NotFound), self.open(cid) as file:
            for index in range(file.layout.count):
                with suppress(NotFound):
                    file.chunk(index)
                if index % VERIFY_CHUNKS == VERIFY_CHUNKS - 1:
                    yield (index + 1) * CHUNK_BYTES
            yield file.layout.size_bytes

    # --- writing -------------------------------------------------------------------------------

    def put_small(self, data: bytes, *, is_root: bool, name: str = "", pin: bool = False) -> Row:
        """Store a blob of up to 1 MiB; durable when it returns, if it is a root, else `settled`."""
        cid = raw_cid(hash_of(data))
        known = self.known(cid, name=name, is_root=is_root, pin=pin, ours=True)
        if known is not None:
            return known
        scratch = self.scratch / f"{cid}.{threading.get_ident()}"
        with self.space.room(len(data)):
            try:
                fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    write_at(fd, data, 0)
                    if is_root:
                        os.fsync(fd)
                finally:
                    os.close(fd)
                row = fresh_row(cid, len(data), name=name, is_root=is_root, pin=pin)
                self.settle(scratch, row, None)
            except OSError as error:
                raise DiskError.of(error) from error
            finally:
                scratch.unlink(missing_ok=True)
        return row

    def settle(self, scratch: Path, row: Row, manifest: bytes | None) -> None:
        """Make a file, synced if it is of a root, the data of a blob, and say that it is here."""
        with self._lock:  # or a collection under way could take the file and not the row
            known = self.index.get(row.cid)
            if known is not None and known.is_whole and known.path is None and not row.is_root:
                return  # another was faster, and may have told its user that it is durable
            os.replace(scratch, self.path_of(row.cid))
            if row.is_root:
                sync_folder(self.data)
            self.index.put(row, manifest, is_lazy=not row.is_root)

    def refer(self, row: Row, manifest: bytes | None) -> None:
        """Say that a blob is the file at `row.path`."""
        with self._lock:
            known = self.index.get(row.cid)
            if known is not None and known.is_whole and known.path is None:
                return  # a copy has come meanwhile, which is better
            self.path_of(row.cid).unlink(missing_ok=True)  # what was fetched of it is not needed
            self.index.put(row, manifest, is_lazy=not row.is_root)

    def settle_all(self, cids: set[Cid]) -> None:
        """Make files that were put lazily durable, at once: each by itself takes four syncs."""
        try:
            for cid in cids:
                with suppress(FileNotFoundError):  # a reference
                    sync_file(self.path_of(cid))
            sync_folder(self.data)
        except OSError as error:
            raise DiskError.of(error) from error
        self.index.settle(cids)

    def mend(self, cid: Cid) -> None:
        """See whether an unfinished file is whole after all: a crash came before its sync."""
        with suppress(NotFound), self.open(cid, unfinished=True) as file:
            if file.is_whole:
                self.finish(file)

    def put_manifest(self, data: bytes, row: Row) -> None:
        """Store a manifest: of a tree, whose files may come later, or of a file to be fetched."""
        manifest = decode_manifest(data)
        self.space.check_count()
        if isinstance(manifest, Tree):
            row = replace(row, size_bytes=manifest.size_bytes, held_bytes=len(data))
            files = {Cid(entry.cid) for entry in manifest.entries}
        else:
            row = replace(row, size_bytes=manifest.size_bytes, held_bytes=0, is_whole=False)
            files = set[Cid]()
        with self.index.change():
            if self.index.get(row.cid) is None:
                self.index.put(row, data, files)
        self.ask_for(row)

    def ask_for(self, row: Row) -> None:
        """Note that somebody wants a blob by itself."""
        if row.is_root:
            self.index.set_root(row.cid, name=row.name, is_pinned=row.is_pinned)

    def known(
        self, cid: Cid, *, name: str, is_root: bool, pin: bool, ours: bool = False
    ) -> Row | None:
        """Return the row of a blob if it is whole here, noting that it was asked for again.

        ours: a reference, whose file may go, is not enough.
        """
        if not self.is_whole(cid):
            return None
        row = self.index.get(cid)
        if ours and (row is None or row.path is not None):
            return None
        if is_root:
            if self.index.is_lazy(cid):
                self.settle_all({cid})
            self.index.set_root(cid, name=name, is_pinned=pin)
        self.touch(cid)
        return self.index.get(cid)

    def pin(self, cid: Cid, *, is_pinned: bool) -> Row:
        """Pin a blob or let it go. Raises NotFound."""
        self.index.set_pinned(cid, is_pinned=is_pinned)
        row = self.index.get(cid)
        if row is None:
            raise NotFound(f"blob {cid} is not here", hint="`shoal get` fetches it")
        return row

    def finish(self, file: BlobFile) -> None:
        """All chunks of an open blob have come: it is whole once they are synced."""
        assert file.is_whole
        try:
            file.sync()
            sync_folder(self.data)
        except OSError as error:
            raise DiskError.of(error) from error
        with self._lock:
            row = self.index.get(Cid(file.cid))
            if row is not None and row.path is None:  # no reference has come instead
                size_bytes = file.layout.size_bytes
                self.index.set_state(row.cid, is_whole=True, held_bytes=size_bytes)

    def link(self, cid: Cid, path: Path) -> bool:
        """Give our copy of a whole file another name; False if it is a reference, or cannot be."""
        row = self.index.get(cid)
        if row is None or not row.is_whole or row.path is not None:
            return False
        try:
            os.link(self.path_of(cid), path)
        except OSError:
            return False
        return True

    @contextmanager
    def keep(self, cids: Iterable[Cid]) -> Generator[None]:
        """Do not collect these meanwhile."""
        kept = list(cids)
        with self._keeping:
            self._kept.update(kept)
        try:
            yield
        finally:
            with self._keeping:
                self._kept -= Counter(kept)

    # --- inside --------------------------------------------------------------------------------

    def _is_busy(self, cid: Cid) -> bool:
        return cid in self._open or self._kept[cid] > 0

    def _openable(self, cid: Cid, *, unfinished: bool) -> Row:
        row = self.index.get(cid)
        if row is None:
            raise NotFound(f"blob {cid} is not here")
        if row.is_tree:
            raise NotFound(f"blob {cid} is a folder", hint="get its files, or all of it")
        if row.is_whole and not self._is_there(row):
            self._forget(row)
            what = "has changed or gone" if row.path else "is gone"  # no path: peers read it
            raise NotFound(f"blob {cid} is not here any more: its file {what}")
        if not row.is_whole and not unfinished:
            raise NotFound(f"blob {cid} is not here as a whole")
        return row

    def _opened(self, row: Row) -> BlobFile:
        manifest = self.manifest(row.cid)
        assert not isinstance(manifest, Tree)
        layout = layout_of(row.cid, manifest, row.size_bytes)
        path = Path(row.path) if row.path else self.path_of(row.cid)
        try:
            return BlobFile(
                row.cid,
                path,
                layout,
                is_whole=row.is_whole,
                is_ours=row.path is None,
                on_decay=self._decay,
            )
        except OSError as error:
            raise NotFound(f"blob {row.cid} cannot be read: {error.strerror}") from error

    def _decay(self, file: BlobFile, index: int) -> None:
        """A chunk is not what it was: a reference is no blob any more, a copy lacks a chunk."""
        cid = Cid(file.cid)
        self.decayed += 1
        log.warning("blobs.decayed cid=%s chunk=%d path=%s", cid, index, file.path)
        with self._lock:
            row = self.index.get(cid)
            is_it = row is not None and (row.path is None) == file.is_ours
            if is_it and file.is_ours:
                self.index.set_state(cid, is_whole=False, held_bytes=file.held_bytes)
            elif is_it:  # else a copy has come meanwhile, or the other way round
                self.index.delete(cid)
            if not file.is_ours and self._open.get(cid) is file:
                del self._open[cid]

    def _forget(self, row: Row) -> None:
        """The file of a blob has gone, or is not the one it was: there is no such blob here."""
        self.decayed += 1
        self.index.delete(row.cid)
        log.warning("blobs.lost cid=%s path=%s", row.cid, row.path or self.path_of(row.cid))

    def _is_there(self, row: Row) -> bool:
        try:
            found = os.stat(row.path or self.path_of(row.cid))
        except (OSError, ValueError):
            return False
        is_right = stat.S_ISREG(found.st_mode) and found.st_size == row.size_bytes
        return is_right and (row.path is None or found.st_mtime_ns == row.mtime_ns)
