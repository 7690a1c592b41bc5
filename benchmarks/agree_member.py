"""A member of a daemon's swarm that speaks the store's protocol by hand, as a child that answers
orders: it brings what a daemon shall hold, or attacks it.

`python -m benchmarks.agree_member ADDRESS TICKET`.
"""

import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from benchmarks.agree_entries import by_chain, corpus, size_of
from benchmarks.agree_store import IN_FLIGHT, NAMESPACE, frames
from benchmarks.agree_villain import Villain
from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from crdt.namespace import open_genesis
from node.host.service import LibP2pHost
from node.tickets import Ticket, parse_ticket
from protocols.rpc.service import RpcService
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

PUSH_S = 20.0


def built_in_id(name: str, ticket: Ticket) -> bytes:
    """Return the ID of a namespace that every swarm has."""
    return open_genesis(name, ticket.swarm_name.encode()).id


class Member:
    """The orders, a method each."""

    def __init__(self, address: str, ticket: Ticket) -> None:
        seed = os.urandom(32)
        self.host, self.signer = LibP2pHost(seed, ticket.key, []), Signer(seed)
        self.rpc = RpcService(self.host)
        self.network = self.rpc.network("crdt.sync")
        self.daemon, self.namespace = PeerId(address.rpartition("/")[2]), built_in_id(
            NAMESPACE, ticket
        )
        self._address = address
        self.villain = Villain(self.ask, ticket.swarm_name)

    async def ask(self, message: bytes) -> bytes:
        """Send the daemon one request of a sync. Raises what it answers with."""
        return await self.network.request(self.daemon, message, timeout_s=PUSH_S)

    async def connect(self) -> None:
        """Have a connection."""
        await self.host.connect(self._address)

    async def load(self, count: int) -> Answer:
        """Bring live entries of many authors."""
        made = by_chain(corpus(self.namespace, count, SystemClock().wall_ms()))
        left = iter(frames(made))
        began = time.perf_counter()

        async def one() -> None:
            for message in left:
                await self.ask(message)

        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT - 1):
                nursery.start_soon(one)
        return {"seconds": time.perf_counter() - began, "bytes": size_of(made)}

    async def attack(self, name: str, seconds: float) -> Answer:
        """Attack for so long; says what the daemon answered, and how often."""
        return await self.villain.attack(name, seconds)


@asynccontextmanager
async def running(address: str, ticket: Ticket) -> AsyncGenerator[Member]:
    """Be a member for the length of a block."""
    member = Member(address, ticket)
    async with trio.open_nursery() as nursery:
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
