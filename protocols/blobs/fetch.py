"""The thin trio driver of a fetch: one session with each provider, and a conductor over them.

Chunks are hashed and written on threads as they arrive. Whoever sends what is wrong is dropped
for good; whoever is silent or gone may come again.
"""

import logging
import math
from collections.abc import Callable
from functools import partial

import trio

from protocols.blobs.files import BlobFile, DiskError
from protocols.blobs.machine import Fetch, from_bits, full
from protocols.blobs.progress import Counters, Transfer
from protocols.blobs.search import Search, Source
from protocols.blobs.wire import (
    CHUNK_BYTES,
    GET,
    OBJECT,
    Ask,
    Cancel,
    Chunk,
    Cid,
    Gained,
    Get,
    Have,
    Missing,
    Tell,
    Want,
    Who,
    hash_in,
    hash_of,
    is_raw,
)
from wire.errors import BadMessage, DeadlineExceeded, NotFound, PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Call, OffLoop

PROVIDERS_MAX = 8  # sessions at a time; others come in when one of these ends
OPEN_TIMEOUT_S = 10.0  # to reach a provider, and for its first word
OBJECT_TIMEOUT_S = 30.0  # for 4 MiB of manifest
STAGGER_S = 0.25  # before the next provider is asked for a manifest too
LOOK_S = 1.0  # how often stalls are looked for
HOPE_S = 10.0  # for one that has nothing of what is missing to gain it from others
KEEPING_MAX = 3  # chunks of one provider that are being hashed and written
SYNC_CHUNKS = 64  # written between two syncs: the last one is then short

log = logging.getLogger(__name__)


class Failures:
    """Why providers did not help; says it in one error."""

    def __init__(self, cid: Cid, source: Source, transfer: Transfer, counters: Counters) -> None:
        self.cid, self._source = cid, source
        self._transfer, self._counters = transfer, counters
        self._errors: dict[PeerId, ShoalError] = {}

    def add(self, peer: PeerId, error: ShoalError) -> None:
        """Note that a provider failed; one that lies is never asked again."""
        self._errors[peer] = error
        share = self._transfer.share(peer)
        share.note, share.is_active = str(error), False
        if isinstance(error, BadMessage):
            self._source.liars.add(peer)
        if isinstance(error, BadMessage | DeadlineExceeded):
            self._counters.providers_dropped += 1
            log.warning("blobs.provider_dropped cid=%s peer=%s %s", self.cid, peer, error)

    def helped(self, peer: PeerId, size_bytes: int) -> None:
        """Note that a provider brought something."""
        share = self._transfer.share(peer)
        share.got_bytes += size_bytes
        share.is_active, share.note = True, ""

    def note(self, peer: PeerId, error: ShoalError) -> None:
        """Note what a provider, which goes on, could not do."""
        self._errors[peer] = error

    def error(self) -> ShoalError:
        """Return what to raise."""
        if not self._errors:
            hint = "is a member that has it up and connected? see `shoal peers`"
            return NotFound(f"blob {self.cid}: nobody that can be asked has it", hint=hint)
        text = f"blob {self.cid}: incomplete after asking {len(self._errors)} peers"
        reasons = "; ".join(f"{peer}: {error}" for peer, error in self._errors.items())
        gone = (PeerUnreachable, DeadlineExceeded)
        is_gone = all(isinstance(error, gone) for error in self._errors.values())
        return (PeerUnreachable if is_gone else NotFound)(f"{text} ({reasons})")


async def fetch_object(source: Source, failures: Failures, off_loop: OffLoop) -> bytes:
    """Return what a CID names, from whoever has it: the next is asked if one takes its time.

    Raises NotFound or PeerUnreachable.
    """
    changed = trio.lowlevel.ParkingLot()
    search = Search(source, failures.cid, changed)
    found: list[bytes] = []
    asking = 0

    async def ask(peer: PeerId) -> None:
        nonlocal asking
        try:
            data = await _ask_object(source, failures.cid, peer, off_loop)
            found.append(data)
            failures.helped(peer, len(data))
            source.named = list(dict.fromkeys([peer, *source.named]))  # has the rest, too
        except ShoalError as error:
            failures.add(peer, error)
            search.lost(peer)
        asking -= 1
        changed.unpark_all()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(search.run)
        while not found:
            if search.pending and asking < PROVIDERS_MAX:
                asking += 1
                nursery.start_soon(ask, search.pending.popleft())
            elif not asking and search.is_spent:
                break
            with trio.move_on_after(STAGGER_S if search.pending else math.inf):
                await changed.park()
        nursery.cancel_scope.cancel()
    if not found:
        raise failures.error()
    return found[0]


