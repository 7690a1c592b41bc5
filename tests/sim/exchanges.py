"""Exchanges between simulated nodes: real RPC over in-memory streams, and bulk that is a copy."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trio

from protocols.modelsync.aggregate import aggregator_named
from protocols.modelsync.codecs import Vector
from protocols.modelsync.exchange import Exchange, open_exchange
from protocols.modelsync.memory import Memory
from protocols.modelsync.news import Complete, Fault, Held
from protocols.modelsync.shards import weighted_shards
from protocols.modelsync.wire import REDUCE, Piece, Prepare
from protocols.rpc.service import RpcService
from tests.sim.net import Net
from tests.sim.training import in_place
from wire.errors import DeadlineExceeded, ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Call, Rpc

PIECE_BYTES = 512 * 1024
LATENCY_S = 0.01
TELL_S = 0.25  # as protocols/bulk reports


class TransferEnded(ShoalError):
    """As that of protocols/bulk."""

    code = "transfer_ended"


@dataclass
class _Place:
    buffer: tuple[memoryview, ...]
    tell: Callable[[int], None] | None
    step_bytes: int
    scope: trio.CancelScope
    done: trio.Event = field(default_factory=trio.Event)
    error: ShoalError | None = None


@dataclass
class Meadow:
    """Where all simulated bulk transfers happen; `spoil` may change pieces on their way."""

    places: dict[tuple[PeerId, PeerId, bytes], _Place] = field(
        default_factory=dict[tuple[PeerId, PeerId, bytes], _Place]
    )
    spoil: Callable[[PeerId, PeerId, int, bytes], bytes] = lambda sender, receiver, at, data: data
    slow_s: dict[PeerId, float] = field(
        default_factory=dict[PeerId, float]
    )  # a piece takes so long
    transfers: int = 0


def cut(sizes: list[int]) -> list[tuple[int, int]]:
    """Return the pieces of buffers: none crosses an edge."""
    pieces, start = list[tuple[int, int]](), 0
    for size in sizes:
        starts = range(start, start + size, PIECE_BYTES)
        pieces += [(at, min(at + PIECE_BYTES, start + size)) for at in starts]
        start += size
    return pieces


def scatter(buffers: tuple[memoryview, ...], at: int, data: bytes) -> None:
    """Write over buffers that follow one another."""
    for buffer in buffers:
        if 0 <= at < len(buffer):
            count = min(len(data), len(buffer) - at)
            buffer[at : at + count], data, at = data[:count], data[count:], at + count
        at -= len(buffer)


@dataclass
class SimBulk:
    """The Bulk port of one node."""

    peer: PeerId
    meadow: Meadow

    async def send(
        self,
        peer: PeerId,
        key: bytes,
        source: tuple[memoryview, ...],
        *,
        ready: Callable[[int], Awaitable[int]] | None = None,
        progress: Callable[[int, int], None] | None = None,
        wait_s: float,
    ) -> int:
        """Copy piece by piece."""
        place = await self._meet(peer, key, wait_s)
        size, told = sum(map(len, source)), 0
        may_go, told_at = size if ready is None else 0, trio.current_time()
        self.meadow.transfers += 1
        try:
            if [*map(len, source)] != [*map(len, place.buffer)]:
                raise TransferEnded("another size")
            for at, end in cut([len(part) for part in source]):
                while may_go < end:
                    assert ready is not None
                    may_go = await ready(may_go)
                await trio.sleep(self.meadow.slow_s.get(self.peer, LATENCY_S))
                data = self.meadow.spoil(self.peer, peer, at, b"".join(source)[at:end])
                if place.scope.cancel_called:
                    raise TransferEnded("the receiver gave up")
                scatter(place.buffer, at, data)
                if progress is not None:
                    progress(end, size)
                is_step = end >= told + place.step_bytes or end in (len(source[0]), size)
                is_step = is_step or trio.current_time() >= told_at + TELL_S
                if place.tell is not None and is_step:
                    told, told_at = end, trio.current_time()
                    place.tell(end)
        except BaseException:
            place.error = TransferEnded("the sender gave up")
            raise
        finally:
            place.done.set()
        return size

    async def receive_into(
        self,
        peer: PeerId,
        key: bytes,
        buffer: tuple[memoryview, ...],
        *,
        prefix: Callable[[int], None] | None = None,
        step_bytes: int,
        wait_s: float,
    ) -> int:
        """Wait for the bytes."""
        scope = trio.CancelScope()
        place = _Place(buffer, prefix, step_bytes, scope)
        self.meadow.places[peer, self.peer, key] = place
        try:
            await place.done.wait()
        finally:
            scope.cancel()
            self.meadow.places.pop((peer, self.peer, key), None)
        if place.error is not None:
            raise place.error
        return sum(map(len, buffer))

    async def _meet(self, peer: PeerId, key: bytes, wait_s: float) -> _Place:
        with trio.move_on_after(wait_s):
            while True:
                place = self.meadow.places.get((self.peer, peer, key))
                if place is not None:
                    return place
                await trio.sleep(LATENCY_S)
        raise DeadlineExceeded("nobody came to receive")


@dataclass
class Node:
    """One member."""

    peer: PeerId
    rpc: RpcService
    contribution: Vector
    bulk: SimBulk | None
    held: Held | None = None
    exchange: Exchange | None = None
    events: list[Complete | Fault] = field(default_factory=list[Complete | Fault])
    opened: trio.Event = field(default_factory=trio.Event)
    completed: trio.Event = field(default_factory=trio.Event)
    result: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    sent: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    wrapped: Rpc | None = None  # to misbehave
    wants_sent: bool = False
    memory: Memory = field(default_factory=Memory)

    def open(self, prepare: Prepare, aggregator: str = "mean") -> Exchange:
        """Open our side of an attempt."""
        self.events, self.completed = [], trio.Event()
        self.exchange = open_exchange(
            prepare,
            rpc=self.wrapped or self.rpc,
            bulk=self.bulk,
            contribution=self.contribution,
            work=in_place,
            news=self._on_news,
            aggregator=aggregator_named(aggregator),
            held=self.held,
            wants_sent=self.wants_sent,
            memory=self.memory,
        )
        self.opened.set()
        return self.exchange

    def take(self) -> None:
        """As after COMMIT."""
        assert self.exchange is not None
        self.result, self.sent = (np.empty_like(self.contribution) for _ in range(2))
        self.exchange.take(self.result, self.sent)

    @property
    def faults(self) -> set[tuple[int, str]]:
        """Who was accused of what, by number."""
        return {(number_of(e.accused), e.reason) for e in self.events if isinstance(e, Fault)}

    def _on_news(self, event: Complete | Fault) -> None:
        self.events.append(event)
        if isinstance(event, Complete):
            self.completed.set()

    async def serve(self, call: Call[Piece, Piece]) -> None:
        """What a driver does with a stream of data."""
        first = await call.receive()
        await self.opened.wait()
        assert self.exchange is not None
        await self.exchange.serve(call, first)


class Members:
    """Some nodes in one attempt, in member order."""

    def __init__(
        self, nursery: trio.Nursery, count: int, elements: int, *, by_bulk: bool = False
    ) -> None:
        self.net, self.meadow = Net(nursery, latency_s=LATENCY_S), Meadow()
        self.nodes: list[Node] = []
        for peer in sorted(peer_of(number) for number in range(count)):
            random = np.random.default_rng(number_of(peer))
            vector = random.standard_normal(elements, dtype=np.float32)
            bulk = SimBulk(peer, self.meadow) if by_bulk else None
            node = Node(peer, self.net.rpc(peer), vector, bulk)
            node.rpc.serve_stream(REDUCE, node.serve)
            self.nodes.append(node)

    @property
    def vectors(self) -> list[Vector]:
        """What all bring."""
        return [node.contribution for node in self.nodes]

    def prepare(self, **changes: Any) -> Prepare:
        """Return an attempt of all."""
        count, elements = len(self.nodes), len(self.nodes[0].contribution)
        fields: dict[str, Any] = {
            "weights": [1.0] * count,
            "shards": weighted_shards(elements, [0] * count, [True] * count),
            "codec": "float32",
            "attempt": 0,
        }
        return Prepare(
            run="test",
            round=3,
            proposer=self.nodes[0].peer,
            members=[node.peer for node in self.nodes],
            base_root=bytes(32),
            elements=elements,
            **(fields | changes),
        )

    async def run(
        self, prepare: Prepare, *, aggregator: str = "mean", within_s: float = 60, until: int = -1
    ) -> None:
        """Run all sides until the first `until` (all) are complete, or for `within_s`; seal and go
        first if the attempt is sealed.
        """
        for node in self.nodes:
            node.open(prepare, aggregator)
        if prepare.is_sealed and prepare.adopt is None:
            commitments = {
                node.peer: await node.exchange.seal() for node in self.nodes if node.exchange
            }
            for node in self.nodes:
                assert node.exchange is not None
                node.exchange.go(commitments)
        with trio.move_on_after(within_s):
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    assert node.exchange is not None
                    nursery.start_soon(node.exchange.run)
                for node in self.nodes[: len(self.nodes) if until < 0 else until]:
                    await node.completed.wait()
                nursery.cancel_scope.cancel()
        for node in self.nodes:
            assert node.exchange is not None
            node.exchange.close()

    def apply(self) -> None:
        """COMMIT."""
        for node in self.nodes:
            node.take()


def peer_of(number: int) -> PeerId:
    """Return the peer ID of a node by a number of its own."""
    return Signer(bytes([number + 1]) * 32).peer


_NUMBERS = {peer_of(number): number for number in range(16)}


def number_of(peer: PeerId) -> int:
    """Return the number of a peer ID."""
    return _NUMBERS[peer]
