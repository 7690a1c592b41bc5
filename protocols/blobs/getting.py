"""What one fetch does: the manifest first, then the chunks, of a tree those of each file."""

import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from protocols.blobs.fetch import ChunkFetch, Failures, fetch_object
from protocols.blobs.index import Row, fresh_row
from protocols.blobs.machine import full
from protocols.blobs.manifest import Entry, File, Tree, decode_manifest
from protocols.blobs.progress import Counters, Report, Transfer
from protocols.blobs.search import Finder, Source
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import CHUNK_BYTES, Cid, is_raw
from wire.errors import BadMessage, NotFound, ShoalError, UsageError
from wire.ids import PeerId
from wire.ports import OffLoop, Rpc

FILES_AT_ONCE = 8  # of a tree, being fetched: hides the round trips of small ones


@dataclass
class Job:
    """One fetch as its parts see it."""

    source: Source
    transfer: Transfer
    report: Report

    def tell(self) -> None:
        """Something has changed."""
        self.report(self.transfer)


class Getting:
    """Fetches blobs into a store."""

    def __init__(
        self,
        rpc: Rpc,
        store: BlobStore,
        *,
        peers: Callable[[], list[PeerId]],
        finder: Finder | None,
        off_loop: OffLoop,
        counters: Counters,
    ) -> None:
        self._rpc, self._store = rpc, store
        self._peers, self._finder = peers, finder
        self._off_loop, self._counters = off_loop, counters
        self._locks: defaultdict[Cid, trio.Lock] = defaultdict(trio.Lock)

    async def fetch(
        self, wanted: Row, providers: Iterable[PeerId], limit_bytes: int | None, report: Report
    ) -> Row:
        """Make a blob whole here; asks nobody if it is. Two fetches of one are one."""
        job = self._job(providers, report)
        with self._store.keep([wanted.cid]):
            async with self._alone(wanted.cid):
                row = await self._known(wanted)
                if row is None:
                    await self._bring(wanted, job, limit_bytes)
                    row = await self._known(wanted)
                if row is None:
                    raise NotFound(f"blob {wanted.cid} decayed on its way", hint="fetch it again")
        _check_size(row.cid, row.size_bytes, limit_bytes)
        job.transfer.size_bytes = job.transfer.done_bytes = row.size_bytes
        job.tell()
        return row

    async def fetch_part(
        self, wanted: Row, start: int, stop: int, providers: Iterable[PeerId]
    ) -> None:
        """Have those chunks of a file here that hold bytes `start` to `stop`."""
        job = self._job(providers, lambda _: None)
        manifest = await self._root(wanted, job, None)
        if isinstance(manifest, Tree):
            raise UsageError(f"blob {wanted.cid} is a folder", hint="read one of its files")
        if manifest is not None and not await self._is_whole(wanted.cid):
            await self._chunks(wanted.cid, job, part=(start, stop))

    # --- inside --------------------------------------------------------------------------------

    def _job(self, providers: Iterable[PeerId], report: Report) -> Job:
        source = Source(self._rpc, providers, peers=self._peers, finder=self._finder)
        return Job(source, Transfer(), report)

    @asynccontextmanager
    async def _alone(self, cid: Cid) -> AsyncGenerator[None]:
        lock = self._locks[cid]
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(cid, None)

    async def _known(self, wanted: Row) -> Row | None:
        return await self._off_loop(
            partial(
                self._store.known,
                wanted.cid,
                name=wanted.name,
                is_root=wanted.is_root,
                pin=wanted.is_pinned,
            )
        )

    async def _is_whole(self, cid: Cid) -> bool:
        return await self._off_loop(partial(self._store.is_whole, cid))

    async def _bring(self, wanted: Row, job: Job, limit_bytes: int | None) -> None:
        manifest = await self._root(wanted, job, limit_bytes)
        if isinstance(manifest, Tree):
            job.transfer.size_bytes = manifest.size_bytes
            job.transfer.files = len(manifest.entries)
            await self._off_loop(partial(self._make_room, wanted.cid, manifest))
            await self._files(manifest.entries, job)
            files = {Cid(entry.cid) for entry in manifest.entries}
            await self._off_loop(partial(self._store.settle_all, files))
        elif manifest is not None:
            job.transfer.size_bytes = manifest.size_bytes
            await self._chunks(wanted.cid, job)

    async def _root(self, wanted: Row, job: Job, limit_bytes: int | None) -> File | Tree | None:
        """Have what a CID names: a manifest, which is returned, or a small blob."""
        cid = wanted.cid
        manifest = await self._off_loop(partial(self._store.manifest, cid))
        if manifest is not None:
            _check_size(cid, manifest.size_bytes, limit_bytes)
            await self._off_loop(partial(self._store.ask_for, wanted))
            return manifest
        if is_raw(cid):
            await self._off_loop(partial(self._store.mend, cid))
            if await self._is_whole(cid):
                return None
        failures = Failures(cid, job.source, job.transfer, self._counters)
        data = await fetch_object(job.source, failures, self._off_loop)
        self._counters.bytes_in += len(data)
        if not is_raw(cid):
            return await self._keep_manifest(wanted, data, limit_bytes)
        _check_size(cid, len(data), limit_bytes)
        await self._off_loop(
            partial(
                self._store.put_small,
                data,
                is_root=wanted.is_root,
                name=wanted.name,
                pin=wanted.is_pinned,
            )
        )
        job.transfer.size_bytes = job.transfer.size_bytes or len(data)
        job.transfer.done_bytes += len(data)
        job.transfer.fetched_bytes += len(data)
        job.tell()
        return None

    async def _keep_manifest(
        self, wanted: Row, data: bytes, limit_bytes: int | None
    ) -> File | Tree:
        try:
            manifest = await self._off_loop(partial(decode_manifest, data))
        except BadMessage as error:
            raise NotFound(f"{wanted.cid} is not a blob: {error}") from error
        _check_size(wanted.cid, manifest.size_bytes, limit_bytes)
        await self._off_loop(partial(self._store.put_manifest, data, wanted))
        return manifest

    def _make_room(self, cid: Cid, tree: Tree) -> None:
        """Refuse a folder that cannot fit before the first file of it displaces anything."""
        index = self._store.index
        missing = set(index.broken_files(cid))
        sizes = {each.cid: each.size_bytes for each in tree.entries if each.cid in missing}
        self._store.space.make(sum(sizes.values()) - index.partial_bytes(cid))

    async def _files(self, entries: list[Entry], job: Job) -> None:
        """Fetch the files of a tree, each once, a few at a time. The first failure ends it."""
        left = iter({entry.cid: entry for entry in entries}.values())
        twice_bytes = sum(entry.size_bytes for entry in entries)
        twice_bytes -= sum(e.size_bytes for e in {e.cid: e for e in entries}.values())
        job.transfer.done_bytes += twice_bytes
        failure: ShoalError | None = None

        async def work() -> None:
            nonlocal failure
            for entry in left:
                try:
                    await self._file(entry, job)
                except ShoalError as error:  # carried out of the nursery, which would wrap it
                    failure = failure or error
                    nursery.cancel_scope.cancel()
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(FILES_AT_ONCE):
                nursery.start_soon(work)
        if failure is not None:
            raise failure

    async def _file(self, entry: Entry, job: Job) -> None:
        cid = Cid(entry.cid)
        if await self._is_whole(cid):
            job.transfer.done_bytes += entry.size_bytes
            job.tell()
            return
        wanted = fresh_row(cid, entry.size_bytes, is_root=False)
        manifest = await self._root(wanted, job, entry.size_bytes)
        if isinstance(manifest, Tree) or (manifest and manifest.size_bytes != entry.size_bytes):
            raise NotFound(f"{entry.path!r} is not what its folder says")
        if manifest is not None:
            await self._chunks(cid, job)

    async def _chunks(self, cid: Cid, job: Job, part: tuple[int, int] | None = None) -> None:
        """Fetch the missing chunks of a file whose manifest is here, or of a part of it."""
        store, off_loop = self._store, self._off_loop
        file = await off_loop(partial(store.acquire, cid, unfinished=True))
        reserved = 0
        try:
            count = file.layout.count
            wanted = full(count)
            if part is not None:
                chunks = file.layout.of_range(*part)
                wanted = full(chunks.stop) & ~full(chunks.start)
            missing = wanted & ~file.have
            job.transfer.done_bytes += file.held_bytes if part is None else 0
            job.tell()
            needed = missing.bit_count() * CHUNK_BYTES
            if count and missing >> (count - 1):  # the last chunk, which is shorter
                needed -= CHUNK_BYTES - file.layout.chunk_bytes(count - 1)
            await off_loop(partial(store.space.reserve, needed))
            reserved = needed
            dice = random.Random(f"{self._rpc.peer}{cid}")  # others begin elsewhere
            await ChunkFetch(
                file,
                missing,
                job.source,
                Failures(cid, job.source, job.transfer, self._counters),
                choose=partial(dice.randrange, count),
                off_loop=off_loop,
                transfer=job.transfer,
                counters=self._counters,
                report=job.tell,
            ).run()
            if file.is_whole:
                await off_loop(partial(store.finish, file))
        finally:
            with trio.CancelScope(shield=True):  # a moment on a thread, not on the network
                await off_loop(partial(store.release, file))
                await off_loop(partial(store.space.free, reserved))


def _check_size(cid: Cid, size_bytes: int, limit_bytes: int | None) -> None:
    if limit_bytes is not None and size_bytes > limit_bytes:
        raise BadMessage(f"blob {cid} has {size_bytes} B, over {limit_bytes} B")
