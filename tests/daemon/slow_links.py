"""A TCP proxy that counts one-way trips: it holds what comes until both ends have nothing more to
say, and then lets all of it through, both ways at once.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from node.host.addresses import Address, parse_address

QUIET_S = 0.1  # nothing came for so long: both ends wait for each other


class SlowLink:
    """One proxy. `trips` is how often both ends waited; two are a round trip."""

    def __init__(self, address: str) -> None:
        self.trips = 0
        self._target = parse_address(address)
        self._held: list[tuple[trio.SocketStream, bytes]] = []
        self._news = trio.Event()
        self.address = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(
                trio.serve_tcp, self._proxy, 0
            )
            port = listeners[0].socket.getsockname()[1]
            self.address = str(Address("ip4", "127.0.0.1", port, self._target.peer))
            task_status.started()
            while True:
                await self._news.wait()
                self._news = trio.Event()
                with trio.move_on_after(QUIET_S) as quiet:
                    await self._news.wait()
                if quiet.cancelled_caught:
                    await self._let_through()

    async def _let_through(self) -> None:
        held, self._held = self._held, []
        self.trips += 1
        for target, data in held:
            await target.send_all(data)

    async def _proxy(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream(self._target.host, self._target.port)
            async with far, trio.open_nursery() as nursery:
                nursery.start_soon(self._hold, near, far)
                nursery.start_soon(self._hold, far, near)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _hold(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            self._held.append((target, bytes(data)))
            self._news.set()
        await target.aclose()


@asynccontextmanager
async def slow_link(address: str) -> AsyncGenerator[SlowLink]:
    """Run a proxy to `address` for the length of a block."""
    link = SlowLink(address)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()