async def _ask_object(source: Source, cid: Cid, peer: PeerId, off_loop: OffLoop) -> bytes:
    answer = await source.rpc.call(peer, OBJECT, Who(cid), timeout_s=OBJECT_TIMEOUT_S)
    if is_raw(cid) and len(answer.data) > CHUNK_BYTES:
        raise BadMessage(f"sent {len(answer.data)} B as a chunk")
    if await off_loop(partial(hash_of, answer.data)) != hash_in(cid):
        raise BadMessage(f"sent something else than {cid}")
    return answer.data


class ChunkFetch:
    """Brings the wanted chunks of one open file here."""

    def __init__(
        self,
        file: BlobFile,
        wanted: int,
        source: Source,
        failures: Failures,
        *,
        choose: Callable[[], int],
        off_loop: OffLoop,
        transfer: Transfer,
        counters: Counters,
        report: Callable[[], None],
    ) -> None:
        self.file, self.off_loop, self.counters = file, off_loop, counters
        self.transfer, self._report = transfer, report
        self.machine = Fetch(wanted, choose=choose)
        self.source, self.failures = source, failures
        self._changed = trio.lowlevel.ParkingLot()
        self._search = Search(source, failures.cid, self._changed)
        self.sessions: dict[PeerId, Session] = {}
        self._disk: DiskError | None = None
        self._scope = trio.CancelScope()
        self._unsynced = 0
        self._syncing = False

    async def run(self) -> None:
        """Return when all is here. Raises NotFound, PeerUnreachable or DiskError."""
        if self.machine.is_done:
            return
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._search.run)
                await self._conduct(nursery)
                nursery.cancel_scope.cancel()
        if self._disk is not None:
            raise self._disk
        if not self.machine.is_done:
            raise self.failures.error()

    async def _conduct(self, nursery: trio.Nursery) -> None:
        """Begin sessions and end stalled ones until all is here, or there is no hope."""
        hoped_s = trio.current_time()
        while not self.machine.is_done:
            while self._search.pending and len(self.sessions) < PROVIDERS_MAX:
                peer = self._search.pending.popleft()
                session = self.sessions[peer] = Session(self, peer)
                nursery.start_soon(self._meet, session)
            now = trio.current_time()
            for peer in self.machine.stalled(now):
                self.sessions[peer].fail(DeadlineExceeded("brought nothing for too long"))
            if any(session.is_hopeful for session in self.sessions.values()):
                hoped_s = now
            elif self._search.is_spent:
                may_gain = any(session.may_gain for session in self.sessions.values())
                if not may_gain or now - hoped_s > HOPE_S:
                    return
            if self._unsynced >= SYNC_CHUNKS and not self._syncing:
                self._unsynced, self._syncing = 0, True
                nursery.start_soon(self._sync)
            with trio.move_on_after(LOOK_S):
                await self._changed.park()

    async def _meet(self, session: "Session") -> None:
        peer = session.peer
        try:
            error = await session.run()
        finally:
            self.machine.leave(peer)
            del self.sessions[peer]
        self.transfer.share(peer).is_active = False
        if error is not None:
            self.failures.add(peer, error)
        self._search.lost(peer)
        self.wake_all()

    def wake_all(self) -> None:
        """Something has changed for everybody."""
        self._changed.unpark_all()
        for session in self.sessions.values():
            session.wake()

    async def keep(self, session: "Session", index: int, data: bytes) -> None:
        """Hash and write a chunk, and see what that changes."""
        peer, machine = session.peer, self.machine
        try:
            is_right = await self.off_loop(partial(self.file.put, index, data))
        except OSError as error:
            self._disk = DiskError.of(error)
            self._scope.cancel()
            return
        if not is_right:
            self.counters.corrupt_chunks += 1
            session.fail(BadMessage(f"sent something else than chunk {index}"))
            return
        self.counters.bytes_in += len(data)
        if not machine.owes(peer, index):  # another was faster in between
            self.counters.bytes_wasted += len(data)
            return
        for other in machine.arrived(peer, index, trio.current_time()):
            self.sessions[other].cancel(index)
        self._unsynced += 1
        self.transfer.done_bytes += len(data)
        self.transfer.fetched_bytes += len(data)
        self.transfer.share(peer).got_bytes += len(data)
        session.wake()
        if machine.is_ending:
            self.wake_all()
        elif self._unsynced >= SYNC_CHUNKS:
            self._changed.unpark_all()
        self._report()

    async def _sync(self) -> None:
        try:
            await self.off_loop(self.file.sync)
        except OSError as error:
            self._disk = DiskError.of(error)
            self._scope.cancel()
        self._syncing = False


