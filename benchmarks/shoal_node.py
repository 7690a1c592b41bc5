"""Shoal as a child that answers orders: one host with RPC, server and client at once.

`python -m benchmarks.shoal_node [MULTIADDR]`; its first line has its address and its peer ID.
"""

import os
import sys
import time
from functools import partial

import trio

from benchmarks.methods import ECHO, FETCH, RECEIVE, SWALLOW, SWALLOW_STREAM, Blob, Size
from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from node.host.service import LibP2pHost
from protocols.bulk.service import BulkService
from protocols.rpc.service import RpcService
from wire.ids import PeerId
from wire.ports import Call

LISTEN = "/ip4/127.0.0.1/tcp/0"
TIMEOUT_S = 60.0
KEY = b"bench"
PAUSE_S = 0.001  # between two calls beside a transfer
MB = 1e6


class Node:
    """The orders, a method each."""

    def __init__(self, listen: str) -> None:
        self.host = LibP2pHost(os.urandom(32), None, [listen])
        self.rpc = RpcService(self.host)
        self.rpc.serve(ECHO, self._echo)
        self.rpc.serve(SWALLOW, self._swallow)
        self.rpc.serve(FETCH, self._fetch)
        self.rpc.serve_stream(SWALLOW_STREAM, self._swallow_stream)
        self.rpc.serve(RECEIVE, self._receive)
        self.bulk_service = BulkService(self.rpc, self.host.lanes)
        self.peer = self.host.peer
        self._buffer = bytearray()
        self._bodies: dict[int, Blob] = {}

    async def connect(self, address: str) -> Answer:
        """Connect to the node that all other orders are about."""
        self.peer = await self.host.connect(address)
        await self.rpc.call(self.peer, ECHO, Blob(b""), timeout_s=TIMEOUT_S)
        return {}

    async def first_call(self, address: str) -> Answer:
        """From a fresh host to the answer of its first call to a peer that it never saw."""
        host = LibP2pHost(os.urandom(32), None, [])
        rpc = RpcService(host)
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            began = time.perf_counter()
            peer = await host.connect(address)
            await rpc.call(peer, ECHO, Blob(b""), timeout_s=TIMEOUT_S)
            took_s = time.perf_counter() - began
            nursery.cancel_scope.cancel()
        return {"ms": took_s * 1e3}

    async def unary(self, size: int, calls: int) -> Answer:
        """Echoes one after the other; the time of each in ms."""
        message, times = Blob(bytes(size)), list[float]()
        for _ in range(calls):
            began = time.perf_counter()
            await self.rpc.call(self.peer, ECHO, message, timeout_s=TIMEOUT_S)
            times.append((time.perf_counter() - began) * 1e3)
        return {"ms": times}

    async def unary_until(self, done: trio.Event) -> Answer:
        """16 B echoes, with pauses, until it is done; the time of each in ms."""
        message, times = Blob(bytes(16)), list[float]()
        while not done.is_set():
            began = time.perf_counter()
            await self.rpc.call(self.peer, ECHO, message, timeout_s=TIMEOUT_S)
            times.append((time.perf_counter() - began) * 1e3)
            await trio.sleep(PAUSE_S)
        return {"ms": times}

    async def rate(self, size: int, calls: int, at_once: int) -> Answer:
        """Requests of `size` bytes, `at_once` in flight, answered in a few bytes."""
        message, left = Blob(bytes(size)), calls

        async def some() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.rpc.call(self.peer, SWALLOW, message, timeout_s=TIMEOUT_S)

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(some)
        return _rates(time.perf_counter() - began, size, calls)

    async def up(self, size: int, calls: int) -> Answer:
        """One streaming call that takes `calls` messages of `size` bytes up."""
        message, began = Blob(bytes(size)), time.perf_counter()
        async with self.rpc.stream(self.peer, SWALLOW_STREAM, timeout_s=TIMEOUT_S) as call:
            for _ in range(calls):
                await call.send(message)
            await call.finish()
            assert (await call.receive()).size == size * calls
        return _rates(time.perf_counter() - began, size, calls)

    async def down(self, size: int, calls: int) -> Answer:
        """Answers of `size` bytes, one after the other."""
        wish, began = Size(size), time.perf_counter()
        for _ in range(calls):
            got = await self.rpc.call(self.peer, FETCH, wish, timeout_s=TIMEOUT_S)
            assert len(got.data) == size
        return _rates(time.perf_counter() - began, size, calls)

    async def prepare(self, size: int) -> Answer:
        """Make the buffer that bulk transfers fill or send."""
        self._buffer = bytearray(b"x") * size
        return {}

    async def bulk(self, size: int) -> Answer:
        """Send the buffer to the other node's, as two daemons do it."""
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            wish = partial(self.rpc.call, self.peer, RECEIVE, Size(size), timeout_s=TIMEOUT_S)
            nursery.start_soon(wish)
            await self.bulk_service.send(self.peer, KEY, memoryview(self._buffer)[:size])
        return _rates(time.perf_counter() - began, size, 1)

    async def bulk_beside_calls(self, size: int) -> Answer:
        """The same, while 16 B calls go to the same peer: their times in ms, too."""
        calls = Answer()
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                calls.update(await self.unary_until(done))

            done = trio.Event()
            nursery.start_soon(call)
            answer = await self.bulk(size)
            done.set()
        return {**answer, **calls}

    async def _echo(self, _peer: PeerId, message: Blob) -> Blob:
        return message

    async def _swallow(self, _peer: PeerId, message: Blob) -> Size:
        return Size(len(message.data))

    async def _receive(self, peer: PeerId, wish: Size) -> Size:
        buffer = memoryview(self._buffer)[: wish.size]
        return Size(await self.bulk_service.receive_into(peer, KEY, buffer))

    async def _fetch(self, _peer: PeerId, wish: Size) -> Blob:
        if wish.size not in self._bodies:
            self._bodies[wish.size] = Blob(bytes(wish.size))
        return self._bodies[wish.size]

    async def _swallow_stream(self, call: Call[Size, Blob]) -> None:
        count = 0
        async for message in call:
            count += len(message.data)
        await call.send(Size(count))


def _rates(took_s: float, size: int, calls: int) -> Answer:
    return {"per_s": calls / took_s, "mb_s": calls * size / MB / took_s}


async def main(listen: str) -> None:
    """Serve and obey until the input ends."""
    node = Node(listen)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.host.run)
        await nursery.start(node.bulk_service.run)
        say({"address": node.host.addresses()[0], "peer": node.host.peer})
        await obey(node)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else LISTEN)
