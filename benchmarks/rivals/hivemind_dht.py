"""A swarm of hivemind DHT peers, as a child that answers orders. Run by the Python of its own
environment.

`python -m benchmarks.rivals.hivemind_dht`. Each `hivemind.DHT` is a process of its own with a
Go daemon of its own, as always; what a call takes is measured around it, as a program sees it.
"""

import logging
import os
import time

import hivemind
from hivemind.utils import get_dht_time

from benchmarks.orders import Answer, answer_orders, say

LIFE_S = 600.0  # of a value
STARTING_MAX = 6  # at a time: each loads two programs


class Swarm:
    """The orders, a method each; `node` is the number of who does it."""

    def __init__(self) -> None:
        self.nodes = list[hivemind.DHT]()

    def start(self, count: int) -> Answer:
        """Start so many."""
        initial = list[str]()
        for number in range(count):
            peer = hivemind.DHT(
                initial_peers=initial,
                start=True,
                await_ready=not number,
                host_maddrs=["/ip4/127.0.0.1/tcp/0"],
                use_relay=False,
                use_auto_relay=False,
            )
            self.nodes.append(peer)
            initial = initial or [str(peer.get_visible_maddrs()[0])]
            if number >= STARTING_MAX:
                self.nodes[number - STARTING_MAX].wait_until_ready()
        for peer in self.nodes:
            peer.wait_until_ready()
        return {}

    def put(self, node: int, key: str, data: str) -> Answer:
        """Store a value."""
        expires = get_dht_time() + LIFE_S
        began = time.perf_counter()
        done = self.nodes[node].store(key, data, expires)
        return {"ms": (time.perf_counter() - began) * 1e3, "ok": bool(done)}

    def get(self, node: int, key: str, data: str) -> Answer:
        """Read a value, the first that is found, as by default; and compare it."""
        began = time.perf_counter()
        found = self.nodes[node].get(key)
        took_ms = (time.perf_counter() - began) * 1e3
        return {"ms": took_ms, "ok": found is not None and found.value == data}


def main() -> None:
    """Serve and obey until the input ends."""
    logging.disable(logging.CRITICAL)
    swarm = Swarm()
    say({})
    answer_orders({name: getattr(swarm, name) for name in ("start", "put", "get")})
    os._exit(0)  # its own shutdown takes seconds


if __name__ == "__main__":
    main()
