"""Listeners of a topic at many daemons, as a child that answers orders: one client each.

`python -m benchmarks.gossip_node HOME...`
"""

import sys
import time
from contextlib import aclosing

import trio

import shoal
from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from shoal.async_client import AsyncClient

POLL_S = 0.05
JOIN_S = 60.0


class Node:
    """The orders, a method each."""

    def __init__(self, homes: list[str], nursery: trio.Nursery) -> None:
        self._clients = [AsyncClient(shoal.connect(home).path) for home in homes]
        self._nursery = nursery
        self._news = trio.Event()
        self._arrived: list[tuple[int, int, float]] = []  # reader, number of the message, its ms

    async def listen(self, topic: str) -> Answer:
        """Listen at every daemon; returns once each has peers in the topic's mesh."""
        for number, client in enumerate(self._clients):
            self._nursery.start_soon(self._listen, number, client, topic)
        with trio.fail_after(JOIN_S):
            for client in self._clients:
                while not await _is_in_mesh(client, topic):  # noqa: ASYNC110 (a daemon knows)
                    await trio.sleep(POLL_S)
        return {}

    async def collect(self, count: int, seconds: float) -> Answer:
        """Wait until so many messages arrived at every listener, or for so long; then forget them.

        Returns the time of each on its way in ms, by the clocks of publisher and daemon.
        """
        wanted = count * len(self._clients)
        with trio.move_on_after(seconds):
            while len(self._arrived) < wanted:
                await self._news.wait()
                self._news = trio.Event()
        unique = {(reader, number): ms for reader, number, ms in self._arrived}
        repeated = len(self._arrived) - len(unique)
        self._arrived.clear()
        return {"wanted": wanted, "ms": list(unique.values()), "repeated": repeated}

    async def _listen(self, number: int, client: AsyncClient, topic: str) -> None:
        async with aclosing(client.subscribe(topic)) as messages:
            async for message in messages:
                sent_ms = int.from_bytes(message.data[:8], "big") / 1e3
                self._arrived.append((number, message.seqno, message.received_ms - sent_ms))
                self._news.set()


async def _is_in_mesh(client: AsyncClient, topic: str) -> bool:
    return any(one.mesh for one in await client.channels() if one.topic == topic)


def stamped(size: int) -> bytes:
    """Return a payload that begins with the time, in microseconds."""
    return (time.time_ns() // 1000).to_bytes(8, "big") + bytes(size - 8)


async def main(homes: list[str]) -> None:
    """Obey until the input ends."""
    async with trio.open_nursery() as nursery:
        say({})
        await obey(Node(homes, nursery))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
