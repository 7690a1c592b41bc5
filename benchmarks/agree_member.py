"""A member of a daemon's swarm that speaks the store's protocol by hand, as a child that answers
orders: it brings what a daemon shall hold, or attacks it.

`python -m benchmarks.agree_member ADDRESS TICKET`.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from benchmarks.agree_entries import by_chain, corpus, size_of
from benchmarks.agree_store import IN_FLIGHT, NAMESPACE, Quiet, frames, write
from benchmarks.agree_villain import Villain
from benchmarks.agree_villain_sync import Liar
from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from crdt.namespace import open_genesis
from crdt.service import StoreService
from crdt.wire import FRAME_MAX
from node.host.service import LibP2pHost
from node.tickets import Ticket, parse_ticket, swarm_tag
from protocols.rpc.service import RpcService
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

PUSH_S = 20.0


def built_in_id(name: str, ticket: Ticket) -> bytes:
    """Return the ID of a namespace that every swarm has."""
    return open_genesis(name, swarm_tag(ticket.key).encode()).id


class Member:
    """The orders, a method each."""

    def __init__(self, address: str, ticket: Ticket, folder: Path) -> None:
        seed = os.urandom(32)
        self.host, self.signer = LibP2pHost(seed, ticket.key, []), Signer(seed)
        self.rpc = RpcService(self.host)
        self.network = self.rpc.network("crdt.sync", frame_max=FRAME_MAX)
        self.daemon, self.namespace = (
            PeerId(address.rpartition("/")[2]),
            built_in_id(NAMESPACE, ticket),
        )
        self._address = address
        self.store = StoreService(
            self.network,
            Quiet(),
            SystemClock(),
            self.signer,
            folder / "store.db",
            peers=list,
            salt=swarm_tag(ticket.key).encode(),
            sync_interval_s=math.inf,
        )
        self.liar: Liar | None = None
        self.rpc.answer("crdt.sync", self._answer, frame_max=FRAME_MAX)
        self.villain = Villain(self.ask, swarm_tag(ticket.key).encode())

    async def ask(self, message: bytes) -> bytes:
        """Send the daemon one request of a sync. Raises what it answers with."""
        return await self.network.request(self.daemon, message, timeout_s=PUSH_S)

    async def connect(self) -> None:
        """Have a connection."""
        await self.host.connect(self._address)

    async def load(self, count: int) -> Answer:
        """Bring live entries of many authors."""
        make = partial(corpus, self.namespace, count, SystemClock().wall_ms())
        made = await trio.to_thread.run_sync(lambda: by_chain(make()))
        left = iter(frames(made))
        began = time.perf_counter()

        async def one() -> None:
            for message in left:
                await self.ask(message)

        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT - 1):
                nursery.start_soon(one)
        return {"seconds": time.perf_counter() - began, "bytes": size_of(made)}

    async def sync(self, count: int) -> Answer:
        """Write entries into a store of our own and sync with the daemon, as honest peers do."""
        keys = [f"honest/{self.signer.peer}/{number}" for number in range(count)]
        await write(self.store, count, keys)
        began = time.perf_counter()
        report = await self.store.sync_with(self.daemon)
        return {"seconds": time.perf_counter() - began, "out": report.entries_out}

    async def lie(self, about: str) -> Answer:
        """Answer whoever leads a sync with us with lies from now on."""
        self.liar = Liar(about, self.namespace)
        return {"peer": self.host.peer}

    async def _answer(self, peer: PeerId, message: bytes) -> bytes:
        if self.liar is not None:
            return await self.liar.answer(peer, message)
        return await self.store.answer(peer, message)

    async def attack(self, name: str, seconds: float) -> Answer:
        """Attack for so long; says what the daemon answered, and how often."""
        return await self.villain.attack(name, seconds)


@asynccontextmanager
async def running(address: str, ticket: Ticket) -> AsyncGenerator[Member]:
    """Be a member for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        member = Member(address, ticket, Path(folder))
        async with trio.open_nursery() as nursery:
            await nursery.start(member.store.run)
            await nursery.start(member.host.run)
            await member.connect()
            yield member
            nursery.cancel_scope.cancel()


async def main(address: str, ticket: str) -> None:
    """Obey until the input ends."""
    async with running(address, parse_ticket(ticket)) as member:
        say({"peer": member.host.peer})
        await obey(member)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
