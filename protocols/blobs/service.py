"""Blobs between peers: store them, give them, fetch them from several providers at once.

Everything that arrives is hashed before it is kept, so a provider can refuse or stall, but not
deceive. What has arrived stays: a fetch that is repeated goes on where the last one ended.
"""

import functools
import io
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import trio

from protocols.blobs.machine import Fetch
from protocols.blobs.store import BlobStore, DiskError
from protocols.blobs.wire import (
    CHUNK_BYTES,
    CHUNKS_MAX,
    GET,
    MANIFEST_VERSION,
    Absent,
    Answer,
    Cid,
    Found,
    Get,
    Manifest,
    cid_of,
    parse_cid,
)
from wire import codec
from wire.errors import (
    BadMessage,
    DeadlineExceeded,
    NotFound,
    PeerUnreachable,
    ShoalError,
    UsageError,
)
from wire.ids import PeerId
from wire.ports import Call, Rpc

T = TypeVar("T")

THREADS = 2  # for hashing and the disk; one hashes 1 GB/s or so, more than the network brings
PROVIDERS_MAX = 8  # asked at a time; the others come in when one of these is done
OPEN_TIMEOUT_S = 10.0  # to reach a provider
CHUNK_TIMEOUT_S = 30.0  # for the next answer: 35 KB/s, below which a provider is no help
READ_MAX_BYTES = 256 * 1024 * 1024  # what `read_bytes` takes into memory unless told otherwise

Progress = Callable[[int, int], None]  # bytes here, bytes in all

log = logging.getLogger(__name__)


class OffLoop(Protocol):
    """Runs blocking work somewhere else than on the event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns."""
        ...


class Threads:
    """Worker threads with a limit of their own."""

    def __init__(self, limit: int = THREADS) -> None:
        self._limiter = trio.CapacityLimiter(limit)

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Run `work` on a thread. Cancelled, it still waits for the end of the work."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


