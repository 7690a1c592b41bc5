"""Hosts with the DHT's streams, for the tests of this folder."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from dht.messages import (
    Answer,
    Contact,
    Ping,
    Pong,
    Request,
)
from dht.ports import Reply
from dht.records import seal_peer
from node.host.service import LibP2pHost
from node.kad import KadStreams
from tests.daemon.hosts import KEY, make_host, running
from wire.clock import SystemClock
from wire.ids import PeerId, Signer
from wire.ports import Stream

PROTOCOL = "/shoal/test/kad/1.0.0"
PUBLIC = "/ipfs/kad/1.0.0"
BORN_MS = SystemClock().wall_ms()


@dataclass
class End:
    """A host with streams; it answers with itself, and keeps what it was asked."""

    host: LibP2pHost
    signer: Signer
    is_server: bool = True
    answer: Answer = field(default_factory=Pong)
    asked: list[tuple[PeerId, Contact | None, Request]] = field(default_factory=list)
    streams: KadStreams = field(init=False)
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
        self.streams = KadStreams(
            self.host,
            self.protocol,
            self.take,
            lambda: self.is_server,
            own=lambda: self.contact if self.is_server else None,
            clock=SystemClock(),
        )

    def take(self, peer: PeerId, sender: Contact | None, request: Request) -> Answer:
        self.asked.append((peer, sender, request))
        return Pong() if isinstance(request, Ping) else self.answer

    @property
    def contact(self) -> Contact:
        return seal_peer(self.signer, self.host.addresses(), seq=1, now_ms=BORN_MS)

    async def ask(
        self,
        other: "End | Contact",
        request: Request,
        *,
        timeout_s: float = 5.0,
        is_check: bool = False,
    ) -> Reply:
        contact = other.contact if isinstance(other, End) else other
        sender = self.contact if self.is_server else None
        return await self.streams.ask(
            contact, request, sender, timeout_s=timeout_s, is_check=is_check
        )

    def mode(self, *, is_server: bool) -> None:
        self.is_server = is_server
        self.streams.mode_changed()


def make_end(*, is_server: bool = True, protocol: str = PROTOCOL) -> End:
    seed = secrets.token_bytes(32)
    host = make_host(seed=seed, key=None if protocol == PUBLIC else KEY)
    return End(host, Signer(seed), is_server, protocol=protocol)


@asynccontextmanager
async def ends(*of: End) -> AsyncIterator[None]:
    async with running(*[end.host for end in of]), trio.open_nursery() as nursery:
        for end in of:
            await nursery.start(end.streams.run)
        yield
        nursery.cancel_scope.cancel()


def serve_instead(end: End, server: Callable[[Stream], object]) -> None:
    """Let a peer answer in another way."""
    end.host.unserve(PROTOCOL)

    async def serve(stream: Stream) -> None:
        await server(stream)  # type: ignore[misc]

    end.host.serve(PROTOCOL, serve)


def place_of(end: End) -> str:
    return end.host.addresses()[0].split("/p2p/")[0]
