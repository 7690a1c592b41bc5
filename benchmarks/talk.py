"""How fast peers talk: two hosts in two processes on loopback, beside plain TCP in the same run.

`python -m benchmarks.talk` prints one JSON object a line. QUICK=1 takes fewer samples.
"""

import os
import subprocess
import sys
import time

import trio

from benchmarks.report import report
from benchmarks.talk_methods import ECHO, SWALLOW, Blob
from node.host.service import LibP2pHost
from protocols.rpc.service import RpcService
from wire.ids import PeerId

QUICK = os.environ.get("QUICK") == "1"
ROUNDS = 5
CALLS = 100 if QUICK else 400
STREAM_MB = 32 if QUICK else 128
TIMEOUT_S = 30.0


async def _calls(rpc: RpcService, peer: PeerId, raw: trio.SocketStream) -> None:
    """Round trips of 64 bytes: ours and plain TCP's in turn."""
    ours, plain = list[float](), list[float]()
    message = Blob(bytes(64))
    for _ in range(CALLS):
        began = time.perf_counter()
        await rpc.call(peer, ECHO, message, timeout_s=TIMEOUT_S)
        ours.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        await raw.send_all(message.data)
        await raw.receive_some(64)
        plain.append((time.perf_counter() - began) * 1e3)
    report("talk.rpc_p50", ours, "ms", against="plain TCP, trio", against_values=plain)


async def _concurrent(rpc: RpcService, peer: PeerId) -> None:
    rates = list[float]()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(_many, rpc, peer, CALLS // 10)
        rates.append(CALLS / (time.perf_counter() - began))
    report("talk.rpc_rate_10_at_once", rates, "calls/s", better="higher")


async def _many(rpc: RpcService, peer: PeerId, count: int) -> None:
    for _ in range(count):
        await rpc.call(peer, ECHO, Blob(bytes(64)), timeout_s=TIMEOUT_S)


async def _stream(rpc: RpcService, peer: PeerId) -> None:
    rates, chunk = list[float](), Blob(bytes(1024 * 1024))
    for _ in range(ROUNDS):
        began = time.perf_counter()
        async with rpc.stream(peer, SWALLOW, timeout_s=TIMEOUT_S) as call:
            for _ in range(STREAM_MB):
                await call.send(chunk)
            await call.finish()
            await call.receive()
        rates.append(STREAM_MB * 1.048576 / (time.perf_counter() - began))
    report("talk.stream_rate", rates, "MB/s", better="higher")


async def _connect(address: str) -> None:
    times = list[float]()
    for _ in range(ROUNDS):
        host = LibP2pHost(os.urandom(32), None, [])
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            began = time.perf_counter()
            await host.connect(address)
            times.append((time.perf_counter() - began) * 1e3)
            nursery.cancel_scope.cancel()
    report("talk.connect", times, "ms")


async def _measure(address: str, port: int) -> None:
    await _connect(address)
    host = LibP2pHost(os.urandom(32), None, [])
    rpc = RpcService(host)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        peer = await host.connect(address)
        raw = await trio.open_tcp_stream("127.0.0.1", port)
        await _calls(rpc, peer, raw)
        await _concurrent(rpc, peer)
        await _stream(rpc, peer)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run everything against one other process."""
    argv = [sys.executable, "-m", "benchmarks.talk_peer"]
    other = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        address, port = other.stdout.readline().split()
        trio.run(_measure, address, int(port))
    finally:
        other.kill()
        other.wait()


if __name__ == "__main__":
    main()
