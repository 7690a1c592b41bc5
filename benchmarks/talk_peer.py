"""The other end of `benchmarks.talk`: echoes calls and raw TCP, swallows streams.

Prints one line, its multiaddr and the port of the raw echo, then serves until its input ends.
"""

import os
import sys

import trio

from benchmarks.talk_methods import ECHO, SWALLOW, Blob
from node.host.service import LibP2pHost
from protocols.rpc.service import RpcService
from wire.ids import PeerId
from wire.ports import Call

LISTEN = ["/ip4/127.0.0.1/tcp/0"]


async def _echo(_peer: PeerId, message: Blob) -> Blob:
    return message


async def _swallow(call: Call[Blob, Blob]) -> None:
    count = 0
    async for message in call:
        count += len(message.data)
    await call.send(Blob(count.to_bytes(8, "big")))


async def _raw_echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def main() -> None:
    """Serve until standard input ends."""
    host = LibP2pHost(os.urandom(32), None, LISTEN)
    rpc = RpcService(host)
    rpc.serve(ECHO, _echo)
    rpc.serve_stream(SWALLOW, _swallow)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, _raw_echo, listeners)
        port = listeners[0].socket.getsockname()[1]
        sys.stdout.write(f"{host.addresses()[0]} {port}\n")
        sys.stdout.flush()
        await trio.lowlevel.wait_readable(0)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
