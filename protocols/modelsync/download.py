"""One state, from many donors at once, into a buffer: every chunk is checked before it is written.

So at any time each chunk of the buffer is the wanted one or what was there before.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from functools import partial

import trio

from protocols.modelsync.codecs import Vector
from protocols.modelsync.pull import Pull
from protocols.modelsync.state import chunk_count, chunk_of, root_of, state_root
from protocols.modelsync.state_wire import (
    CHUNKS,
    Chunk,
    Opened,
    OpenState,
    Page,
    StateAnswer,
    StateAsk,
    Want,
    Wants,
)
from protocols.modelsync.work import Work
from wire.errors import BadMessage, DeadlineExceeded, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Rpc

OPEN_S = 4.0  # seconds to open a stream
COPY_WAIT_S = 60.0  # seconds for a donor to copy its state: 8 GiB on a busy machine
CHUNK_WAIT_S = 60.0  # seconds for the next chunk: its rounds go first; others take what it sits on
IDLE_S = 0.1  # seconds until a donor without orders looks if others sit on theirs

Progress = Callable[[int, int], None]  # chunks that are right, and all chunks

_log = logging.getLogger(__name__)


class Download:
    """Loads the state of a lane that has `root` into `target`; `held` is another state of ours,
    whose chunks may be right. Neither may change meanwhile.
    """

    def __init__(
        self,
        rpc: Rpc,
        work: Work,
        run: str,
        lane: int,
        root: bytes,
        target: Vector,
        held: Vector | None,
        progress: Progress,
    ) -> None:
        self._rpc, self._work, self._progress = rpc, work, progress
        self._run, self._lane, self._root = run, lane, root
        self._target, self._held = target, held
        self._chunks = chunk_count(len(target))
        self._hashes: list[bytes] | None = None
        self._pull: Pull | None = None
        self._scanning = trio.Lock()
        self._active: set[PeerId] = set()
        self._complete = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.liars: set[PeerId] = set()
        self.bytes_in = 0
        self.corrupt = 0

    @property
    def givers(self) -> tuple[PeerId, ...]:
        """Donors that have given at least one chunk."""
        return self._pull.givers if self._pull is not None else ()

    @property
    def active(self) -> int:
        """Donors that are being asked now."""
        return len(self._active)

    def add(self, donors: Iterable[PeerId]) -> None:
        """Ask these, too. Those that have lied are left out."""
        for peer in donors:
            if self._nursery is not None and peer not in self._active | self.liars:
                self._active.add(peer)
                self._nursery.start_soon(self._donor, peer)

    async def run(self, donors: Iterable[PeerId]) -> None:
        """Load until the target is complete. Raises BadMessage if somebody else wrote to it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.add(donors)
            await self._complete.wait()
            self._nursery = None
            nursery.cancel_scope.cancel()
        if await self._work(partial(state_root, self._target)) != self._root:
            raise BadMessage("the buffer of a download was written to by somebody else")

    async def _donor(self, peer: PeerId) -> None:
        try:
            await self._load_from(peer)
        except BadMessage as error:
            self.liars.add(peer)
            _log.warning("run.donor_lies run=%s donor=%s error=%s", self._run, peer, error)
        except ShoalError as error:
            _log.info("run.donor_lost run=%s donor=%s error=%s", self._run, peer, error)
        finally:
            self._active.discard(peer)
            if self._pull is not None:
                self._pull.lost(peer)

    async def _load_from(self, peer: PeerId) -> None:
        wants_hashes = self._hashes is None
        async with self._rpc.stream(peer, CHUNKS, timeout_s=OPEN_S) as call:
            await call.send(StateAsk(OpenState(self._run, self._lane, self._root, wants_hashes)))
            if not isinstance((await _next(call, COPY_WAIT_S)).body, Opened):
                raise BadMessage(f"{peer} did not open the state")
            if wants_hashes:
                await self._learn(call)
            pull = await self._scanned()
            pull.add(peer, trio.current_time())
            while pull.missing:
                await self._ask_and_take(call, pull)

    async def _ask_and_take(self, call: Call[StateAsk, StateAnswer], pull: Pull) -> None:
        """Keep the donor's window full, and take the next chunk."""
        assert self._hashes is not None
        ordered = pull.order(call.peer, trio.current_time())
        if ordered:
            wants = [Want(index, self._hashes[index]) for index in ordered]
            await call.send(StateAsk(Wants(wants)))
        if not pull.has_orders(call.peer):
            await trio.sleep(IDLE_S)
            return
        chunk = (await _next(call, CHUNK_WAIT_S)).body
        if not isinstance(chunk, Chunk) or not pull.expects(call.peer, chunk.index):
            raise BadMessage(f"{call.peer} sends what it was not asked for")
        if not chunk.data:
            pull.refused(call.peer, chunk.index)
            return
        self.bytes_in += len(chunk.data)
        put = partial(_put, self._target, chunk.index, chunk.data, self._hashes[chunk.index])
        if pull.is_open(chunk.index) and not await self._work(put):
            self.corrupt += 1
            raise BadMessage(f"chunk {chunk.index} is not what its hash says")
        pull.arrived(call.peer, chunk.index, trio.current_time())
        self._tell(pull)

    async def _learn(self, call: Call[StateAsk, StateAnswer]) -> None:
        """Take the hashes of all chunks. Raises BadMessage if they do not lead to the root."""
        hashes: list[bytes] = []
        while len(hashes) < self._chunks:
            page = (await _next(call, CHUNK_WAIT_S)).body
            if not isinstance(page, Page) or page.start != len(hashes):
                raise BadMessage(f"{call.peer} does not send the hashes in order")
            hashes += page.hashes
        if len(hashes) != self._chunks or root_of(hashes) != self._root:
            raise BadMessage(f"the hashes from {call.peer} do not lead to the root")
        self._hashes = hashes

    async def _scanned(self) -> Pull:
        """Find out, once, which chunks are there already."""
        async with self._scanning:
            if self._pull is None:
                assert self._hashes is not None
                scan = partial(_scan, self._target, self._held, self._hashes)
                self._pull = Pull(await self._work(scan))
                self._tell(self._pull)
            return self._pull

    def _tell(self, pull: Pull) -> None:
        self._progress(self._chunks - pull.missing, self._chunks)
        if not pull.missing:
            self._complete.set()


def _scan(target: Vector, held: Vector | None, hashes: list[bytes]) -> list[int]:
    """Return the chunks that are wrong in `target`, after what `held` has was copied into it."""
    missing: list[int] = []
    for index, hash_ in enumerate(hashes):
        if hashlib.sha256(chunk_of(target, index)).digest() == hash_:
            continue
        if held is None or not _put(target, index, chunk_of(held, index), hash_):
            missing.append(index)
    return missing


def _put(target: Vector, index: int, data: bytes | memoryview, hash_: bytes) -> bool:
    """Write a chunk if it is the right one."""
    room = chunk_of(target, index)
    if len(data) != len(room) or hashlib.sha256(data).digest() != hash_:
        return False
    room[:] = data
    return True


async def _next(call: Call[StateAsk, StateAnswer], wait_s: float) -> StateAnswer:
    try:
        with trio.fail_after(wait_s):
            return await call.receive()
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{call.peer} stopped sending the state") from error
    except trio.EndOfChannel as error:
        raise DeadlineExceeded(f"{call.peer} ended the state too early") from error
