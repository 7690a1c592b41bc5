"""A member of a swarm inside the NAT lab as a child that answers orders: it dials through relays,
or attacks one.

`python -m benchmarks.reach_node TICKET`.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from node.apps.wire import LIST, List
from node.host import yamux_frames
from node.host.negotiate import HELLO
from node.host.service import LibP2pHost
from node.host.yamux import MuxedConnection
from node.reach.circuit import CircuitClient
from node.reach.messages import HOP, Reserve, pack_hop
from node.tickets import SwarmKey, parse_ticket
from protocols.rpc.service import RpcService
from wire.errors import ShoalError
from wire.frames import pack
from wire.ids import PeerId

CALL_S = 20.0
PINGS = 8  # calls whose least time is the round trip
SETTLE_S = 0.5  # after a connection to the relay: identify and the like are over
TICK_S = 0.02  # between two bursts of a flood
FIRST_STREAM = 2_000_001  # yamux ids that nobody else uses
GARBAGE_MAX = 2_000  # bytes of one message


class Member:
    """One host with what it asks of others."""

    def __init__(self, key: SwarmKey | None) -> None:
        seed = os.urandom(32)
        self.host = LibP2pHost(seed, key, [])
        self.rpc = RpcService(self.host)
        self.circuits = CircuitClient(self.host, is_closed=key is not None)

    async def ping(self, peer: PeerId) -> float:
        """Make a call that every daemon answers; the seconds it took."""
        began = time.perf_counter()
        await self.rpc.call(peer, LIST, List(), timeout_s=CALL_S)
        return time.perf_counter() - began


class Node:
    """The orders, a method each."""

    def __init__(self, ticket: str) -> None:
        self._key = parse_ticket(ticket).key
        self._member = Member(self._key)

    @property
    def host(self) -> LibP2pHost:
        """The host of all orders but `first_calls`, which makes its own."""
        return self._member.host

    async def first_calls(self, relay: str, target: str, count: int) -> Answer:
        """From a fresh host that knows the relay to the first answer of a peer behind it, in ms;
        with the round trip of the calls after it.
        """
        first, rtt = list[float](), list[float]()
        for _ in range(count):
            member = Member(self._key)
            async with trio.open_nursery() as nursery:
                await nursery.start(member.rpc.run)
                await nursery.start(member.host.run)
                await member.host.connect(relay)
                await trio.sleep(SETTLE_S)
                began = time.perf_counter()
                peer = await member.host.connect(target)
                await member.ping(peer)
                first.append((time.perf_counter() - began) * 1e3)
                rtt.append(min([await member.ping(peer) for _ in range(PINGS)]) * 1e3)
                nursery.cancel_scope.cancel()
        return {"ms": first, "rtt_ms": rtt}

    async def calls(self, relay: str, seconds: float) -> Answer:
        """Reserve and call the relay, one after the other; times in ms, and refusals."""
        peer = await self.host.connect(relay)
        times, refused, end = list[float](), 0, trio.current_time() + seconds
        while trio.current_time() < end:
            times.append(await self._member.ping(peer) * 1e3)
            try:
                await self._member.circuits.reserve(peer)
            except ShoalError:
                refused += 1
            await trio.sleep(0.15)  # fewer than 8 a second
        return {"ms": times, "refused": refused}

    async def flood(self, relay: str, seconds: float, per_s: int) -> Answer:
        """So many requests for a reservation a second, none of whose answers is awaited."""
        load = _proposal() + pack_hop(Reserve())
        return await self._throw(relay, seconds, per_s, lambda: load)

    async def garbage(self, relay: str, seconds: float, per_s: int, seed: int) -> Answer:
        """So many messages a second that are none, or not what belongs there."""
        random_ = random.Random(seed)

        def load() -> bytes:
            size = random_.randrange(1, GARBAGE_MAX)
            body = random_.randbytes(size)
            made = bytearray(pack(body) if random_.random() < 0.5 else pack_hop(Reserve()) + body)
            made[random_.randrange(len(made))] ^= 1 << random_.randrange(8)
            return _proposal() + made

        return await self._throw(relay, seconds, per_s, load)

    async def _throw(
        self, relay: str, seconds: float, per_s: int, load: Callable[[], bytes]
    ) -> Answer:
        began, sent, stream = trio.current_time(), 0, FIRST_STREAM
        muxed = await self._muxed(relay)
        connections = 1
        while (spent := trio.current_time() - began) < seconds:
            if muxed.is_closed:
                muxed, connections = await self._muxed(relay), connections + 1
                stream = FIRST_STREAM
            while sent < spent * per_s and not muxed.is_closed:
                data = load()
                head = yamux_frames.pack(
                    yamux_frames.DATA, yamux_frames.SYN | yamux_frames.FIN, stream, len(data)
                )
                muxed.send_control(head + data)
                stream += 2
                sent += 1
            await trio.sleep(TICK_S)
        return {"per_s": sent / seconds, "connections": connections}

    async def _muxed(self, relay: str) -> MuxedConnection:
        """Return the muxer under our connection: what no honest node reaches for."""
        peer = PeerId(relay.rpartition("/")[2])
        while True:
            with suppress(ShoalError):
                await self.host.connect(relay)
            open_ = [one.muxed for one in self.host._peers.of(peer) if not one.muxed.is_closed]
            if open_:
                return open_[-1]
            await trio.sleep(TICK_S)


def _proposal() -> bytes:
    return b"".join(bytes((len(text) + 1,)) + text.encode() + b"\n" for text in (HELLO, HOP))


async def main(ticket: str) -> None:
    """Obey until the input ends."""
    node = Node(ticket)
    async with trio.open_nursery() as nursery:
        await nursery.start(node._member.rpc.run)
        await nursery.start(node.host.run)
        say({"peer": node.host.peer})
        await obey(node)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
