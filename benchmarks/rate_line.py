"""A line of limited rate: a TCP proxy that passes so many bytes a second towards who connects.

`python -m benchmarks.rate_line PORT MB_S` forwards to that port on loopback; its first line says
which port it listens on. It ends with its input.
"""

import sys

import trio

from benchmarks.orders import say

PIECE_BYTES = 16 * 1024  # 0.8 ms at 20 MB/s: smooth enough for a link
BURST_S = 0.01  # what may be caught up after the process did not run


async def _pass(source: trio.SocketStream, sink: trio.SocketStream, rate: float) -> None:
    """Pass bytes on until the end, at most `rate` a second (infinite: as they come)."""
    due = trio.current_time()
    async for piece in source:
        for start in range(0, len(piece), PIECE_BYTES):
            part = piece[start : start + PIECE_BYTES]
            await sink.send_all(part)
            due = max(due, trio.current_time() - BURST_S) + len(part) / rate
            await trio.sleep_until(due)
    await sink.send_eof()


async def _serve(port: int, rate: float, near: trio.SocketStream) -> None:
    far = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(_pass, near, far, float("inf"))
            nursery.start_soon(_pass, far, near, rate)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one side is gone, so is the other


async def main(port: int, mb_s: float) -> None:
    """Carry bytes until standard input ends."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def serve(stream: trio.SocketStream) -> None:
            await _serve(port, mb_s * 1e6, stream)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        say({"port": listeners[0].socket.getsockname()[1]})
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]))
