"""Real hosts on loopback, for the tests of this folder."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from node.host.gate import Limits
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.tickets import SwarmKey
from wire.ports import Stream

KEY = SwarmKey(b"k" * 32)
ANY_PORT = "/ip4/127.0.0.1/tcp/0"
PATIENCE_S = 5.0


def make_host(
    *,
    seed: bytes | None = None,
    key: SwarmKey | None = KEY,
    listen: str = ANY_PORT,
    limits: Limits | None = None,
) -> LibP2pHost:
    """A host that answers /echo, /count (how many bytes came) and /never (does not read)."""
    host = LibP2pHost(seed or secrets.token_bytes(32), key, [listen], limits=limits)
    host.serve("/echo", echo)
    host.serve("/count", count)
    host.serve("/never", never)
    return host


async def echo(stream: Stream) -> None:
    while data := await stream.read(65536):
        await stream.write(data)


async def count(stream: Stream) -> None:
    total = 0
    while data := await stream.read(1 << 20):
        total += len(data)
    await stream.write(total.to_bytes(8, "big"))


async def never(_stream: Stream) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def running(*hosts: LibP2pHost) -> AsyncIterator[None]:
    """Run hosts for the length of a block."""
    async with trio.open_nursery() as nursery:
        for host in hosts:
            await nursery.start(host.run)
        yield
        nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Wait for something that other tasks or processes bring about."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - other processes set no events of ours
            await trio.sleep(0.005)


async def exchange(stream: HostStream, message: bytes) -> None:
    """Send to /echo and check what comes back."""
    with trio.fail_after(PATIENCE_S):
        await stream.write(message)
        assert await stream.read_exactly(len(message)) == message


async def call(host: LibP2pHost, other: LibP2pHost, message: bytes = b"hello") -> None:
    """Check that a stream between two hosts works."""
    stream = await host.open(other.peer, "/echo", timeout_s=PATIENCE_S)
    await exchange(stream, message)
    await stream.finish()
