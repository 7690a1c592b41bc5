"""`Reach` over real hosts: nodes that nobody can dial, relays, and who moves between them. All of
127/8 is this machine: its addresses stand for those of the Internet.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import msgspec
import trio

from node.host.service import LibP2pHost
from node.reach.service import Reach, ReachOptions
from node.reach.views import RelayMode
from tests.daemon.hosts import KEY, call, echo, eventually
from wire.ids import PeerId

FAST = ReachOptions(relay_bytes_per_s=1e12, port_mapping=False)


@dataclass
class Lease:
    """A member as `Reach` sees it: what its lease says."""

    node: "Node"
    alive: bool = True

    @property
    def peer(self) -> PeerId:
        return self.node.host.peer

    @property
    def addrs(self) -> list[str]:
        return self.node.reach.addresses()

    @property
    def offers(self) -> dict[str, object]:
        return {"reach": msgspec.to_builtins(self.node.reach.offer())}


@dataclass
class Swarm:
    """Hosts that know of each other, as by their leases."""

    nursery: trio.Nursery
    is_outside: bool = True  # every address
    nodes: list["Node"] = field(default_factory=list["Node"])

    def members(self) -> list[Lease]:
        return [Lease(node) for node in self.nodes if not node.scope.cancel_called]

    async def add(self, network: int | None, *, relay: RelayMode = "auto") -> "Node":
        """Start a node: at an address of its own, or one that nobody can dial (None)."""
        listen = [] if network is None else [f"/ip4/127.{network}.0.1/tcp/0"]
        host = LibP2pHost(secrets.token_bytes(32), KEY, listen)
        host.serve("/echo", echo)
        options = replace(FAST, relay=relay)
        node = Node(host, Reach(host, self.members, options, is_outside=lambda _: self.is_outside))
        await self.nursery.start(node.run)
        self.nodes.append(node)
        return node


@dataclass
class Node:
    host: LibP2pHost
    reach: Reach
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    changes: int = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.reach.on_change = self.changed
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.host.run)
                await nursery.start(self.reach.run)
                task_status.started()
                await trio.sleep_forever()

    def changed(self) -> None:
        self.changes += 1

    async def meet(self, *others: "Node") -> None:
        for other in others:
            await self.host.connect(other.host.peer, other.reach.addresses())

    def relays(self) -> set[PeerId]:
        return {held.relay for held in self.reach.view().held}


@asynccontextmanager
async def swarm(*, is_outside: bool = True) -> AsyncGenerator[Swarm]:
    async with trio.open_nursery() as nursery:
        yield Swarm(nursery, is_outside)
        nursery.cancel_scope.cancel()


async def test_two_nodes_that_nobody_can_dial_talk_within_seconds() -> None:
    async with swarm() as made:
        relay = await made.add(1)
        alice, bob = await made.add(None), await made.add(None)
        began = trio.current_time()
        await alice.meet(relay)
        await bob.meet(relay)
        await eventually(lambda: bob.reach.addresses(), within_s=10)
        assert trio.current_time() - began < 4  # well under a second on a free machine
        assert bob.changes
        alice.host.learn(bob.host.peer, bob.reach.addresses())
        await call(alice.host, bob.host)
        (view,) = [one for one in alice.host.peers() if one.peer == bob.host.peer]
        assert view.path == "relayed"
        serving = relay.reach.view().relay
        assert serving.reservations == 2
        assert serving.circuits == 1
        assert serving.bytes > 0


async def test_a_relay_that_dies_is_replaced_and_the_new_address_is_told() -> None:
    async with swarm() as made:
        relays = [await made.add(network, relay="on") for network in (1, 2, 3)]
        alice = await made.add(None)
        await alice.meet(*relays)
        await eventually(lambda: len(alice.relays()) == 2, within_s=10)
        lost = next(one for one in relays if one.host.peer in alice.relays())
        spare = next(one for one in relays if one.host.peer not in alice.relays())
        changes = alice.changes
        lost.scope.cancel()
        await eventually(lambda: spare.host.peer in alice.relays(), within_s=10)
        assert lost.host.peer not in alice.relays()
        assert alice.changes > changes
        assert any(spare.host.peer in address for address in alice.reach.addresses())
        assert not any(lost.host.peer in address for address in alice.reach.addresses())


async def test_a_node_that_is_public_holds_no_relays_and_offers_to_be_one() -> None:
    async with swarm() as made:
        nodes = [await made.add(network) for network in (1, 2, 3)]
        await nodes[0].meet(nodes[1], nodes[2])
        await nodes[1].meet(nodes[2])
        await eventually(
            lambda: all(node.reach.offer().state == "public" for node in nodes), within_s=20
        )
        assert all(node.reach.offer().relay == 128 for node in nodes)
        assert all(not node.relays() for node in nodes)
        view = nodes[0].reach.view()
        assert view.relay.is_on
        assert view.evidence
        assert [one.origin for one in view.announced] == ["interface"]


async def test_a_node_without_anybody_outside_does_nothing() -> None:
    async with swarm(is_outside=False) as made:
        relay, alice = await made.add(1, relay="on"), await made.add(None)
        await alice.meet(relay)
        await call(alice.host, relay.host)  # by when it has long seen that the relay is there
        assert alice.relays() == set()
        assert relay.reach.view().relay.reservations == 0
        assert relay.reach.offer().state == "unknown"


async def test_a_node_that_will_not_relay_is_left_alone() -> None:
    async with swarm() as made:
        relay, alice = await made.add(1, relay="off"), await made.add(None)
        await alice.meet(relay)
        await eventually(lambda: relay.reach.view().relay.refused > 0, within_s=10)
        assert alice.relays() == set()
        assert relay.reach.offer().relay == 0
