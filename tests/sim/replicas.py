"""In-memory links for the store and the DHT: bytes in, bytes out, latency, cuts, dead peers.

`tests/sim/net.py` is the typed RPC; this one stands directly under the `Network` port.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio

from crdt.live import ChannelHandler
from crdt.service import StoreService
from crdt.wire import FRAME_MAX
from wire.errors import DeadlineExceeded, PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId, Signer

T = TypeVar("T")
EPOCH_MS = 1_800_000_000_000
Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


def signer(number: int) -> Signer:
    return Signer(number.to_bytes(32))


class SimClock:
    """Virtual time, with a wall clock that may be wrong."""

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return EPOCH_MS + round(trio.current_time() * 1000) + self.skew_ms


async def in_place(work: Callable[[], T]) -> T:
    """Blocking work on the loop: a mock clock would jump while a thread works."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class Links:
    """Who can reach whom."""

    latency_s: float = 0.02
    answers: dict[PeerId, Answer] = field(default_factory=dict)
    listeners: dict[PeerId, dict[str, ChannelHandler]] = field(default_factory=dict)
    cut: set[frozenset[PeerId]] = field(default_factory=set)
    silent: set[PeerId] = field(default_factory=set)
    seen: set[tuple[PeerId, bytes]] = field(default_factory=set)
    bytes_moved: int = 0
    requests: int = 0

    def reaches(self, a: PeerId, b: PeerId) -> bool:
        return frozenset((a, b)) not in self.cut and b in self.answers and a in self.answers

    def peers(self, own: PeerId) -> list[PeerId]:
        return [peer for peer in self.answers if peer != own and self.reaches(own, peer)]

    def split(self, left: list[PeerId], right: list[PeerId]) -> None:
        self.cut |= {frozenset((a, b)) for a in left for b in right}


@dataclass
class Wire:
    """The `Network` port of one peer."""

    links: Links
    peer: PeerId

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        self.links.requests += 1
        await trio.sleep(self.links.latency_s)
        if peer in self.links.silent:
            await trio.sleep(timeout_s)
            raise DeadlineExceeded(peer)
        if not self.links.reaches(self.peer, peer):
            raise PeerUnreachable(peer)
        try:
            reply = await self.links.answers[peer](self.peer, message)
        except ShoalError as error:
            raise RemoteError(error.code, str(error)) from error
        await trio.sleep(self.links.latency_s)
        self.links.bytes_moved += len(message) + len(reply)
        assert max(len(message), len(reply)) <= FRAME_MAX
        return reply


@dataclass
class Flood:
    """The `Channel` of one peer: to everybody reachable, passed on once by each of them."""

    links: Links
    peer: PeerId
    nursery: trio.Nursery

    def subscribe(self, topic: str, handler: ChannelHandler) -> None:
        self.links.listeners.setdefault(self.peer, {})[topic] = handler

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.links.seen.add((self.peer, data))
        for peer in self.links.peers(self.peer):
            self.nursery.start_soon(self._deliver, topic, peer, data)

    async def _deliver(self, topic: str, peer: PeerId, data: bytes) -> None:
        await trio.sleep(self.links.latency_s)
        handler = self.links.listeners.get(peer, {}).get(topic)
        if handler is None or (peer, data) in self.links.seen:
            return
        self.links.seen.add((peer, data))
        if await handler(self.peer, data):
            await Flood(self.links, peer, self.nursery).publish(topic, data)


@dataclass
class Silence:
    """A channel that loses everything."""

    def subscribe(self, topic: str, handler: ChannelHandler) -> None: ...

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()


async def start_store(
    nursery: trio.Nursery,
    links: Links,
    number: int,
    *,
    path: Path | str = ":memory:",
    is_live: bool = True,
    skew_ms: int = 0,
    sync_interval_s: float = 30.0,
) -> StoreService:
    """Start a real store on simulated links."""
    own = signer(number)
    channel = Flood(links, own.peer, nursery) if is_live else Silence()
    store = StoreService(
        Wire(links, own.peer),
        channel,
        SimClock(skew_ms),
        own,
        path,
        peers=lambda: links.peers(own.peer),
        sync_interval_s=sync_interval_s,
        off_loop=in_place,
        rng=random.Random(number),
    )
    await nursery.start(store.run)
    links.answers[own.peer] = store.answer
    return store
