"""A process for tests.soak.store_kill: for each line on stdin it forks a writer, which is killed.

Each writer opens the store on real threads and a real disk, writes keys of its own over and over
and takes a peer's; it prints key and number when a write was acknowledged. The fork happens before
trio runs, so a cycle costs no imports.
"""

import os
import signal
import sys

import trio

from crdt.clock import stamp
from crdt.entry import NO_LINK, REGISTER, Entry, Signed, seal
from crdt.namespace import open_genesis
from crdt.service import StoreService
from wire import codec
from wire.clock import SystemClock
from wire.errors import PeerUnreachable
from wire.ids import PeerId, Signer, public_key_of

SPACE = open_genesis("runs")
LIFE_S = 20  # a writer that the test forgot ends by itself
WRITERS = 8  # at a time, so that commits hold several entries
KEYS = 25  # of each: they are overwritten all the time, so rows are deleted all the time
BATCH = 20  # entries that the peer brings at once
CYCLE = 1_000_000  # numbers of one cycle; those of the next are larger
OWN, PEER = Signer(bytes(32)), Signer(bytes(31) + b"p")


class Alone:
    """No network and nobody to gossip with."""

    peer = OWN.peer

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        raise PeerUnreachable(peer)

    def subscribe(self, topic: str, handler: object) -> None: ...

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()


def entries_of_peer(cycle: int, first: int, link: bytes) -> tuple[list[Signed], bytes]:
    """The next entries of the peer's chain of this cycle."""
    author, signed = public_key_of(PEER.peer), list[Signed]()
    for number in range(first, first + BATCH):
        wall_ms = SystemClock().wall_ms()
        record = seal(
            Entry(
                1,
                SPACE.id,
                author,
                cycle.to_bytes(8),
                number + 1,
                link,
                stamp(wall_ms) + number,
                REGISTER,
                f"peer/{number % (5 * BATCH)}",
                value=codec.encode(cycle * CYCLE + number),
            ),
            PEER,
        )
        link = record.link
        signed.append(record.signed)
    return signed, link


async def write(path: str, cycle: int) -> None:
    alone = Alone()
    store = StoreService(alone, alone, SystemClock(), OWN, path, peers=list[PeerId])

    async def put_on(writer: int) -> None:
        number = cycle * CYCLE
        while True:
            key = f"own/{writer}/{number % KEYS}"
            await store.put("runs", key, number)
            os.write(1, f"{key} {number}\n".encode())
            number += 1

    async def take_on() -> None:
        first, link = 0, NO_LINK
        while True:
            signed, link = entries_of_peer(cycle, first, link)
            await store._hall.take(PEER.peer, SPACE.id, signed)
            for number in range(first, first + BATCH):
                os.write(1, f"peer/{number % (5 * BATCH)} {cycle * CYCLE + number}\n".encode())
            first += BATCH

    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.start_soon(take_on)
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
        os.write(1, b"dead -\n")


if __name__ == "__main__":
    main()
