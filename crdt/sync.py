"""Drives syncs: with a peer that has just connected, and now and then with a random one."""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from crdt import wire
from crdt.entry import Record, Signed
from crdt.merge import Replica
from crdt.reconcile import Session, compare, supply
from wire import codec
from wire.errors import Busy, ShoalError
from wire.ids import PeerId
from wire.ports import Network

REQUEST_S = 10.0  # for one answer; the other side may be checking 500 signatures and syncing disk
WORKERS = 4  # syncs led at a time; each holds a few frames of memory
QUEUE_MAX = 256  # peers waiting to be synced with; when full, the random sync gets to them
TRIES = 3  # with a peer that has just connected: its store may be starting still
RETRY_S = 1.0
ANSWERS_MAX = 4  # requests of one peer at a time: it may lead three sessions with us (as it comes,
# by chance, as it leaves), one request each. More are told that we are busy.
YIELD_S = 0.5  # the peer with the larger ID lets the other lead; then usually nothing differs


@dataclass
class SyncReport:
    """What one sync moved."""

    round_trips: int = 0
    entries_in: int = 0
    entries_out: int = 0


class Syncer:
    """Leads sessions with peers and answers theirs."""

    def __init__(
        self,
        network: Network,
        replica: Replica,
        take: Callable[[list[Signed]], Awaitable[list[Record]]],
        *,
        peers: Callable[[], list[PeerId]],
        interval_s: float,
        rng: random.Random,
    ) -> None:
        self._network, self._replica, self._take = network, replica, take
        self._peers, self._interval_s, self._rng = peers, interval_s, rng
        self._queue, self._queued = trio.open_memory_channel[PeerId](QUEUE_MAX)
        self._waiting: set[PeerId] = set()
        self._answering: Counter[PeerId] = Counter()  # only peers that wait for us now
        self._turn = trio.Lock()  # one answer per turn of the loop, however many ask at once
        self.totals = SyncReport()
        self.done = self.failed = 0

    def peer_up(self, peer: PeerId) -> None:
        """Sync with a peer soon."""
        if peer in self._waiting:
            return
        try:
            self._queue.send_nowait(peer)
        except trio.WouldBlock:
            return
        self._waiting.add(peer)

    async def run(self) -> None:
        """Sync until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            if math.isfinite(self._interval_s):
                nursery.start_soon(self._wander)

    async def answer(self, peer: PeerId, message: bytes) -> bytes:
        """Answer one request. Raises BadMessage, StoreFailed, Busy."""
        if self._answering[peer] >= ANSWERS_MAX:
            raise Busy(f"{ANSWERS_MAX} sync requests of yours are being answered")
        self._answering[peer] += 1
        try:
            return codec.encode(await self._answer(message))
        finally:
            self._answering[peer] -= 1
            if not self._answering[peer]:
                del self._answering[peer]

    async def _answer(self, message: bytes) -> wire.Answer:
        async with self._turn:
            request = codec.decode(message, wire.request_decoder, wire.FRAME_MAX)
            match request:
                case wire.Compare():
                    return compare(self._replica, request)
                case wire.Want():
                    return supply(self._replica, request)
                case wire.Push(entries):
                    pass
        return wire.Taken(len(await self._take(entries)))

    async def sync_with(self, peer: PeerId) -> SyncReport:
        """Lead one session. Raises PeerUnreachable, DeadlineExceeded, RemoteError, BadMessage."""
        session = Session(self._replica)
        try:
            while (request := session.next_request()) is not None:
                frame = codec.encode(request)
                reply = await self._network.request(peer, frame, timeout_s=REQUEST_S)
                answer = codec.decode(reply, wire.answer_decoder, wire.FRAME_MAX)
                entries = session.receive(answer)
                if entries:
                    await self._take(entries)
        except ShoalError:
            self.failed += 1
            raise
        self.done += 1
        self.totals.round_trips += session.round_trips
        self.totals.entries_in += session.entries_in
        self.totals.entries_out += session.entries_out
        return SyncReport(session.round_trips, session.entries_in, session.entries_out)

    async def _work(self) -> None:
        async for peer in self._queued:
            self._waiting.discard(peer)
            if self._network.peer > peer:
                await trio.sleep(YIELD_S)
            for attempt in range(TRIES):
                if peer not in self._peers() or await self._try(peer):
                    break
                await trio.sleep(RETRY_S * 2**attempt)

    async def _wander(self) -> None:
        while True:
            await trio.sleep(self._interval_s * self._rng.uniform(0.75, 1.25))
            peers = self._peers()
            if peers:
                await self._try(self._rng.choice(peers))

    async def _try(self, peer: PeerId) -> bool:
        """Sync; a failure is counted in `failed` and is the peer's or the link's, not ours."""
        try:
            await self.sync_with(peer)
        except ShoalError:
            return False
        return True
