"""The routes of blobs, under /v1/blobs. Files are read and written at paths of this machine."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import trio
from msgspec import Meta

from node.control.api import Api, Event, Events, Raw, Request
from protocols.blobs.adding import check_place
from protocols.blobs.index import Row
from protocols.blobs.manifest import Tree
from protocols.blobs.progress import Transfer
from protocols.blobs.service import BlobService
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import parse_cid
from shoal import blob_api as shapes
from wire.errors import NotFound, UsageError
from wire.ids import PeerId

INTERVAL_S = 0.2  # between two words on the progress
RATE_OVER = 15  # of them: the rate is that of the last 3 s
READ_MAX_BYTES = 8 * 1024 * 1024  # of one answer; a client asks again for more
JOBS_MAX = 128  # begun and not yet running
PATH_MAX = 4096  # bytes; what Linux takes

_Work = Callable[[], Awaitable[None]]
_Path = Annotated[str, Meta(max_length=PATH_MAX)]


class _AddBody(msgspec.Struct):
    """`shoal.blob_api.AddBlob` with its bounds."""

    path: _Path
    mode: Literal["copy", "reference", "take"] = "copy"
    name: Annotated[str, Meta(max_length=256)] = ""
    pin: bool = True


class _GetBody(msgspec.Struct):
    """`shoal.blob_api.GetBlob` with its bounds."""

    path: _Path = ""
    peers: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)] = []
    pin: bool = False


@dataclass
class _Job:
    """Work that goes on while somebody watches; it ends when they go away."""

    state: str
    transfer: Transfer = field(default_factory=Transfer)
    blob: shapes.Blob | None = None
    decayed: list[shapes.Blob] = field(default_factory=list[shapes.Blob])
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    _samples: deque[tuple[float, int]] = field(
        default_factory=lambda: deque[tuple[float, int]](maxlen=RATE_OVER)
    )

    def report(self, transfer: Transfer) -> None:
        """Take what the service says."""
        self.transfer = transfer

    def view(self) -> shapes.BlobProgress:
        """Return the progress as it is now."""
        now, transfer = trio.current_time(), self.transfer
        done, size = transfer.done_bytes, transfer.size_bytes
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()  # another state has begun
        self._samples.append((now, done))
        then, before = self._samples[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        eta_s = round((size - done) / rate, 1) if rate > 0 and size else None
        shares = [
            shapes.Provider(peer, share.got_bytes, share.is_active, share.note[:300])
            for peer, share in transfer.shares.items()
        ]
        state = "done" if self.over.is_set() else self.state
        return shapes.BlobProgress(
            state, done, size, round(rate), eta_s, shares, self.blob, self.decayed
        )


class BlobRoutes:
    """The handlers; each is one route. `run` owns the work that streams tell of."""

    def __init__(self, blobs: BlobService, resolve: Callable[[str], PeerId]) -> None:
        self._blobs, self._resolve = blobs, resolve
        # Full: wait. The server has no more clients than that.
        self._to_do, self._jobs = trio.open_memory_channel[_Work](JOBS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what the routes begin, until cancelled. The server bounds how many there are."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            async for job in self._jobs:
                nursery.start_soon(job)

    async def index(self, _: Request) -> shapes.BlobList:
        """List what was added or fetched."""
        store = self._blobs.store
        rows = await trio.to_thread.run_sync(store.index.roots)
        usage = await trio.to_thread.run_sync(store.space.usage)
        views = await self._views(rows)
        return shapes.BlobList(
            views, usage.held_bytes, usage.pinned_bytes, usage.quota_bytes, usage.free_bytes
        )

    async def show(self, request: Request) -> shapes.BlobDetail:
        """Show one, and of a folder the files."""
        cid = parse_cid(request.params["cid"])
        row = await trio.to_thread.run_sync(self._blobs.store.index.get, cid)
        if row is None:
            raise NotFound(f"blob {cid} is not here", hint=f"`shoal get {cid}` fetches it")
        manifest = await trio.to_thread.run_sync(self._blobs.store.manifest, cid)
        entries = manifest.entries if isinstance(manifest, Tree) else []
        files = [shapes.BlobFile(e.path, e.cid, e.size_bytes, e.is_executable) for e in entries]
        return shapes.BlobDetail(await self._view(row), files)

    async def add(self, request: Request) -> Events:
        """Add a file or a folder."""
        body = request.read(_AddBody)
        path = absolute(body.path)
        if not body.name.isprintable():
            raise UsageError("a name has no line breaks or control characters in it")
        name = body.name or ("" if body.mode == "take" else path.name)
        job = _Job("adding")

        async def work() -> None:
            row = await self._blobs.add(
                path, mode=body.mode, name=name, pin=body.pin, report=job.report
            )
            job.blob = await self._view(row)

        return Events(self._watch(job, work))

    async def get(self, request: Request) -> Events:
        """Fetch a blob, and write it to a file or folder if asked to."""
        body = request.read(_GetBody)
        cid = parse_cid(request.params["cid"])
        peers = [self._resolve(name) for name in body.peers]
        path = absolute(body.path) if body.path else None
        if path is not None:
            await trio.to_thread.run_sync(check_place, path)
        job = _Job("fetching")

        async def work() -> None:
            with self._blobs.store.keep([cid]):  # until it is written, too
                row = await self._blobs.fetch(cid, peers, pin=body.pin, report=job.report)
                if path is not None:
                    job.state = "writing"
                    fetched = job.transfer
                    # What was here before may have decayed: then the export has to hash.
                    is_fresh = fetched.fetched_bytes >= row.size_bytes
                    await self._blobs.export(cid, path, is_fresh=is_fresh, report=job.report)
                    job.transfer.shares = fetched.shares
                job.blob = await self._view(row)

        return Events(self._watch(job, work))

    async def data(self, request: Request) -> Raw:
        """Read bytes of a file, fetching only what holds them."""
        start = int(request.number("start", 0, most=2**53))
        stop = int(request.number("stop", start + READ_MAX_BYTES, most=2**53))
        if stop - start > READ_MAX_BYTES:
            raise UsageError(f"{stop - start} B are over {READ_MAX_BYTES} B", hint="ask again")
        peers = [self._resolve(name) for name in request.query.get("peers", "").split(",") if name]
        body = await self._blobs.read_range(request.params["cid"], start, stop, peers)
        return Raw(body, "application/octet-stream")

    async def remove(self, request: Request) -> shapes.Collected:
        """Throw one away."""
        return shapes.Collected(1, await self._blobs.remove(request.params["cid"]))

    async def pin(self, request: Request) -> shapes.Blob:
        """Pin one, or let it go."""
        body = request.read(shapes.PinBlob)
        row = await self._blobs.pin(request.params["cid"], is_pinned=body.pinned)
        return await self._view(row)

    async def collect(self, _: Request) -> shapes.Collected:
        """Throw away all that is not pinned nor in use."""
        return shapes.Collected(*await self._blobs.collect())

    async def verify(self, _: Request) -> Events:
        """Hash everything."""
        job = _Job("verifying")

        async def work() -> None:
            rows = await self._blobs.verify(report=job.report)
            job.decayed = await self._views(rows)

        return Events(self._watch(job, work))

    # --- inside --------------------------------------------------------------------------------

    async def _watch(self, job: _Job, work: _Work) -> AsyncGenerator[Event]:
        """Yield the progress of a job; end it if nobody watches any more."""

        async def run() -> None:
            with job.scope:
                try:
                    await work()
                except Exception as error:  # a boundary: one job, told to who watches it
                    job.error = error
            job.over.set()

        await self._to_do.send(run)
        try:
            while not job.over.is_set():
                yield Event(job.view())
                with trio.move_on_after(INTERVAL_S):
                    await job.over.wait()
            if job.error is not None:
                raise job.error
            yield Event(job.view())
        finally:
            job.scope.cancel()

    async def _view(self, row: Row) -> shapes.Blob:
        return (await self._views([row]))[0]

    async def _views(self, rows: list[Row]) -> list[shapes.Blob]:
        store = self._blobs.store
        return await trio.to_thread.run_sync(lambda: [_blob(store, row) for row in rows])


def _blob(store: BlobStore, row: Row) -> shapes.Blob:
    return shapes.Blob(
        cid=row.cid,
        name=row.name,
        kind="folder" if row.is_tree else "file",
        size_bytes=row.size_bytes,
        held_bytes=row.held_bytes,
        whole=store.is_whole(row.cid),
        pinned=row.is_pinned,
        path=row.path or "",
        added_ms=row.added_ms,
        used_ms=row.used_ms,
    )


def routes(api: Api, handlers: BlobRoutes) -> None:
    """Declare the routes."""
    add, progress = api.add, shapes.BlobProgress
    add("GET", "/v1/blobs", handlers.index, summary="Blobs here", reply=shapes.BlobList)
    add(
        "POST",
        "/v1/blobs",
        handlers.add,
        summary="Add a file or a folder at a path of this machine.",
        body=_AddBody,
        reply=progress,
        events=True,
    )
    add("GET", "/v1/blobs/{cid}", handlers.show, summary="One blob", reply=shapes.BlobDetail)
    add("DELETE", "/v1/blobs/{cid}", handlers.remove, summary="Throw a blob away",
        reply=shapes.Collected)  # fmt: skip
    add(
        "POST",
        "/v1/blobs/{cid}/get",
        handlers.get,
        summary="Fetch a blob from whoever has it, and write it to a path of this machine.",
        body=_GetBody,
        reply=progress,
        events=True,
    )
    add(
        "GET",
        "/v1/blobs/{cid}/data",
        handlers.data,
        summary="Bytes `start` to `stop` of a file (up to 8 MiB); only what holds them is fetched.",
        reply=Raw,
    )
    add("POST", "/v1/blobs/{cid}/pin", handlers.pin, summary="Pin a blob, or let it go",
        body=shapes.PinBlob, reply=shapes.Blob)  # fmt: skip
    add("POST", "/v1/blobs/gc", handlers.collect, summary="Throw away what is not pinned",
        reply=shapes.Collected)  # fmt: skip
    add("POST", "/v1/blobs/verify", handlers.verify, summary="Hash all blobs",
        reply=progress, events=True)  # fmt: skip


def absolute(text: str) -> Path:
    """Return a path that does not depend on the daemon's own folder. Raises UsageError."""
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise UsageError(
            f"{text[:200]!r} is no absolute path", hint="the daemon has its own folder"
        )
    return path
