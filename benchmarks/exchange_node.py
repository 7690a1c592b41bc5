"""The data plane of model sync as a child that answers orders: host, RPC, bulk, exchanges.

`python -m benchmarks.exchange_node` prints its address and peer ID. There is no control plane here:
the parent names the members and the round, so what is timed is the data of an attempt.
"""

import os
import resource
import time
import zlib

import numpy as np
import trio

from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from node.host.service import LibP2pHost
from protocols.bulk.service import BulkService
from protocols.modelsync.aggregate import aggregator_named
from protocols.modelsync.exchange import Exchange, open_exchange
from protocols.modelsync.memory import Memory
from protocols.modelsync.news import Complete, Fault
from protocols.modelsync.shards import weighted_shards
from protocols.modelsync.wire import REDUCE, Ballot, Piece, Prepare
from protocols.modelsync.work import in_threads
from protocols.rpc.service import RpcService
from wire.ids import PeerId
from wire.ports import Call

LISTEN = "/ip4/127.0.0.1/tcp/0"
ROUND_S = 60.0


class Node:
    """The orders, a method each."""

    def __init__(self) -> None:
        self.host = LibP2pHost(os.urandom(32), None, [LISTEN])
        self.rpc = RpcService(self.host)
        self.rpc.serve_stream(REDUCE, self._serve)
        self.bulk = BulkService(self.rpc, self.host.lanes)
        self._work = in_threads()
        self._vector = np.zeros(1, dtype=np.float32)
        self._exchanges: dict[Ballot, Exchange] = {}
        self._memory = Memory()
        self._opened = trio.Event()

    async def connect(self, addresses: list[str]) -> Answer:
        """Connect to other nodes."""
        for address in addresses:
            await self.host.connect(address)
        return {}

    async def fill(self, elements: int, seed: int) -> Answer:
        """Make the contribution."""
        rng = np.random.default_rng(seed)
        self._vector = rng.standard_normal(elements, dtype=np.float32)
        return {"rss_mb": _rss_mb()}

    async def average(
        self, number: int, members: list[PeerId], codec: str, aggregator: str
    ) -> Answer:
        """One exchange, from its opening to the mean in its place."""
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.time()
        count, elements = len(members), len(self._vector)
        prepare = Prepare(
            run="bench",
            round=number,
            attempt=0,
            proposer=members[0],
            members=members,
            weights=[1.0] * count,
            shards=weighted_shards(elements, [0] * count, [True] * count),
            codec=codec,
            base_root=bytes(32),
            elements=elements,
        )
        send, news = trio.open_memory_channel[Complete | Fault](64)
        exchange = open_exchange(
            prepare,
            rpc=self.rpc,
            bulk=self.bulk,
            contribution=self._vector,
            work=self._work,
            news=send.send_nowait,
            aggregator=aggregator_named(aggregator),
            memory=self._memory,
        )
        self._exchanges[prepare.ballot] = exchange
        self._opened.set()
        self._opened = trio.Event()
        with trio.fail_after(ROUND_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange.run)
                event = await news.receive()
                if isinstance(event, Fault):
                    raise RuntimeError(str(event))
                complete = time.time()
                await self._work(lambda: exchange.take(self._vector, None))
                ended = time.time()
        exchange.close()
        del self._exchanges[prepare.ballot]
        spent = resource.getrusage(resource.RUSAGE_SELF)
        digest = str(zlib.crc32(self._vector.data))
        return {
            "began": began,
            "complete": complete,
            "ended": ended,
            "digest": digest,
            "bytes_out": exchange.bytes_out,
            "rate": exchange.rate,
            "peak_mb": _rss_mb(),
            "user_s": spent.ru_utime - before.ru_utime,
            "system_s": spent.ru_stime - before.ru_stime,
        }

    async def _serve(self, call: Call[Piece, Piece]) -> None:
        first = await call.receive()
        with trio.fail_after(ROUND_S):
            while first.ballot not in self._exchanges:
                await self._opened.wait()
        await self._exchanges[first.ballot].serve(call, first)


def _rss_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def main() -> None:
    """Serve and obey until the input ends."""
    node = Node()
    async with trio.open_nursery() as nursery:
        await nursery.start(node.host.run)
        await nursery.start(node.bulk.run)
        say({"address": node.host.addresses()[0], "peer": node.host.peer})
        await obey(node)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
