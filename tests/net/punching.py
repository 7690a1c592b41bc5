"""Two hosts in the NAT lab that know each other through a stream that needs no network, and punch.

All in this process: a socket is made in the namespace of the host whose task makes it.
`python -m tests.net.punching [TRIALS [KIND KIND]]` prints what comes of each pair of router types.
"""

import contextlib
import secrets
import socket
import statistics
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import combinations_with_replacement, count
from typing import cast

import trio

from node.host.addresses import Address
from node.host.holes import Holes
from node.host.interfaces import interfaces
from node.host.listeners import connected
from node.host.service import LibP2pHost
from node.host.views import Path, PeerEvent, PeerUp, PeerView
from node.reach.puncher import Puncher
from node.tickets import SwarmKey
from tests.net.lab.lab import Lab, Site
from tests.net.lab.plan import Host
from tests.net.lab.rules import KINDS
from wire.ids import PeerId
from wire.ports import Stream, StreamServer

PORT = 4001
KEY = SwarmKey(b"k" * 32)
SEEN_S = 1.0  # for a public host to tell what it sees

_inside: ContextVar[Host] = ContextVar("inside")
_fresh_ports = count(7000)


class _Factory(trio.abc.SocketFactory):
    def socket(self, family: int = 2, type: int = 1, proto: int = 0) -> trio.socket.SocketType:  # noqa: A002
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
        send: trio.MemorySendChannel[tuple[float, bytes]],
        receive: trio.MemoryReceiveChannel[tuple[float, bytes]],
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
    delay_s: float

    def __post_init__(self) -> None:
        self.machine = self.lab.hosts[self.name]
        self.host = LibP2pHost(secrets.token_bytes(32), KEY, [f"/ip4/0.0.0.0/tcp/{PORT}"])
        self.holes: Holes = _HolesInside(self.host.holes, self.machine)
        self.peer = self.host.peer
        self.other: Node | None = None
        self.is_dialled = False
        self.server: StreamServer | None = None
        self.nursery: trio.Nursery | None = None
        self.steps: list[int] = []
        self.observed: list[Address] = []

    def serve(self, protocol: str, server: StreamServer) -> None:
        self.server = server

    async def open(
        self, peer: PeerId, protocol: str, *, timeout_s: float, path: Path | None = None
    ) -> Stream:
        assert self.other is not None and self.other.nursery is not None
        there, here = trio.open_memory_channel[tuple[float, bytes]](9), trio.open_memory_channel[tuple[float, bytes]](9)
        server = self.other.server
        assert server is not None
        pipe = cast(Stream, _Pipe(self.peer, here[0], there[1], self.delay_s))
        self.other.nursery.start_soon(server, pipe)
        return cast(Stream, _Pipe(peer, there[0], here[1], self.delay_s))

    def peers(self) -> list[PeerView]:
        views = self.host.peers()
        if not views and self.other is not None:
            way = "in" if self.is_dialled else "out"
            views = [PeerView(self.other.peer, "", way, "relayed", None, 0, 0, 0.0, 1)]
        return views

    def rtt_s(self, peer: PeerId) -> float | None:
        return 2 * self.delay_s

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
        self.steps = [b.port - a.port for a, b in zip(found, found[1:], strict=False)]
        self.observed = found[:1]  # a symmetric one, too: the peer must send there to let us in

    def candidates(self) -> list[Address]:
        return [Address("ip4", self.machine.ip, PORT), *self.observed]

    async def predicted(self, count: int) -> list[Address]:
        if not all(0 < step < 10 for step in self.steps):
            return []
        now = await self.seen()
        return [Address("ip4", now.host, now.port + i) for i in range(1, count + 1)]

    async def run(self, *, task_status: trio.TaskStatus[Puncher]) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            with inside(self.machine):
                await nursery.start(self.host.run)
                await self.look()
                puncher = Puncher(
                    self,
                    self.candidates,
                    self.predicted,
                    own_interfaces=lambda: self.machine.call(interfaces),
                )
                task_status.started(puncher)
                await trio.sleep_forever()


@contextlib.asynccontextmanager
async def two(lab: Lab, dialler: str, dialled: str, delay_s: float) -> AsyncGenerator[tuple[Node, Node]]:  # noqa: E501
    """Run two nodes; the one that was dialled is the DCUtR's initiator."""
    trio.socket.set_custom_socket_factory(_Factory())
    a, b = Node(lab, dialler, delay_s), Node(lab, dialled, delay_s)
    b.is_dialled = True
    try:
        async with trio.open_nursery() as nursery:
            punchers = [await nursery.start(node.run) for node in (a, b)]
            a.other, b.other = b, a
            for node, puncher in zip((a, b), punchers, strict=True):
                with inside(node.machine):
                    await nursery.start(puncher.run)
            yield a, b
            nursery.cancel_scope.cancel()
    finally:
        trio.socket.set_custom_socket_factory(None)


async def time_to_direct(lab: Lab, dialler: str, dialled: str, delay_s: float, within_s: float) -> float | None:  # noqa: E501
    """Return the seconds until both sides hold a direct connection; None if they do not."""
    async with two(lab, dialler, dialled, delay_s) as (a, b):
        began = trio.current_time()
        with trio.move_on_after(within_s):
            for node in (a, b):
                async for _ in node.host.watch():
                    break
            return trio.current_time() - began
    return None


def main() -> None:
    """Print a line for each pair."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    kinds = sys.argv[2:4]
    pairs = [cast("tuple[str, str]", tuple(kinds))] if kinds else list(combinations_with_replacement(KINDS, 2))  # noqa: E501
    inbound = sys.argv[4] if len(sys.argv) > 4 else "drop"
    every: list[float] = []
    direct = 0
    plan = [Site(f"{kind}-{side}", kind, delay_ms=10, inbound=inbound) for kind in KINDS for side in "ab"]  # type: ignore[arg-type]  # noqa: E501
    with Lab(plan) as lab:
        for one, other in pairs:
            times: list[float] = []
            for trial in range(trials):
                names = [f"{one}-a1", f"{other}-b1"]
                names = names[::-1] if trial % 2 else names
                took = trio.run(time_to_direct, lab, *names, 0.02, 4.0)
                times += [] if took is None else [took]
            direct += bool(times)
            every += times
            shown = " ".join(f"{took:.2f}" for took in times)
            print(f"{one:14} {other:14} {len(times)}/{trials}  {shown}", flush=True)
    print(f"direct: {direct} of {len(pairs)} pairs")
    if len(every) > 1:
        cuts = statistics.quantiles(every, n=20)
        print(f"median {statistics.median(every):.2f} s, p95 {cuts[-1]:.2f} s")


if __name__ == "__main__":
    main()
