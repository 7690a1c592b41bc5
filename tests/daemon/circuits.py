"""A relay and nodes that reach each other through it only, for the tests of this folder."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.host.service import LibP2pHost
from node.reach.circuit import CircuitClient, Reservation
from node.reach.hop import RelayBudget
from node.reach.relay import Relay
from node.tickets import SwarmKey
from tests.daemon.hosts import KEY, make_host

UNPACED = 1e12  # bytes a second


@dataclass
class Ring:
    """A relay with its host, and clients with theirs."""

    relay: Relay
    centre: LibP2pHost
    hosts: list[LibP2pHost]
    clients: list[CircuitClient]

    async def reserve(self, number: int) -> Reservation:
        """Reserve for one, and tell all others where it is."""
        found = await self.clients[number].reserve(self.centre.peer)
        for other in self.hosts:
            other.learn(self.hosts[number].peer, list(found.addresses))
        return found

    def through(self, number: int) -> str:
        """The address of one through the relay."""
        place = self.centre.addresses()[0]
        return f"{place}/p2p-circuit/p2p/{self.hosts[number].peer}"


@asynccontextmanager
async def ring(
    count: int = 2,
    *,
    budget: RelayBudget | None = None,
    key: SwarmKey | None = KEY,
    seeds: Sequence[bytes] = (),
) -> AsyncGenerator[Ring]:
    """Run a relay and `count` others, connected to it, for the length of a block. `seeds`: of the
    others' identities, where they matter.
    """
    own: list[bytes | None] = [*seeds] or [None] * count
    centre, hosts = make_host(key=key), [make_host(key=key, seed=seed) for seed in own]
    async with trio.open_nursery() as nursery:
        relay = Relay(centre, budget or RelayBudget(rate_bytes_s=UNPACED), lambda: True)
        clients = [CircuitClient(host, is_closed=key is not None) for host in hosts]
        for host in (centre, *hosts):
            await nursery.start(host.run)
        await nursery.start(relay.run)
        for host in hosts:
            await host.connect(centre.addresses()[0])
        yield Ring(relay, centre, hosts, clients)
        nursery.cancel_scope.cancel()
