"""What nodes of a simulated swarm share without a network: a store, and blobs.

The store is one dictionary that all nodes see at once, the blobs are real files.
"""

import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import trio

from protocols.blobs.adding import cid_of
from protocols.blobs.progress import Report, Transfer
from wire.errors import BadMessage, NotFound
from wire.ids import PeerId
from wire.ports import Item


class Board:
    """What every node's store shows."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.watchers: list[tuple[str, str, trio.MemorySendChannel[str]]] = []

    def changed(self, namespace: str, key: str) -> None:
        for watched, prefix, send in self.watchers:
            if watched == namespace and key.startswith(prefix):
                send.send_nowait(key)


class SharedStore:
    """One node's view of the board. Implements `wire.ports.Store`."""

    def __init__(self, board: Board, peer: PeerId) -> None:
        self.board, self.peer = board, peer

    async def put(
        self, namespace: str, key: str, value: object, *, ttl_s: float | None = None
    ) -> Item:
        await trio.lowlevel.checkpoint()
        expires_ms = 0 if ttl_s is None else int((time.time() + ttl_s) * 1000)
        item = Item(key, value, self.peer, 0, expires_ms)
        self.board.items[namespace, key] = item
        self.board.changed(namespace, key)
        return item

    async def delete(self, namespace: str, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.board.items.pop((namespace, key), None)
        self.board.changed(namespace, key)

    def get(self, namespace: str, key: str) -> Item | None:
        item = self.board.items.get((namespace, key))
        alive = item is not None and (not item.expires_ms or item.expires_ms > time.time() * 1000)
        return item if alive else None

    def scan(self, namespace: str, prefix: str = "") -> list[Item]:
        keys = sorted(k for n, k in self.board.items if n == namespace and k.startswith(prefix))
        return [item for item in (self.get(namespace, key) for key in keys) if item]

    @asynccontextmanager
    async def watch(self, namespace: str, prefix: str = "") -> AsyncGenerator[AsyncIterator[str]]:
        send, receive = trio.open_memory_channel[str](1000)
        entry = (namespace, prefix, send)
        self.board.watchers.append(entry)
        try:
            yield receive
        finally:
            self.board.watchers.remove(entry)


class Shelf:
    """One node's blobs; the others' shelves are the network."""

    def __init__(self, folder: Path, all_: "dict[PeerId, Shelf]") -> None:
        self.folder, self.all = folder, all_
        folder.mkdir(parents=True)
        self.fetched: list[str] = []

    async def put_file(
        self, path: Path, /, *, mode: Literal["take"] = "take", name: str = ""
    ) -> str:
        await trio.lowlevel.checkpoint()
        cid = cid_of(path)
        if not (self.folder / cid).exists():
            os.link(path, self.folder / cid)
        return cid

    async def fetch(
        self,
        cid: str,
        providers: list[PeerId],
        /,
        *,
        limit_bytes: int | None,
        name: str,
        report: Report = lambda _: None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        for shelf in [self, *(self.all[peer] for peer in providers)]:
            if (shelf.folder / cid).exists():
                size_bytes = (shelf.folder / cid).stat().st_size
                if limit_bytes is not None and size_bytes > limit_bytes:
                    raise BadMessage(f"blob {cid} has {size_bytes} B, over {limit_bytes} B")
                if shelf is not self:
                    shutil.copyfile(shelf.folder / cid, self.folder / cid)
                    self.fetched.append(cid)
                report(Transfer(size_bytes=size_bytes, done_bytes=size_bytes))
                return
        raise NotFound(f"nobody has {cid[:12]}")

    async def place(self, cid: str, path: Path) -> None:
        await trio.lowlevel.checkpoint()
        os.link(self.folder / cid, path)

    async def check(self, cid: str) -> bool:
        await trio.lowlevel.checkpoint()
        path = self.folder / cid
        if path.exists() and cid_of(path) != cid:
            path.unlink()
        return path.exists()

    async def release(self, cids: Iterable[str]) -> int:
        await trio.lowlevel.checkpoint()
        paths = [self.folder / cid for cid in set(cids) if (self.folder / cid).exists()]
        paths = [path for path in paths if path.stat().st_nlink == 1]
        freed = sum(path.stat().st_size for path in paths)
        for path in paths:
            path.unlink()
        return freed
