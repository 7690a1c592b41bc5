"""Second connections between hosts, and wires between them that freeze, for the tests here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from node.host.addresses import parse_address
from node.host.connection import Connection
from node.host.service import LibP2pHost
from node.host.tcp import CountedTcp


async def join_directly(a: LibP2pHost, b: LibP2pHost, *, is_punched: bool = False) -> Connection:
    """Let `a` make one more connection to `b`, a direct one, and wait until both have it."""
    address = parse_address(b.addresses()[0])
    stream = await trio.open_tcp_stream(address.host, address.port)
    carrier = CountedTcp(stream, a._swarm.traffic, is_punched=is_punched)
    muxed = await a._swarm.secure(carrier, b.peer)
    place = a._swarm.gate.enter(None)
    assert place is not None
    connection = await a._swarm.adopt(muxed, carrier, place)
    await connection.settled.wait()
    assert connection.is_admitted
    return connection


class Wire:
    """A TCP forwarder on loopback: `address` leads to a host, until it is frozen."""

    def __init__(self, to: LibP2pHost) -> None:
        self._to, self._is_frozen = to, False
        self.address = ""

    def freeze(self) -> None:
        """Let nothing through any more, and tell nobody."""
        self._is_frozen = True

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Forward until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        self.address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{self._to.peer}"
        async with trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, near: trio.SocketStream) -> None:
        address = parse_address(self._to.addresses()[0])
        far = await trio.open_tcp_stream(address.host, address.port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, near, far, nursery.cancel_scope)
            nursery.start_soon(self._copy, far, near, nursery.cancel_scope)

    async def _copy(
        self, one: trio.SocketStream, other: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await one.receive_some(65536):
                if self._is_frozen:
                    await trio.sleep_forever()
                await other.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def wire(to: LibP2pHost) -> AsyncIterator[Wire]:
    """Run a wire for the length of a block."""
    async with trio.open_nursery() as nursery:
        found = Wire(to)
        await nursery.start(found.run)
        yield found
        nursery.cancel_scope.cancel()
