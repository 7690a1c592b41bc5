"""When to sync: with a peer that has just connected, and now and then with two others."""

import math
import random
from collections import Counter
from collections.abc import Callable

import trio

from crdt import wire
from crdt.absence import NEVER_SYNCED_MS
from crdt.exchange import Exchange, Store
from crdt.shown import SyncReport
from wire import codec
from wire.errors import BadMessage, Busy, ShoalError
from wire.ids import PeerId
from wire.ports import Clock, Network, OffLoop

WORKERS = 4  # syncs led at a time; each holds a few frames of memory
QUEUE_MAX = 256  # peers waiting to be synced with; when full, later rounds get to them
TRIES = 3  # with a peer that has just connected: its store may be starting still
RETRY_S = 1.0
ANSWERS_MAX = 4  # requests of one peer at a time: it may lead three sessions with us (as it comes,
# by chance, as it leaves), one request each. More are told that we are busy.
YIELD_S = 0.5  # the peer with the larger ID lets the other lead; then usually nothing differs
LED_S = 2.0  # since a request of a peer: its session with us goes on, and moves both ways
FILL_S = 2.5  # from a new namespace to a sync that fills it: the session that brought it has ended
JITTER = 0.25  # share of the interval, so that nodes that start together drift apart
HURRY = 0.25  # share of the interval after a session that moved something: a swarm that was in two
# pieces is whole again in log(n) of these steps
PEERS_MAX = 1024  # whose last session, or request, is remembered; when full, the oldest goes


class Syncer:
    """Leads sessions with peers and answers theirs."""

    def __init__(
        self,
        network: Network,
        store: Store,
        clock: Clock,
        *,
        off_loop: OffLoop,
        peers: Callable[[], list[PeerId]],
        interval_s: float,
        rng: random.Random,
    ) -> None:
        self._own, self._store, self._clock = network.peer, store, clock
        self._exchange = Exchange(network, store, clock, off_loop)
        self._peers, self._interval_s, self._rng = peers, interval_s, rng
        self._queue, self._queued = trio.open_memory_channel[tuple[PeerId, int]](QUEUE_MAX)
        self._waiting: set[PeerId] = set()
        self._answering: Counter[PeerId] = Counter()  # only peers that wait for us now
        self._turn = trio.Lock()  # one answer at a time, however many ask: bounds time and memory
        self._tried: dict[PeerId, float] = {}  # when a session with a peer began last
        self._leading: Counter[PeerId] = Counter()  # sessions with a peer that go on
        self._asked: dict[PeerId, float] = {}  # when a peer asked last
        self._is_to_fill = trio.Event()
        self.totals = SyncReport()
        self.done = self.failed = 0
        self.refused: Counter[str] = Counter()  # requests that are no such

    @property
    def clock_skew_ms(self) -> int:
        """How far this clock is ahead of the median of the peers'; 0 if fewer than 3 are known."""
        return self._exchange.clocks.skew_ms(self._clock.now())

    def fill(self) -> None:
        """There is a new namespace, of which only the others hold something: sync soon."""
        self._is_to_fill.set()

    def peer_up(self, peer: PeerId) -> None:
        """Sync soon with a peer that has connected."""
        self._enqueue(peer, TRIES)

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
        _note(self._asked, peer, self._clock.now())
        try:
            async with self._turn:
                try:
                    request = wire.decode_request(message)
                except BadMessage:
                    self.refused["malformed"] += 1
                    raise
                return codec.encode(await self._exchange.answer(peer, request))
        finally:
            self._answering[peer] -= 1
            if not self._answering[peer]:
                del self._answering[peer]

    async def sync_with(self, peer: PeerId) -> SyncReport:
        """Lead one session. Raises PeerUnreachable, DeadlineExceeded, RemoteError, BadMessage,
        StoreFailed.
        """
        _note(self._tried, peer, self._clock.now())
        report = SyncReport()
        self._leading[peer] += 1
        try:
            await self._exchange.lead(peer, report)
        except ShoalError:
            self.failed += 1
            raise
        finally:
            self._leading -= Counter([peer])
            self.totals.round_trips += report.round_trips
            self.totals.entries_in += report.entries_in
            self.totals.entries_out += report.entries_out
            self.totals.overhead_bytes += report.overhead_bytes
        self.done += 1
        return report

    def _enqueue(self, peer: PeerId, tries: int) -> None:
        if peer in self._waiting:
            return
        try:
            self._queue.send_nowait((peer, tries))
        except trio.WouldBlock:
            return
        self._waiting.add(peer)

    async def _work(self) -> None:
        async for peer, tries in self._queued:
            self._waiting.discard(peer)
            if tries > 1 and self._own > peer and not self._is_new():
                await trio.sleep(YIELD_S)
            for attempt in range(tries):
                if self._is_at_it(peer) or peer not in self._peers() or await self._try(peer):
                    break
                if attempt + 1 < tries:
                    await trio.sleep(RETRY_S * 2**attempt)

    def _is_at_it(self, peer: PeerId) -> bool:
        """True if a session with a peer goes on, whoever leads it: it moves what both lack."""
        is_led = self._clock.now() < self._asked.get(peer, -math.inf) + LED_S
        return (is_led and not self._is_new()) or peer in self._leading

    def _is_new(self) -> bool:
        """True if no sync was finished here yet: others leave it to us to pull what we lack."""
        return self._store.quiet_ms() == NEVER_SYNCED_MS

    async def _wander(self) -> None:
        """One peer by chance, so that news spreads fast; and the one that was not asked longest, so
        that nobody is left out.
        """
        before = 0
        while True:
            moved = self.totals.entries_in + self.totals.entries_out
            interval_s = self._interval_s * (HURRY if moved > before else 1.0)
            before = moved
            with trio.move_on_after(interval_s * self._rng.uniform(1 - JITTER, 1 + JITTER)):
                await self._is_to_fill.wait()
                self._is_to_fill = trio.Event()
                await trio.sleep(FILL_S)
            peers = self._peers()
            if peers:
                longest = min(peers, key=lambda peer: self._tried.get(peer, -math.inf))
                self._enqueue(longest, 1)
                self._enqueue(self._rng.choice(peers), 1)

    async def _try(self, peer: PeerId) -> bool:
        """Sync; a failure is counted in `failed` and is the peer's or the link's, not ours."""
        try:
            await self.sync_with(peer)
        except ShoalError:
            return False
        return True


def _note(times: dict[PeerId, float], peer: PeerId, now: float) -> None:
    times.pop(peer, None)
    if len(times) >= PEERS_MAX:
        del times[next(iter(times))]
    times[peer] = now
