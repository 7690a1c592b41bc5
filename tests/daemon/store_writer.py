"""A process for test_store_kill: for each line on stdin it forks a writer, which is then killed.

Each writer opens the store on real threads and a real disk, and prints a key when its write was
acknowledged. The fork happens before trio runs, so a cycle costs no imports.
"""

import os
import signal
import sys

import trio

from crdt.service import StoreService
from wire.clock import SystemClock
from wire.errors import PeerUnreachable
from wire.ids import PeerId, Signer

LIFE_S = 20  # a writer that the test forgot ends by itself
WRITERS = 8  # at a time, so that commits hold several entries


class Alone:
    """No network and nobody to gossip with."""

    peer = Signer(bytes(32)).peer

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        raise PeerUnreachable(peer)

    def subscribe(self, topic: str, handler: object) -> None: ...

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()


async def write(path: str, cycle: int) -> None:
    alone = Alone()
    store = StoreService(alone, alone, SystemClock(), Signer(bytes(32)), path, peers=list[PeerId])

    async def put_on(writer: int) -> None:
        number = 0
        while True:
            key = f"{cycle}/{writer}/{number}"
            await store.put("runs", key, number)
            os.write(1, f"{key}\n".encode())
            number += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for writer in range(WRITERS):
            nursery.start_soon(put_on, writer)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(LIFE_S)
            trio.run(write, sys.argv[1], int(line))
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    main()
