"""Two hosts in the NAT lab that know each other through a stream that needs no network, and punch.

All in this process: a socket is made in the namespace of the host whose task makes it.
`python -m tests.net.punching [--trials N] [--inbound reject] [KIND KIND]` prints how often each
pair of router types becomes direct, and in how many seconds: the time of the punch alone. What
daemons make of it is `tests.net.matrix`.
"""

import argparse
import contextlib
import secrets
import socket
import statistics
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement, count, pairwise
from typing import cast

import trio

from node.host.addresses import Address
from node.host.holes import Holes
from node.host.interfaces import interfaces
from node.host.listeners import connected
from node.host.service import LibP2pHost
from node.host.views import Direction, Path, PeerEvent, PeerUp, PeerView
from node.reach.puncher import Puncher
from node.tickets import SwarmKey
from tests.net.lab.lab import Lab, Site
from tests.net.lab.plan import Host
from tests.net.lab.rules import KINDS
from wire.ids import PeerId
from wire.ports import Stream, StreamServer

PORT = 4001
LISTEN = [f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip6/::/tcp/{PORT}"]
KEY = SwarmKey(b"k" * 32)
DELAY_MS = 10.0  # one way, of each site's line
ONE_WAY_S = 2 * DELAY_MS / 1000  # of the stream between the two
WITHIN_S = 12.0  # three tries and the pauses between

_Letter = tuple[float, bytes]  # when it arrives, and what

_inside: ContextVar[Host] = ContextVar("inside")
_fresh_ports = count(7000)


class _Factory(trio.abc.SocketFactory):
    def socket(self, family: int = 2, type: int = 1, proto: int = 0) -> trio.socket.SocketType:
        made = _inside.get().call(lambda: socket.socket(family, type, proto))
        return trio.socket.from_stdlib_socket(made)


@contextlib.contextmanager
def inside(host: Host) -> Generator[None]:
    """What the block and the tasks that it starts open, they open in this host."""
    token = _inside.set(host)
    try:
        yield
    finally:
        _inside.reset(token)


class _HolesInside(Holes):
    def __init__(self, holes: Holes, host: Host) -> None:
        self.__dict__.update(holes.__dict__)
        self._host = host

    def connect(self, remote: Address, *, port: int | None = None) -> socket.socket:
        return self._host.call(lambda: super(_HolesInside, self).connect(remote, port=port))


class _Pipe:
    """One end of the stream that stands for a relayed one; what is written arrives later."""

    def __init__(
        self,
        peer: PeerId,
        send: trio.MemorySendChannel[_Letter],
        receive: trio.MemoryReceiveChannel[_Letter],
        delay_s: float,
    ) -> None:
        self.peer, self._send, self._receive, self._delay_s = peer, send, receive, delay_s
        self._data = b""

    async def read(self, max_bytes: int) -> bytes:
        if not self._data:
            due, self._data = await self._receive.receive()
            await trio.sleep_until(due)
        data, self._data = self._data[:max_bytes], self._data[max_bytes:]
        return data

    async def write(self, data: bytes) -> None:
        await self._send.send((trio.current_time() + self._delay_s, data))

    def drop(self) -> None:
        return


@dataclass
class Node:
    """A host of ours in a host of the lab. Its `peers` are as if a relayed connection stood."""

    lab: Lab
    name: str
    one_way_s: float
    is_dialled: bool = False

    def __post_init__(self) -> None:
        self.machine = self.lab.hosts[self.name]
        self.host = LibP2pHost(secrets.token_bytes(32), KEY, LISTEN)
        self.holes: Holes = _HolesInside(self.host.holes, self.machine)
        self.peer = self.host.peer
        self.other: Node | None = None
        self.begin = trio.Event()
        self.server: StreamServer | None = None
        self.nursery: trio.Nursery | None = None
        self.steps: list[int] = []
        self.observed: list[Address] = []
        self.mapped: list[Address] = []

    def serve(self, protocol: str, server: StreamServer) -> None:
        self.server = server

    async def open(
        self, peer: PeerId, protocol: str, *, timeout_s: float, path: Path | None = None
    ) -> Stream:
        assert self.other is not None
        assert self.other.nursery is not None
        there = trio.open_memory_channel[_Letter](9)
        here = trio.open_memory_channel[_Letter](9)
        server = self.other.server
        assert server is not None
        pipe = cast(Stream, _Pipe(self.peer, here[0], there[1], self.one_way_s))
        self.other.nursery.start_soon(server, pipe)
        return cast(Stream, _Pipe(peer, there[0], here[1], self.one_way_s))

    def peers(self) -> list[PeerView]:
        views = self.host.peers()
        if not views and self.other is not None:
            way: Direction = "in" if self.is_dialled else "out"
            views = [PeerView(self.other.peer, "", way, "relayed", None, 0, 0, 0.0, 1)]
        return views

    def rtt_s(self, peer: PeerId) -> float | None:
        return 2 * self.one_way_s

    async def watch(self) -> AsyncIterator[PeerEvent]:
        assert self.other is not None
        yield PeerUp(self.other.peer)
        async for event in self.host.watch():
            yield event

    async def seen(self) -> Address:
        """Return what a public host sees of a new connection from our listening port."""
        public, port = self.lab.hosts["pub1"], next(_fresh_ports)
        with public.call(lambda: socket.create_server((public.ip, port))) as server:
            stream = await connected(self.holes.connect(Address("ip4", public.ip, port)))
            accepted, name = server.accept()
            accepted.close()
            await stream.aclose()
        return Address("ip4", str(name[0]), int(name[1]))

    async def look(self) -> None:
        """Find out how the router maps, as the probe does."""
        found = [await self.seen() for _ in range(3)]
        self.steps = [b.port - a.port for a, b in pairwise(found)]
        self.observed = found[:1]  # a symmetric one, too: the peer must send there to let us in

    def candidates(self) -> list[Address]:
        hosts = [("ip4", self.machine.ip), ("ip6", self.machine.ipv6)]
        own = [Address(network, host, PORT) for network, host in hosts if host]
        return [*own, *self.mapped, *self.observed]

    async def predicted(self, count: int) -> list[Address]:
        if not all(0 < step < 10 for step in self.steps):
            return []
        now = await self.seen()
        return [Address("ip4", now.host, now.port + i) for i in range(1, count + 1)]

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            with inside(self.machine):
                await nursery.start(self.host.run)
                await self.look()
                own = partial(self.machine.call, interfaces)
                puncher = Puncher(self, self.candidates, self.predicted, own_interfaces=own)
                task_status.started()
                await self.begin.wait()
                await puncher.run()


@contextlib.asynccontextmanager
async def two(
    lab: Lab, dialler: str, dialled: str, one_way_s: float = ONE_WAY_S
) -> AsyncGenerator[tuple[Node, Node]]:
    """Run two nodes that do not punch yet; who was dialled is the DCUtR's initiator."""
    trio.socket.set_custom_socket_factory(_Factory())
    a, b = Node(lab, dialler, one_way_s), Node(lab, dialled, one_way_s, is_dialled=True)
    a.other, b.other = b, a
    try:
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await nursery.start(node.run)
            yield a, b
            nursery.cancel_scope.cancel()
    finally:
        trio.socket.set_custom_socket_factory(None)


async def punch(a: Node, b: Node, *, within_s: float = WITHIN_S) -> float | None:
    """Return the seconds until both sides hold a direct connection; None if they do not."""
    began = trio.current_time()
    for node in (a, b):
        node.begin.set()
    with trio.move_on_after(within_s):
        for node in (a, b):
            async for _ in node.host.watch():
                break
        return trio.current_time() - began
    return None


async def time_to_direct(
    lab: Lab, dialler: str, dialled: str, one_way_s: float = ONE_WAY_S
) -> float | None:
    """Run two nodes for one punch."""
    async with two(lab, dialler, dialled, one_way_s) as (a, b):
        return await punch(a, b)


def main() -> None:
    """Print a line for each pair."""
    parser = argparse.ArgumentParser(prog="python -m tests.net.punching")
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--inbound", choices=("drop", "reject"), default="drop")
    parser.add_argument("--delay-ms", type=float, default=DELAY_MS, help="one way, of each site")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets, of each site")
    asked = parser.parse_args()
    pairs = [tuple(asked.kinds)] if asked.kinds else list(combinations_with_replacement(KINDS, 2))
    sites = [(kind, side) for kind in KINDS for side in "ab"]
    line = {"delay_ms": asked.delay_ms, "loss": asked.loss, "inbound": asked.inbound}
    plan = [Site(f"{kind}-{side}", kind, **line) for kind, side in sites]
    every: list[float] = []
    direct = 0
    with Lab(plan) as lab:
        for one, other in pairs:
            times: list[float] = []
            for trial in range(asked.trials):
                a, b = f"{one}-a1", f"{other}-b1"
                a, b = (b, a) if trial % 2 else (a, b)
                took = trio.run(partial(time_to_direct, lab, a, b, asked.delay_ms / 500))
                times += [] if took is None else [took]
            direct += bool(times)
            every += times
            shown = " ".join(f"{took:.2f}" for took in times)
            print(f"{one:14} {other:14} {len(times)}/{asked.trials}  {shown}", flush=True)
    print(f"direct: {direct} of {len(pairs)} pairs")
    if len(every) > 1:
        p95 = statistics.quantiles(every, n=20)[-1]
        print(f"median {statistics.median(every):.2f} s, p95 {p95:.2f} s")


if __name__ == "__main__":
    main()
