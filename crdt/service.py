"""The store as a service: reads from memory, writes through the disk, spreads what is new."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import trio

from wire.ids import PeerId, Signer
from wire.ports import Clock, Item, Network

ChannelHandler = Callable[[PeerId, bytes], Awaitable[bool]]


class Channel(Protocol):
    """Gossip, as the store needs it: `protocols.channels` provides it, node/ passes it in."""

    def subscribe(self, topic: str, handler: ChannelHandler, /) -> object:
        """Hand every message of a topic to `handler`; True means valid and news: forward it."""
        ...

    async def publish(self, topic: str, data: bytes, /) -> object:
        """Send to everybody who is subscribed, up to 64 KiB."""
        ...


class StoreService:
    """Implements `wire.ports.Store`. `node` wires `rpc.answer("crdt.sync", store.answer)`."""

    def __init__(
        self,
        network: Network,
        channel: Channel,
        clock: Clock,
        signer: Signer,
        path: Path,
        *,
        peers: Callable[[], list[PeerId]],
        sync_interval_s: float = 30.0,
    ) -> None:
        raise NotImplementedError

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open the file, start to sync; ready (`started`) when reads and writes work."""

    async def answer(self, peer: PeerId, message: bytes) -> bytes:
        """Answer one request of a peer's sync."""
        raise NotImplementedError

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: sync with it soon."""

    async def sync_with(self, peer: PeerId) -> None:
        """Exchange what either side lacks. Raises PeerUnreachable, DeadlineExceeded, PeerError."""

    async def put(
        self, namespace: str, key: str, value: object, *, ttl_s: float | None = None
    ) -> Item:
        """Write; durable when it returns, then spread."""
        raise NotImplementedError

    async def delete(self, namespace: str, key: str) -> None:
        """Write a tombstone."""

    def get(self, namespace: str, key: str) -> Item | None:
        """Read from memory."""
        raise NotImplementedError

    def scan(self, namespace: str, prefix: str = "") -> list[Item]:
        """Read all live items under a prefix, in key order."""
        raise NotImplementedError

    def watch(
        self, namespace: str, prefix: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Yield keys that changed (written, deleted, lease died)."""
        raise NotImplementedError

    def state_root(self, namespace: str) -> bytes:
        """32 bytes; equal on two replicas if they hold the same entries."""
        raise NotImplementedError
