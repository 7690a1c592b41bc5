"""RPC and blobs over real libp2p hosts on loopback."""

from pathlib import Path

import pytest
import trio

from node.host.service import LibP2pHost
from protocols.blobs.service import BlobService
from protocols.blobs.store import BlobStore
from protocols.rpc.service import RpcService
from tests.daemon.hosts import eventually, make_host, running
from wire.codec import Message
from wire.errors import DeadlineExceeded, NotFound, RemoteError
from wire.ids import PeerId
from wire.ports import Call, Method


class Number(Message, frozen=True):
    value: int


class Bulk(Message, frozen=True):
    data: bytes


ADD = Method("test.add", Number, Number)
COUNT = Method("test.count", Number, Number)
ECHO = Method("test.echo", Bulk, Bulk, frame_max=9 << 20)
SLEEP = Method("test.sleep", Number, Number)


class Server:
    def __init__(self, rpc: RpcService) -> None:
        self.cancelled = 0
        rpc.serve(ADD, self.add)
        rpc.serve(ECHO, self.echo)
        rpc.serve(SLEEP, self.sleep)
        rpc.serve_stream(COUNT, self.count)

    async def add(self, peer: PeerId, number: Number) -> Number:
        if number.value < 0:
            raise NotFound(f"{number.value} is not here")
        return Number(number.value + 1)

    async def echo(self, peer: PeerId, bulk: Bulk) -> Bulk:
        return bulk

    async def sleep(self, peer: PeerId, number: Number) -> Number:
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1

    async def count(self, call: Call[Number, Number]) -> None:
        async for number in call:
            await call.send(Number(number.value + 1))


def connect(a: LibP2pHost, b: LibP2pHost) -> None:
    a.learn(b.peer, b.addresses())


async def test_calls_streams_errors_and_cancellation_over_tcp() -> None:
    a, b = make_host(), make_host()
    rpc_a, rpc_b = RpcService(a), RpcService(b)
    server = Server(rpc_b)
    async with running(a, b):
        connect(a, b)
        for value in range(50):
            answer = await rpc_a.call(b.peer, ADD, Number(value), timeout_s=5)
            assert answer == Number(value + 1)
        with pytest.raises(RemoteError, match="-1 is not here") as caught:
            await rpc_a.call(b.peer, ADD, Number(-1), timeout_s=5)
        assert caught.value.code == "not_found"
        data = bytes(range(256)) * 32 * 1024
        assert await rpc_a.call(b.peer, ECHO, Bulk(data), timeout_s=20) == Bulk(data)
        async with rpc_a.stream(b.peer, COUNT, timeout_s=5) as call:
            for value in range(50):
                await call.send(Number(value))
                assert await call.receive() == Number(value + 1)
        with pytest.raises(DeadlineExceeded):
            await rpc_a.call(b.peer, SLEEP, Number(1), timeout_s=0.2)
        with trio.move_on_after(0.2):
            await rpc_a.call(b.peer, SLEEP, Number(1), timeout_s=100)
        await eventually(lambda: server.cancelled == 2)
        await eventually(lambda: rpc_b.counters.active_in == 0)
        assert await rpc_a.call(b.peer, ADD, Number(1), timeout_s=5) == Number(2)
        assert a.connected() == [b.peer]  # the cancelled writes have cost no connection


async def test_many_calls_at_once_over_one_connection() -> None:
    a, b = make_host(), make_host()
    rpc_a, rpc_b = RpcService(a), RpcService(b)
    Server(rpc_b)
    answers = list[int]()

    async def ask(value: int) -> None:
        answers.append((await rpc_a.call(b.peer, ADD, Number(value), timeout_s=20)).value)

    async with running(a, b):
        connect(a, b)
        async with trio.open_nursery() as nursery:
            for value in range(100):
                nursery.start_soon(ask, value)
        assert sorted(answers) == list(range(1, 101))
        await eventually(lambda: rpc_b.counters.active_in == 0)


async def test_a_blob_over_tcp(tmp_path: Path) -> None:
    a, b = make_host(), make_host()
    rpc_a, rpc_b = RpcService(a), RpcService(b)
    blobs_a = BlobService(rpc_a, BlobStore(tmp_path / "a"))
    blobs_b = BlobService(rpc_b, BlobStore(tmp_path / "b"))
    async with running(a, b):
        connect(a, b)
        data = bytes(range(251)) * 40_000
        cid = await blobs_b.put_bytes(data)
        await blobs_a.fetch(cid, [b.peer])
        assert await blobs_a.read_bytes(cid) == data