class BlobService:
    """Gives what its store has to any peer that asks. There is nothing to run."""

    def __init__(self, rpc: Rpc, store: BlobStore, *, off_loop: OffLoop | None = None) -> None:
        """`off_loop` is for simulators, whose clock must not run while a thread works."""
        self._rpc, self._store = rpc, store
        self._off_loop: OffLoop = off_loop or Threads()
        self.bytes_in = self.bytes_out = 0  # of objects that arrived and were kept; that were sent
        rpc.serve_stream(GET, self._give)

    async def put_bytes(self, data: bytes) -> Cid:
        """Store a blob; durable when it returns."""
        return await self._put(io.BytesIO(data))

    async def put_file(self, path: Path) -> Cid:
        """Store a copy of a file as a blob. Raises UsageError if it cannot be read."""
        try:
            with await self._off_loop(functools.partial(_open, path)) as file:
                return await self._put(file)
        except OSError as error:
            raise UsageError(f"cannot store {path}: {error.strerror}") from error

    async def has(self, cid: str) -> bool:
        """Tell whether the whole blob is here."""
        return await self._off_loop(functools.partial(self._store.is_whole, parse_cid(cid)))

    async def open(self, cid: str) -> io.BufferedReader:
        """Open a whole blob for (blocking) reads and seeks. Raises NotFound."""
        return await self._off_loop(functools.partial(self._store.open, parse_cid(cid)))

    async def read_bytes(self, cid: str, *, limit_bytes: int = READ_MAX_BYTES) -> bytes:
        """Return a whole blob. Raises NotFound, or UsageError if it is over the limit."""
        with await self.open(cid) as file:
            data = await self._off_loop(functools.partial(file.read, limit_bytes + 1))
        if len(data) > limit_bytes:
            raise UsageError(f"blob {cid} is over {limit_bytes} B")
        return data

    async def export(self, cid: str, path: Path) -> None:
        """Write a whole blob to one file, which appears at once. Raises NotFound."""
        await self._off_loop(functools.partial(self._store.export, parse_cid(cid), path))

    async def fetch(
        self,
        cid: str,
        providers: list[PeerId],
        *,
        limit_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        """Make a blob whole here; asks nobody if it is. `progress` is called as chunks arrive.

        Raises BadMessage, before a chunk is asked for, if the blob is over `limit_bytes`; NotFound
        if the providers lack a part of it, PeerUnreachable if none could be reached, DiskError.
        What has arrived is kept.
        """
        hash_ = parse_cid(cid)
        others = [peer for peer in dict.fromkeys(providers) if peer != self._rpc.peer]
        manifest = await self._off_loop(functools.partial(self._store.manifest, hash_))
        if manifest is None:
            await _Errand(self, cid, {hash_: None}, others).run()
            manifest = await self._off_loop(functools.partial(self._store.manifest, hash_))
            assert manifest is not None, "it has just been stored"
        if limit_bytes is not None and manifest.size_bytes > limit_bytes:
            raise BadMessage(f"blob {cid} has {manifest.size_bytes} B, over {limit_bytes} B")
        missing = await self._off_loop(functools.partial(self._store.missing, manifest))
        sizes = manifest.sizes()
        here_bytes = manifest.size_bytes - sum(sizes[chunk] for chunk in missing)

        def report(chunk: bytes) -> None:
            nonlocal here_bytes
            here_bytes += sizes[chunk]
            if progress is not None:
                progress(here_bytes, manifest.size_bytes)

        if progress is not None:
            progress(here_bytes, manifest.size_bytes)
        await _Errand(self, cid, dict(missing), others, report).run()
        return manifest

    async def keep(self, hash_: bytes, size_bytes: int | None, data: bytes) -> bool:
        """Store an object if it is the one that was asked for; tells whether it was."""
        work = functools.partial(self._store.put_verified, hash_, size_bytes, data)
        try:
            is_kept = await self._off_loop(work)
        except OSError as error:
            raise DiskError(f"cannot store a chunk: {error.strerror}") from error
        self.bytes_in += len(data) * is_kept
        return is_kept

    @property
    def rpc(self) -> Rpc:
        """What carries the objects."""
        return self._rpc

    async def _put(self, file: BinaryIO) -> Cid:
        chunks, size_bytes = list[bytes](), 0
        while piece := await self._off_loop(functools.partial(file.read, CHUNK_BYTES)):
            if len(chunks) >= CHUNKS_MAX:
                raise UsageError(f"a blob holds up to {CHUNKS_MAX} chunks of 1 MiB")
            chunks.append(await self._off_loop(functools.partial(self._store.put, piece)))
            size_bytes += len(piece)
        manifest = codec.encode(Manifest(MANIFEST_VERSION, size_bytes, chunks))
        return cid_of(await self._off_loop(functools.partial(self._store.put, manifest)))

    async def _give(self, call: Call[Answer, Get]) -> None:
        """Answer one peer's questions, in order."""
        async for get in call:
            data = await self._off_loop(functools.partial(self._store.get, get.hash))
            await call.send(Answer(Absent() if data is None else Found(data)))
            self.bytes_out += len(data or b"")


class _Errand:
    """Brings a set of objects here, one task per provider."""

    def __init__(
        self,
        service: BlobService,
        cid: str,
        sizes: dict[bytes, int | None],
        providers: list[PeerId],
        report: Callable[[bytes], None] | None = None,
    ) -> None:
        """`sizes` has the size of each object, None where only the hash tells."""
        self._service, self._cid, self._sizes = service, cid, sizes
        self._providers, self._report = providers, report
        self._fetch = Fetch(sizes, providers)
        self._changed = trio.lowlevel.ParkingLot()  # somebody may now be asked, or is done
        self._limiter = trio.CapacityLimiter(PROVIDERS_MAX)
        self._failures: dict[PeerId, ShoalError] = {}

    async def run(self) -> None:
        """Return when all is here. Raises NotFound, PeerUnreachable or DiskError."""
        async with trio.open_nursery() as nursery:
            for peer in self._providers if self._sizes else ():
                nursery.start_soon(self._ask, peer)
        if self._fetch.is_done:
            return
        if disk := [e for e in self._failures.values() if isinstance(e, DiskError)]:
            raise disk[0]
        reasons = "; ".join(f"{peer}: {error}" for peer, error in self._failures.items())
        text = f"blob {self._cid}: incomplete after asking {len(self._providers)} peers"
        gone = (PeerUnreachable, DeadlineExceeded)
        if self._failures and all(isinstance(e, gone) for e in self._failures.values()):
            raise PeerUnreachable(f"{text} ({reasons})")
        raise NotFound(f"{text} ({reasons})" if reasons else text)

    async def _ask(self, peer: PeerId) -> None:
        """Ask one provider for one object after the other, until it is of no more use."""
        async with self._limiter:
            try:
                if await self._wait_for_work(peer):
                    rpc = self._service.rpc
                    async with rpc.stream(peer, GET, timeout_s=OPEN_TIMEOUT_S) as call:
                        await self._converse(peer, call)
            except ShoalError as error:
                self._failures[peer] = error
                log.debug("blobs.provider_lost cid=%s peer=%s %s", self._cid, peer, error)
            finally:
                self._fetch.lost(peer)
                self._changed.unpark_all()

    async def _wait_for_work(self, peer: PeerId) -> bool:
        """Wait until there is something to ask a provider for; False if there never will be."""
        while not self._fetch.has_work_for(peer):
            if not self._fetch.is_useful(peer):
                return False
            await self._changed.park()
        return True

    async def _converse(self, peer: PeerId, call: Call[Get, Answer]) -> None:
        asked = deque[bytes]()
        while asked or await self._wait_for_work(peer):
            while (chunk := self._fetch.next_for(peer)) is not None:
                asked.append(chunk)
                await call.send(Get(chunk))
            await self._receive(peer, call, asked.popleft())

    async def _receive(self, peer: PeerId, call: Call[Get, Answer], chunk: bytes) -> None:
        answer = await _next_answer(call)
        if isinstance(answer.object, Absent):
            self._fetch.absent(peer, chunk)
            self._failures[peer] = NotFound(f"lacks {chunk.hex()}")
            self._changed.unpark_all()
            return
        data = answer.object.data
        if not await self._service.keep(chunk, self._sizes[chunk], data):
            raise BadMessage(f"sent something else than {chunk.hex()}")
        self._fetch.arrived(peer, chunk)
        if self._fetch.is_done:
            self._changed.unpark_all()
        if self._report is not None:
            self._report(chunk)


async def _next_answer(call: Call[Get, Answer]) -> Answer:
    with trio.move_on_after(CHUNK_TIMEOUT_S):
        try:
            return await call.receive()
        except trio.EndOfChannel:
            raise BadMessage(f"{call.peer} ended the call with questions open") from None
    raise DeadlineExceeded(f"no chunk within {CHUNK_TIMEOUT_S:g} s")


def _open(path: Path) -> BinaryIO:
    return path.open("rb")
