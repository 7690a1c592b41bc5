"""What all kinds of exchange have: their terms, how they end, what they have counted."""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import trio

from protocols.modelsync.aggregate import Aggregator
from protocols.modelsync.codecs import Vector, codec_named
from protocols.modelsync.links import Aborted, BulkLink, CallLink, Link, Traffic, blaming
from protocols.modelsync.memory import Memory
from protocols.modelsync.news import Complete, Fault, Held, News
from protocols.modelsync.parcels import Parcel
from protocols.modelsync.wire import Piece, Prepare
from protocols.modelsync.work import Work
from wire.errors import BadMessage
from wire.ids import PeerId
from wire.ports import Bulk, Call, Rpc

WATCH_S = 0.25  # between two looks for chunks that take too long


@dataclass(frozen=True)
class Terms:
    """What an exchange is opened with; see `open_exchange`."""

    prepare: Prepare
    rpc: Rpc
    bulk: Bulk | None
    contribution: Vector
    work: Work
    news: News
    aggregator: Aggregator
    memory: Memory
    held: Held | None = None
    wants_sent: bool = False


class Side:
    """One member's side of an exchange: the part that does not depend on its kind."""

    def __init__(self, terms: Terms) -> None:
        prepare = terms.prepare
        self.prepare = prepare
        self.shards: list[bytes] = []
        self._terms = terms
        self._me = terms.rpc.peer
        self._codec = codec_named(prepare.codec)
        self._weights = dict(zip(prepare.members, prepare.weights, strict=True))
        self._others = [member for member in prepare.members if member != self._me]
        self._traffic = Traffic()
        self._commitments: dict[PeerId, bytes] = {}
        self._may_flow = trio.Event()
        if not prepare.is_sealed:
            self._may_flow.set()
        self._faults: set[Fault] = set()
        self._watched: dict[PeerId, list[tuple[Parcel, float]]] = {}  # in the order of coming
        self._served: set[PeerId] = set()
        self._scopes: set[trio.CancelScope] = set()
        self._is_running = False
        self._idle: list[memoryview] = []  # to be given back when `run` has ended

    @property
    def bytes_in(self) -> int:
        """Payload that came, without frames and encryption."""
        return self._traffic.taken.total()

    @property
    def bytes_out(self) -> int:
        """Payload that went."""
        return self._traffic.given.total()

    @property
    def bytes_by_peer(self) -> Mapping[PeerId, tuple[int, int]]:
        """In and out, by peer."""
        return self._traffic.by_peer

    @property
    def rate(self) -> int:
        """Bytes/s that we were able to send; 0 if there were too few to measure."""
        return self._traffic.meter.rate

    @property
    def brought(self) -> list[memoryview]:
        """What we have committed to, chunk by chunk. Only sums keep it."""
        return []

    @property
    def lengths(self) -> Mapping[PeerId, float]:
        """Norms of contributions to our shard. Only owners have them."""
        return {}

    async def seal(self) -> bytes:
        """Return the hash of our encoded contribution. Only kinds that sum have one."""
        raise BadMessage("a sealed attempt without contributions")

    def go(self, commitments: Mapping[PeerId, bytes]) -> None:
        """Let data flow; what members bring must match these."""
        self._commitments = dict(commitments)
        self._may_flow.set()

    def close(self) -> None:
        """End the streams that others opened to us."""
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def _running(self) -> Generator[None]:
        """While `run` lasts, also after `close`, transfers read and write our memory."""
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            self._give_back()

    def _give_back(self, *memories: memoryview | None) -> None:
        """We do not need these any more: the next attempt may, once no transfer of ours does.
        From any thread.
        """
        self._idle += [memory for memory in memories if memory is not None]
        with suppress(IndexError):  # the last was taken by the other thread
            while not self._is_running and self._idle:
                self._terms.memory.give_back(self._idle.pop())

    def _fault(self, event: Fault | Complete) -> None:
        """Tell of a fault, once."""
        if isinstance(event, Fault) and event not in self._faults:
            self._faults.add(event)
            self._terms.news(event)

    async def _watch(self) -> None:
        """Find members whose next chunk takes too long."""
        began = trio.current_time()
        while True:
            await trio.sleep(WATCH_S)
            for peer, parcels in self._watched.items():
                since = began
                for parcel, wait_s in parcels:
                    since = max(since, parcel.grown_at)
                    if not parcel.is_whole:
                        if trio.current_time() > since + wait_s:
                            self._fault(Fault(peer, "silent"))
                        break

    def _complete(self, shards: list[bytes]) -> None:
        self.shards = shards
        self._terms.news(Complete(shards))

    def _bulk_link(self, peer: PeerId, *shapes: Parcel) -> BulkLink | None:
        """Return the way by bulk, if there is one and one of these is large: alike at both ends."""
        if self._terms.bulk is None or not any(parcel.is_large for parcel in shapes):
            return None
        return BulkLink(self._terms.bulk, peer, self.prepare, self._traffic)

    async def _swap(self, link: Link, give: list[Parcel], take: list[Parcel]) -> None:
        """Push and pull at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._push, link, give)
            with blaming(link.peer, self._fault):
                await link.pull(take)

    async def _push(self, link: Link, parcels: list[Parcel]) -> None:
        with blaming(link.peer, self._fault):
            await link.push(parcels)

    @asynccontextmanager
    async def _serving(self, call: Call[Piece, Piece]) -> AsyncGenerator[CallLink]:
        """Serve one member, once, until we leave the attempt. Raises BadMessage, Aborted."""
        if call.peer not in self._others or call.peer in self._served:
            raise BadMessage("not a member of this attempt, or here already")
        self._served.add(call.peer)
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                with blaming(call.peer, self._fault):
                    yield CallLink(call, self.prepare, self._traffic)
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise Aborted("the attempt is over")
