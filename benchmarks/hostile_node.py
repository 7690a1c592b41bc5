"""A member of a daemon's swarm as a child that answers orders: an honest caller, or an attacker.

`python -m benchmarks.hostile_node ADDRESS TICKET`. Attacks go on for as many seconds as the order
says, as fast as the daemon lets them.
"""

import os
import random
import socket
import sys
import time
from contextlib import suppress

import trio

from benchmarks.fuzz import TARGETS
from benchmarks.fuzz_messages import Target, mutate
from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from node.apps.wire import LIST, List
from node.finding import protocol_of
from node.host import yamux_frames
from node.host.addresses import parse_address
from node.host.service import LibP2pHost
from node.host.yamux import MuxedConnection
from node.tickets import parse_ticket
from protocols.rpc.service import RpcService
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Stream

CALL_S = 20.0
PAUSE_S = 0.001  # between two honest calls
LORIS = 100  # connections that say a byte at a time
LORIS_PAUSE_S = 0.2  # between two bytes: never silent for long
BATCH = 100  # streams opened in one go
LOADS = 100  # of garbage for each protocol, made once and thrown again and again
STREAM_FRAMES = 20  # of garbage on one stream, if the daemon bears them
BOMB_BYTES = 60_000  # nesting and sizes as large as a frame may be
PROTOCOLS = ("/shoal/rpc/1", "/meshsub/1.2.0", "/meshsub/1.1.0", "/ipfs/id/1.0.0", "/shoal/admit/1")
GARBAGE = ("rpc", "gossip", "blobs", "bulk", "admission")  # targets of `benchmarks.fuzz`
BOMBS = (
    b"\x91" * BOMB_BYTES,  # arrays in arrays
    b"\x81\xa1a" * (BOMB_BYTES // 3),  # maps in maps
    b"\xdd\xff\xff\xff\xff",  # an array of 4,294,967,295 items
    b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
    b"\xff\xff\xff\x7f" + bytes(100),  # a frame of 256 MiB
    b"\xff" * BOMB_BYTES,  # a varint that never ends
    b"\x1a\xff\xff\xff\x0f" * 1000,  # protobuf: 32 MiB in a field, again and again
    b"\x78\x9c" + bytes(BOMB_BYTES),  # what a decompressor would take
)


class Node:
    """The orders, a method each."""

    def __init__(self, address: str, ticket: str) -> None:
        seed = os.urandom(32)
        swarm = parse_ticket(ticket).key
        self.host = LibP2pHost(seed, swarm, [])
        self._protocols = (*PROTOCOLS, protocol_of(swarm))
        self.rpc = RpcService(self.host)
        self._address, self._peer = address, PeerId(address.rpartition("/")[2])

    async def calls(self, seconds: float) -> Answer:
        """Ask the daemon what every node asks, with pauses; the time of each call in ms."""
        await self.host.connect(self._address)
        times, end = list[float](), trio.current_time() + seconds
        while trio.current_time() < end:
            began = time.perf_counter()
            await self.rpc.call(self._peer, LIST, List(), timeout_s=CALL_S)
            times.append((time.perf_counter() - began) * 1e3)
            await trio.sleep(PAUSE_S)
        return {"ms": times}

    async def slow_loris(self, seconds: float) -> Answer:
        """Connections to the port that never get through their handshake."""
        count, at = 0, parse_address(self._address)
        links, end = list[socket.socket](), trio.current_time() + seconds
        while trio.current_time() < end:
            while len(links) < LORIS:
                link = socket.create_connection((at.host, at.port))
                link.setblocking(False)
                links.append(link)
                count += 1
            for link in list(links):
                try:
                    link.send(b"\x13")
                except OSError:  # thrown out: another takes its place
                    link.close()
                    links.remove(link)
            await trio.sleep(LORIS_PAUSE_S)
        for link in links:
            link.close()
        return {"done": count}

    async def half_open(self, seconds: float, count: int) -> Answer:
        """So many streams within the time that say nothing, and are never closed."""
        number = 0
        while number < count:
            muxed = await self._muxed()
            stream = 1_000_001
            while not muxed.is_closed and number < count:
                for _ in range(BATCH):
                    stream += 2
                    muxed.send_control(
                        yamux_frames.pack(yamux_frames.WINDOW_UPDATE, yamux_frames.SYN, stream, 0)
                    )
                number += BATCH
                await trio.sleep(seconds * BATCH / count)
        return {"done": number}

    async def bombs(self, seconds: float) -> Answer:
        """Nested and oversized messages on every protocol."""
        return await self._throw(seconds, [[bomb] * 2 for bomb in BOMBS])

    async def garbage(self, seconds: float, seed: int) -> Answer:
        """Mutated frames on every protocol."""
        random_ = random.Random(seed)
        made = list[Target]()
        for target in TARGETS:
            if target.__name__ in GARBAGE:
                made.append(target())
        loads = [
            [mutate(random_, random_.choice(target.frames)) for _ in range(STREAM_FRAMES)]
            for _ in range(LOADS)
            for target in made
        ]
        return await self._throw(seconds, loads)

    async def _throw(self, seconds: float, loads: list[list[bytes]]) -> Answer:
        """Give every load to a stream of its own, on every protocol in turn."""
        end, count = trio.current_time() + seconds, 0
        while trio.current_time() < end:
            protocol, load = (
                self._protocols[count % len(self._protocols)],
                loads[count % len(loads)],
            )
            count += 1
            with trio.move_on_after(CALL_S), suppress(ShoalError):
                await self.host.connect(self._address)
                stream = await self.host.open(self._peer, protocol, timeout_s=CALL_S)
                with suppress(ShoalError):
                    for frame in load:
                        await stream.write(frame)
                await _leave(stream)
        return {"done": count}

    async def _muxed(self) -> MuxedConnection:
        """Return the muxer under our connection: what no honest node reaches for."""
        with suppress(ShoalError):
            await self.host.connect(self._address)
        while not (found := self.host._peers.of(self._peer)):
            await trio.sleep(PAUSE_S)
            with suppress(ShoalError):
                await self.host.connect(self._address)
        return found[-1].muxed


async def _leave(stream: Stream) -> None:
    with suppress(ShoalError):
        await stream.reset()


async def main(address: str, ticket: str) -> None:
    """Obey until the input ends."""
    node = Node(address, ticket)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.host.run)
        await node.host.connect(address)
        say({"peer": node.host.peer})
        await obey(node)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
