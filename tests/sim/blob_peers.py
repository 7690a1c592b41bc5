"""Peers with blobs in a simulated network: their services, and providers that misbehave."""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import trio

from protocols.blobs.index import Index
from protocols.blobs.service import BlobService
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import GET, Ask, Chunk, Get, Have, Object, Tell, Who, parse_cid
from tests.sim.net import Net
from wire.ids import PeerId
from wire.ports import Call

T = TypeVar("T")


async def in_place(work: Callable[[], T], /) -> T:
    await trio.lowlevel.checkpoint()
    return work()


class Directory:
    """A DHT that everybody sees at once."""

    def __init__(self, board: dict[bytes, list[PeerId]], peer: PeerId) -> None:
        self.board, self.peer = board, peer

    async def provide_many(self, keys: Iterable[bytes], /) -> int:
        await trio.lowlevel.checkpoint()
        for key in keys:
            providers = self.board.setdefault(key, [])
            if self.peer not in providers:
                providers.append(self.peer)
        return 1

    def withdraw(self, key: bytes, /) -> None:
        self.board[key].remove(self.peer)

    async def providers(self, key: bytes, /) -> list[PeerId]:
        await trio.sleep(0.05)
        return list(self.board.get(key, []))


class Peers:
    """Makes services; `mesh` ones ask whoever is connected, `listed` ones the directory."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.board: dict[bytes, list[PeerId]] = {}

    def make(
        self,
        peer: PeerId,
        *,
        meets: bool = False,
        listed: bool = False,
        quota_bytes: int = 0,
        upload_bytes_per_s: float = 0.0,
    ) -> BlobService:
        return BlobService(
            self.net.rpc(peer),
            BlobStore(self.folder / peer, quota_bytes=quota_bytes),
            peers=self.net.host(peer).connected if meets else lambda: [],
            finder=Directory(self.board, peer) if listed else None,
            upload_bytes_per_s=upload_bytes_per_s,
            off_loop=in_place,
        )

    def serve(self, peer: PeerId, answer: Callable[[Call[Tell, Ask]], Awaitable[None]]) -> None:
        """Have a peer that answers `blobs.get` in its own way."""
        self.net.rpc(peer).serve_stream(GET, answer)


async def claim_all(call: Call[Tell, Ask]) -> None:
    """Say that everything is there."""
    await call.receive()
    await call.send(Tell(Have(b"")))


async def lie(call: Call[Tell, Ask]) -> None:
    """Send rubbish for every chunk."""
    await claim_all(call)
    async for ask in call:
        if isinstance(ask.what, Get):
            for index in range(ask.what.first, ask.what.first + ask.what.count):
                await call.send(Tell(Chunk(index, b"poison")))


async def hang(call: Call[Tell, Ask]) -> None:
    """Promise everything and bring nothing."""
    await claim_all(call)
    await trio.sleep_forever()


def manifest_of(peers: Peers) -> Callable[[PeerId, Who], Awaitable[Object]]:
    """Answer `blobs.object` with the manifest as B has it."""

    async def answer(_: PeerId, who: Who) -> Object:
        await trio.lowlevel.checkpoint()
        index = Index(peers.folder / "B" / "index.db")
        data = index.manifest(parse_cid(who.cid))
        index.close()
        assert data is not None
        return Object(data)

    return answer
