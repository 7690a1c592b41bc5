"""Blobs between peers: add, give, fetch from many providers at once, keep what is wanted.

Everything that arrives is hashed before it is kept, so a provider can refuse or stall, but not
deceive. What has arrived stays: a fetch that is repeated goes on where the last one ended.
"""

import io
import logging
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from protocols.blobs.adding import Mode, add_file, add_tree, export_file, export_tree, size_of
from protocols.blobs.getting import Getting
from protocols.blobs.give import Giving
from protocols.blobs.index import Row, fresh_row
from protocols.blobs.manifest import Tree
from protocols.blobs.progress import Counters, Report, Transfer
from protocols.blobs.search import Finder
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import CHUNK_BYTES, Cid, parse_cid
from wire.errors import ShoalError, UsageError
from wire.faults import OnFailure
from wire.ids import PeerId
from wire.ports import OffLoop, Rpc
from wire.threads import Threads

T = TypeVar("T")

THREADS = 4  # for hashing and the disk; one hashes 1 GB/s or so
READ_MAX_BYTES = 256 * 1024 * 1024  # what is read into memory unless told otherwise
PROVIDED_MAX = 10_000  # blobs that the DHT is told of; connected members can be asked for any
PROVIDE_LOOK_S = 60.0  # how often what is here is compared with what was told

log = logging.getLogger(__name__)