class Session:
    """A conversation with one provider."""

    def __init__(self, fetch: ChunkFetch, peer: PeerId) -> None:
        self._fetch, self.peer = fetch, peer
        self._scope = trio.CancelScope()
        self._error: ShoalError | None = None
        self._news = trio.Event()
        self._cancels: list[int] = []
        self._cancelled: set[int] = set()  # these may come all the same
        self._joined = False
        self.may_gain = False  # it is fetching the blob itself
        self._keeping = trio.Semaphore(KEEPING_MAX)

    @property
    def is_hopeful(self) -> bool:
        """Tell whether something may come of it now."""
        machine = self._fetch.machine
        return not self._joined or machine.is_useful(self.peer)

    def fail(self, error: ShoalError) -> None:
        """End it, for this reason."""
        self._error = self._error or error
        self._scope.cancel()

    def wake(self) -> None:
        """There may be something to say."""
        self._news.set()

    def cancel(self, index: int) -> None:
        """A chunk that this provider owes came from another."""
        self._cancels.append(index)
        self._cancelled.add(index)
        self.wake()

    async def run(self) -> ShoalError | None:
        """Ask and receive until there is nothing more to ask; returns what went wrong."""
        with self._scope:
            try:
                rpc = self._fetch.source.rpc
                async with rpc.stream(self.peer, GET, timeout_s=OPEN_TIMEOUT_S) as call:
                    await self._begin(call)
                    await self._converse(call)
            except ShoalError as error:
                return error
        return self._error

    async def _begin(self, call: Call[Ask, Tell]) -> None:
        fetch, began_s = self._fetch, trio.current_time()
        with trio.move_on_after(OPEN_TIMEOUT_S):
            await call.send(Ask(Want(fetch.failures.cid)))
            have = (await _receive(call)).what
            if not isinstance(have, Have):
                raise BadMessage(f"{type(have).__name__} where Have belongs")
            count = fetch.file.layout.count
            chunks = from_bits(have.bits, count) if have.bits else full(count)
            fetch.machine.join(self.peer, chunks, rtt_s=trio.current_time() - began_s)
            self._joined, self.may_gain = True, bool(have.bits)
            fetch.transfer.share(self.peer).is_active = True
            fetch.transfer.share(self.peer).note = ""
            return
        raise DeadlineExceeded(f"no word within {OPEN_TIMEOUT_S:g} s")

    async def _converse(self, call: Call[Ask, Tell]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say, call)
            try:
                while True:
                    await self._hear(await _receive(call), nursery)
            except ShoalError as error:
                self.fail(error)

    async def _say(self, call: Call[Ask, Tell]) -> None:
        machine = self._fetch.machine
        try:
            while True:
                self._news = trio.Event()
                while self._cancels:
                    await call.send(Ask(Cancel(self._cancels.pop())))
                while (found := machine.next_for(self.peer, trio.current_time())) is not None:
                    await call.send(Ask(Get(found.start, len(found))))
                await self._news.wait()
        except ShoalError as error:
            self.fail(error)

    async def _hear(self, tell: Tell, nursery: trio.Nursery) -> None:
        fetch, machine = self._fetch, self._fetch.machine
        match tell.what:
            case Chunk(index, data):
                if machine.owes(self.peer, index):
                    await self._keeping.acquire()
                    nursery.start_soon(self._keep, index, data)
                elif index in self._cancelled:
                    self._cancelled.discard(index)
                    fetch.counters.bytes_wasted += len(data)
                else:
                    raise BadMessage(f"sent chunk {index}, which it was not asked for")
            case Missing(index):
                if not machine.owes(self.peer, index) and index not in self._cancelled:
                    raise BadMessage(f"lacks chunk {index}, which it was not asked for")
                self._cancelled.discard(index)
                machine.lacks(self.peer, index)
                fetch.failures.note(self.peer, NotFound(f"lacks chunk {index}"))
                fetch.wake_all()
            case Gained(indexes):
                count = fetch.file.layout.count
                if not machine.gained(self.peer, sum(1 << i for i in set(indexes) if i < count)):
                    raise BadMessage("told news that are none")  # each costs us some work
                self.wake()
            case Have():
                raise BadMessage("Have came twice")

    async def _keep(self, index: int, data: bytes) -> None:
        try:
            await self._fetch.keep(self, index, data)
        finally:
            self._keeping.release()


async def _receive(call: Call[Ask, Tell]) -> Tell:
    try:
        return await call.receive()
    except trio.EndOfChannel:
        raise PeerUnreachable(f"{call.peer} ended the conversation") from None
