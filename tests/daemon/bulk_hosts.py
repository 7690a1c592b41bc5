"""Two real hosts with bulk service on loopback, for the tests of this folder."""

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from node.host.service import LibP2pHost
from protocols.bulk.lane import Lane
from protocols.bulk.service import BulkService
from protocols.rpc.service import RpcService
from tests.daemon.hosts import PATIENCE_S, make_host
from wire.ids import PeerId

MB = 1_000_000


class Peer:
    """A host, its calls and its bulk service."""

    def __init__(self, *, stall_s: float = PATIENCE_S) -> None:
        self.host: LibP2pHost = make_host()
        self.rpc = RpcService(self.host)
        self.bulk = BulkService(self.rpc, self.host.lanes, stall_s=stall_s)

    @property
    def id(self) -> PeerId:
        return self.host.peer

    def lanes(self) -> list[Lane]:
        return self.bulk.pool._lanes()  # pyright: ignore[reportPrivateUsage]

    def no_lanes(self) -> None:
        """From now on no lane can be made, as if there was only a relay."""
        self.host.lanes.route = lambda peer: None  # type: ignore[method-assign]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.host.run)
            await nursery.start(self.bulk.run)
            task_status.started()


@asynccontextmanager
async def pair(*, stall_s: float = PATIENCE_S) -> AsyncGenerator[tuple[Peer, Peer]]:
    """Two peers; the first has dialled the second."""
    a, b = Peer(stall_s=stall_s), Peer(stall_s=stall_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(a.run)
        await nursery.start(b.run)
        await a.host.connect(b.host.addresses()[0])
        yield a, b
        nursery.cancel_scope.cancel()


async def move(
    sender: Peer,
    receiver: Peer,
    data: bytes,
    *,
    key: bytes = b"key",
    rate_mb_s: float | None = None,
) -> bytes:
    """Send and receive; return what has arrived."""
    place = bytearray(len(data))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.bulk.receive_into, sender.id, key, place)
        await sender.bulk.send(receiver.id, key, data, rate_mb_s=rate_mb_s)
    return bytes(place)


def lane_threads() -> list[str]:
    """Threads that are at work for a lane now."""
    return [thread.name for thread in threading.enumerate() if "bulk lane" in thread.name]
