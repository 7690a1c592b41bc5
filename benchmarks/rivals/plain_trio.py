"""Plain TCP under trio as a child that answers orders: what a call costs without any protocol.

`python -m benchmarks.rivals.plain_trio`; its first line has the port of its echo.
"""

import time

import trio

from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey


class Node:
    """The orders, a method each."""

    def __init__(self) -> None:
        self._stream: trio.SocketStream | None = None

    async def connect(self, port: int) -> Answer:
        """Connect to the other node's echo."""
        self._stream = await trio.open_tcp_stream("127.0.0.1", port)
        return {}

    async def unary(self, size: int, calls: int) -> Answer:
        """Echoes one after the other; the time of each in ms."""
        assert self._stream is not None
        data, times = bytes(size), list[float]()
        for _ in range(calls):
            began = time.perf_counter()
            await self._stream.send_all(data)
            got = 0
            while got < size:
                got += len(await self._stream.receive_some(size))
            times.append((time.perf_counter() - began) * 1e3)
        return {"ms": times}


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def main() -> None:
    """Serve and obey until the input ends."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, _echo, listeners)
        say({"port": listeners[0].socket.getsockname()[1]})
        await obey(Node())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
