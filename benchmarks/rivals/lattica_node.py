"""Lattica as a child that answers orders. Run by the Python of its own environment.

`python -m benchmarks.rivals.lattica_node FOLDER IP PORT [BOOTSTRAP]`; its first line has its
address and peer ID. TCP only, as ours. One node serves and calls; a streaming call is only made one
at a time, for at four in flight over TCP it hangs (facts: lattica, section 3).
"""

import os
import sys
import time
from collections import deque
from typing import Any

from lattica import ConnectionHandler, Lattica, rpc_method, rpc_stream

from benchmarks.orders import Answer, answer_orders, say

CALL_S = 20.0
MB = 1e6


class Bench(ConnectionHandler):
    """What the other node may call."""

    @rpc_method
    def echo(self, data: bytes) -> bytes:
        """Unary, the same back."""
        return data

    @rpc_method
    def swallow(self, data: bytes) -> int:
        """Unary, a few bytes back."""
        return len(data)

    @rpc_stream
    def swallow_stream(self, data: bytes) -> int:
        """On the shared stream, a few bytes back."""
        return len(data)

    @rpc_stream
    def fetch(self, size: int) -> bytes:
        """On the shared stream (a little faster than unary in this direction)."""
        return bytes(size)


class Node:
    """The orders, a method each."""

    def __init__(self, folder: str, ip: str, port: int, bootstrap: str) -> None:
        os.makedirs(folder, exist_ok=True)
        builder = Lattica.builder().with_mdns(False).with_upnp(False)
        builder = builder.with_listen_addrs([f"/ip4/{ip}/tcp/{port}"]).with_storage_path(folder)
        builder = builder.with_key_path(os.path.join(folder, "key"))
        if bootstrap:
            builder = builder.with_bootstraps([bootstrap])
        self.lattica = builder.build()
        self.handler = Bench(self.lattica)
        self.stub: Any = None

    def connect(self, peer: str) -> Answer:
        """Wait until the bootstrap peer answers."""
        until = time.monotonic() + CALL_S
        while peer not in self.lattica.get_all_peers() and time.monotonic() < until:
            time.sleep(0.01)
        self.stub = self.handler.get_stub(peer)
        self.stub.echo(b"").result()
        return {}

    def unary(self, size: int, calls: int) -> Answer:
        """Echoes one after the other; the time of each in ms."""
        data, times = bytes(size), []
        for _ in range(calls):
            began = time.perf_counter()
            self.stub.echo(data).result()
            times.append((time.perf_counter() - began) * 1e3)
        return {"ms": times}

    def rate(self, size: int, calls: int, at_once: int) -> Answer:
        """Requests of `size` bytes, `at_once` in flight, answered in a few bytes."""
        data, flying, began = bytes(size), deque[Any](), time.perf_counter()
        for _ in range(calls):
            if len(flying) >= at_once:
                flying.popleft().result()
            flying.append(self.stub.swallow(data))
        for future in flying:
            future.result()
        return _rates(time.perf_counter() - began, size, calls)

    def up(self, size: int, calls: int) -> Answer:
        """Messages of `size` bytes up its shared stream, each answered before the next."""
        data, began = bytes(size), time.perf_counter()
        for _ in range(calls):
            self.stub.swallow_stream(data).result()
        return _rates(time.perf_counter() - began, size, calls)

    def down(self, size: int, calls: int) -> Answer:
        """Answers of `size` bytes, one after the other."""
        began = time.perf_counter()
        for _ in range(calls):
            assert len(self.stub.fetch(size).result()) == size
        return _rates(time.perf_counter() - began, size, calls)


def _rates(took_s: float, size: int, calls: int) -> Answer:
    return {"per_s": calls / took_s, "mb_s": calls * size / MB / took_s}


def main(folder: str, ip: str, port: int, bootstrap: str) -> None:
    """Serve and obey until the input ends."""
    node = Node(folder, ip, port, bootstrap)
    peer = node.lattica.peer_id()
    say({"address": f"/ip4/{ip}/tcp/{port}/p2p/{peer}", "peer": peer})
    answer_orders(
        {name: getattr(node, name) for name in ("connect", "unary", "rate", "up", "down")}
    )
    os._exit(0)  # its own shutdown may hang


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