class BlobService:
    """`run` tells the DHT what is here; everything else works without it."""

    def __init__(
        self,
        rpc: Rpc,
        store: BlobStore,
        *,
        peers: Callable[[], list[PeerId]] = lambda: [],
        finder: Finder | None = None,
        upload_bytes_per_s: float = 0.0,
        off_loop: OffLoop | None = None,
    ) -> None:
        """`peers` lists who is connected now, `finder` is the DHT. `off_loop` is for simulators,
        whose clock must not run while a thread works.
        """
        self.store, self.counters = store, Counters()
        self._finder = finder
        self._off_loop: OffLoop = off_loop or Threads(THREADS)
        self._provided: dict[Cid, None] = {}
        self._news = trio.Event()  # there may be something to provide
        self._giving = Giving(
            rpc,
            store,
            off_loop=self._off_loop,
            counters=self.counters,
            upload_bytes_per_s=upload_bytes_per_s,
        )
        self._getting = Getting(
            rpc,
            store,
            peers=peers,
            finder=finder,
            off_loop=self._off_loop,
            counters=self.counters,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell the DHT which blobs are here, until cancelled."""
        task_status.started()
        await self._adopt()
        while self._finder is not None:
            self._news = trio.Event()
            try:
                await self._provide(self._finder)
            except ShoalError as error:  # of the disk: others may still be served
                log.error("blobs.not_provided %s", error)
            with trio.move_on_after(PROVIDE_LOOK_S):
                await self._news.wait()

    # --- adding --------------------------------------------------------------------------------

    async def put_bytes(self, data: bytes, *, name: str = "", pin: bool = False) -> Cid:
        """Store a blob; durable when it returns."""
        if len(data) <= CHUNK_BYTES:
            work = partial(self.store.put_small, data, is_root=True, name=name, pin=pin)
            row = await self._off_loop(work)
            self._news.set()
            return row.cid
        path = self.store.scratch / f"put-{random.getrandbits(64):016x}"
        try:
            await self._off_loop(partial(_write, path, data))
            return await self.put_file(path, mode="take", name=name, pin=pin)
        finally:
            path.unlink(missing_ok=True)

    async def put_file(
        self,
        path: Path,
        *,
        mode: Mode = "copy",
        name: str = "",
        pin: bool = False,
        report: Report | None = None,
    ) -> Cid:
        """Store a file or a folder as a blob; durable when it returns. See `adding.add_file`."""
        return (await self.add(path, mode=mode, name=name, pin=pin, report=report)).cid

    async def add(
        self,
        path: Path,
        *,
        mode: Mode = "copy",
        name: str = "",
        pin: bool = False,
        report: Report | None = None,
    ) -> Row:
        """Store a file or a folder as a blob; returns what is known of it."""
        transfer = Transfer(size_bytes=await self._off_loop(partial(size_of, path)))
        add = add_tree if await trio.Path(path).is_dir() else add_file
        adding = add(self.store, path, mode=mode, name=name, pin=pin)
        row = await self._drive(adding, transfer, report)
        self._news.set()
        return row

    # --- reading -------------------------------------------------------------------------------

    async def has(self, cid: str) -> bool:
        """Tell whether the whole blob is here."""
        return await self._off_loop(partial(self.store.is_whole, parse_cid(cid)))

    async def open(self, cid: str) -> io.BufferedReader:
        """Open a whole file for (blocking) reads and seeks. Raises NotFound."""
        return await self._off_loop(partial(self.store.open_stream, parse_cid(cid)))

    async def read_bytes(self, cid: str, *, limit_bytes: int = READ_MAX_BYTES) -> bytes:
        """Return a whole file. Raises NotFound, or UsageError if it is over the limit."""
        with await self.open(cid) as file:
            data = await self._off_loop(partial(file.read, limit_bytes + 1))
        if len(data) > limit_bytes:
            raise UsageError(f"blob {cid} is over {limit_bytes} B")
        return data

    async def read_range(
        self, cid: str, start: int, stop: int, providers: Iterable[PeerId] = ()
    ) -> bytes:
        """Return bytes of a file; only the chunks that hold them are fetched. Raises what `fetch`
        raises; UsageError for over `READ_MAX_BYTES`.
        """
        if not 0 <= start <= stop or stop - start > READ_MAX_BYTES:
            most = f"up to {READ_MAX_BYTES} at a time"
            raise UsageError(f"no range: bytes {start} to {stop}", hint=f"first to last, {most}")
        name = parse_cid(cid)
        with self.store.keep([name]):
            wanted = fresh_row(name, 0, is_root=True)
            await self._getting.fetch_part(wanted, start, stop, providers)
            await self._off_loop(partial(self.store.touch, name))
            return await self._off_loop(partial(self.store.read, name, start, stop))

    async def export(
        self, cid: str, path: Path, *, is_fresh: bool = False, report: Report | None = None
    ) -> None:
        """Write a whole file, or the folder of a tree, which appears at once. Raises NotFound.

        is_fresh: it was fetched a moment ago, so it need not be hashed again.
        """
        name = parse_cid(cid)
        manifest = await self._off_loop(partial(self.store.manifest, name))
        row = await self._off_loop(partial(self.store.index.get, name))
        transfer = Transfer(size_bytes=0 if row is None else row.size_bytes)
        export = export_tree if isinstance(manifest, Tree) else export_file
        with self.store.keep([name]):  # between two files of a folder, none is open
            await self._drive(
                _with_end(export(self.store, name, path, is_fresh=is_fresh)), transfer, report
            )

    async def place(self, cid: str, path: Path) -> None:
        """Have a whole file at `path`: another name of our copy, which is not collected as long as
        it has that name; a copy of it if that cannot be. It must not be written to.
        """
        if not await self._off_loop(partial(self.store.link, parse_cid(cid), path)):
            await self.export(cid, path)

    # --- fetching ------------------------------------------------------------------------------

    async def fetch(
        self,
        cid: str,
        providers: Iterable[PeerId] = (),
        *,
        limit_bytes: int | None = None,
        name: str = "",
        pin: bool = False,
        report: Report = lambda _: None,
    ) -> Row:
        """Make a blob whole here; asks nobody if it is. Other providers than those named are looked
        for too. `report` is called as chunks arrive.

        Raises BadMessage, before a chunk is asked for, if the blob is over `limit_bytes`; NotFound
        if the providers lack a part of it, PeerUnreachable if none could be reached, QuotaError,
        DiskError. What has arrived is kept.
        """
        wanted = fresh_row(parse_cid(cid), 0, name=name, is_root=True, pin=pin)
        self.counters.fetches += 1
        with OnFailure(self.counters.add_failed_fetch):
            row = await self._getting.fetch(wanted, providers, limit_bytes, report)
        self._news.set()
        return row

    # --- keeping -------------------------------------------------------------------------------

    async def pin(self, cid: str, *, is_pinned: bool = True) -> Row:
        """Never collect a blob (and of a tree, its files), or let it go. Raises NotFound."""
        return await self._off_loop(partial(self.store.pin, parse_cid(cid), is_pinned=is_pinned))

    async def remove(self, cid: str) -> int:
        """Throw a blob away, also if it is pinned; returns the bytes freed. Raises NotFound, or
        Busy while it is in use.
        """
        freed = await self._off_loop(partial(self.store.space.remove, parse_cid(cid)))
        self._news.set()
        return freed

    async def collect(self) -> tuple[int, int]:
        """Throw away all that is not pinned nor in use; returns how many and how many bytes."""
        gone = await self._off_loop(self.store.space.collect)
        self._news.set()
        return gone

    async def release(self, cids: Iterable[str]) -> int:
        """Throw these away, those that are not pinned nor in use; returns the bytes freed."""
        names = [parse_cid(cid) for cid in cids]
        freed = await self._off_loop(partial(self.store.space.release, names))
        self._news.set()
        return freed

    async def check(self, cid: str) -> bool:
        """Hash one file; whether it is whole here. What is wrong is gone: `fetch` mends it."""
        await self._drive(_with_end(self.store.verify(parse_cid(cid))), Transfer(), None)
        return await self.has(cid)

    async def verify(self, *, report: Report | None = None) -> list[Row]:
        """Hash everything; returns what is not whole any more, and is given to nobody."""
        rows = [row for row in await self._off_loop(self.store.index.all) if row.is_whole]
        transfer = Transfer(size_bytes=sum(row.size_bytes for row in rows), files=len(rows))
        decayed: list[Row] = []
        done = 0
        for row in rows:
            await self._drive(_with_end(self.store.verify(row.cid)), transfer, report, done=done)
            done += row.size_bytes
            if not await self.has(row.cid):
                decayed.append(row)
        return decayed

    # --- inside --------------------------------------------------------------------------------

    async def _drive(
        self,
        steps: Generator[int, None, T],
        transfer: Transfer,
        report: Report | None,
        *,
        done: int = 0,
    ) -> T:
        """Run a generator step by step on threads; between two steps it can be cancelled."""
        ended: list[T] = []

        def step() -> int | None:
            try:
                return next(steps)
            except StopIteration as stop:
                ended.append(stop.value)
                return None

        try:
            while (bytes_done := await self._off_loop(step)) is not None:
                transfer.done_bytes = done + bytes_done
                if report is not None:
                    report(transfer)
        finally:
            with trio.CancelScope(shield=True):  # it removes its scratch file: a moment
                await self._off_loop(steps.close)
        return ended[0]

    async def _adopt(self) -> None:
        """Add again what was here when its table was lost. It is pinned: it may be wanted."""
        found = self.store.found
        if not await self._off_loop(found.exists):
            return
        paths = await self._off_loop(lambda: sorted(found.iterdir()))
        names = {path.name for path in paths}
        for path in paths:
            try:
                row = await self.add(path, mode="take", name="found", pin=True)
                log.warning("blobs.adopted cid=%s from=%s", row.cid, path.name)
                await self._off_loop(path.unlink)
                if row.cid not in names:  # unfinished, or decayed
                    await self._off_loop(partial(self.store.space.remove, row.cid))
            except (ShoalError, OSError) as error:
                log.warning("blobs.not_adopted path=%s %s", path, error)
        with suppress(OSError):  # something is left in it
            await self._off_loop(found.rmdir)

    async def _provide(self, finder: Finder) -> None:
        """Tell the DHT what has come and what has gone since the last time."""
        rows = await self._off_loop(self.store.index.roots)
        here = dict.fromkeys(row.cid for row in rows[:PROVIDED_MAX] if row.is_whole)
        for cid in [cid for cid in self._provided if cid not in here]:
            finder.withdraw(cid.encode())
            del self._provided[cid]
        if fresh := [cid for cid in here if cid not in self._provided]:
            try:
                await finder.provide_many([cid.encode() for cid in fresh])  # tries again by itself
            except ShoalError:
                return
            self._provided.update(dict.fromkeys(fresh))


def _with_end(steps: Iterator[int]) -> Generator[int, None, None]:
    """Make an iterator a generator that returns None."""
    yield from steps


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
