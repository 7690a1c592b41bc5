"""A swarm of Lattica nodes in one process, for its DHT, as a child that answers orders. Run by the
Python of Lattica's own environment.

`python -m benchmarks.rivals.lattica_dht FOLDER NODES`. Its calls are native code and let go of the
interpreter; what a call takes is measured around it, as a program sees it.
"""

import os
import socket
import sys
import time
from typing import Any

from lattica import Lattica

from benchmarks.orders import Answer, answer_orders, say

MEET_S = 30.0
LIFE_S = 600.0  # of a value: its own default
IP = "127.0.0.1"


class Swarm:
    """The orders, a method each; `node` is the number of who does it."""

    def __init__(self, folder: str, count: int) -> None:
        self.nodes = list[Any]()
        first = ""
        for number in range(count):
            port, home = _free_port(), os.path.join(folder, str(number))
            os.makedirs(home)
            builder = Lattica.builder().with_mdns(False).with_upnp(False).with_storage_path(home)
            builder = builder.with_listen_addrs([f"/ip4/{IP}/tcp/{port}"])
            builder = builder.with_key_path(os.path.join(home, "key"))
            if first:
                builder = builder.with_bootstraps([first])
            self.nodes.append(builder.build())
            first = first or f"/ip4/{IP}/tcp/{port}/p2p/{self.nodes[0].peer_id()}"
        until = time.monotonic() + MEET_S
        while not all(one.get_all_peers() for one in self.nodes) and time.monotonic() < until:
            time.sleep(0.05)

    def put(self, node: int, key: str, data: str) -> Answer:
        """Store a value."""
        began = time.perf_counter()
        done = self.nodes[node].store(key, data, time.time() + LIFE_S)
        return {"ms": (time.perf_counter() - began) * 1e3, "ok": bool(done)}

    def get(self, node: int, key: str, data: str) -> Answer:
        """Read a value, and compare it."""
        began = time.perf_counter()
        found = self.nodes[node].get(key)
        took_ms = (time.perf_counter() - began) * 1e3
        return {"ms": took_ms, "ok": found is not None and found.value == data}

    def provide(self, node: int, key: str) -> Answer:
        """Say that it has it."""
        began = time.perf_counter()
        self.nodes[node].start_providing(key)
        return {"ms": (time.perf_counter() - began) * 1e3, "ok": True}

    def providers(self, node: int, key: str) -> Answer:
        """Ask who has it."""
        began = time.perf_counter()
        found = self.nodes[node].get_providers(key)
        return {"ms": (time.perf_counter() - began) * 1e3, "ok": bool(found)}


def _free_port() -> int:
    with socket.create_server((IP, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main(folder: str, count: int) -> None:
    """Serve and obey until the input ends."""
    swarm = Swarm(folder, count)
    say({})
    answer_orders({name: getattr(swarm, name) for name in ("put", "get", "provide", "providers")})
    os._exit(0)  # its own shutdown may hang


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
