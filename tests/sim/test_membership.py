"""Members on a virtual clock: leases, names, connections, malformed leases."""

from dataclasses import dataclass, field

import msgspec
import pytest
import trio
from trio.testing import MockClock

from crdt.clock import stamp
from crdt.entry import LEASE, NO_LINK, Entry, Signed, seal
from crdt.namespace import open_genesis
from crdt.service import StoreService
from crdt.wire import Push
from node.kept import KEPT_MAX
from node.membership import LEASE_S, RENEW_S, Lease, MemberInfo, Membership
from tests.sim.replicas import EPOCH_MS, Links, SimClock, signer, start_store
from wire import codec
from wire.errors import NotFound, UsageError
from wire.ids import PeerId, public_key_of
from wire.ports import Store

SWARM = open_genesis("swarm")


@dataclass
class FakeHost:
    """A host that notes what it is told; `links` says who is connected."""

    peer: PeerId
    links: Links
    learnt: dict[PeerId, list[str]] = field(default_factory=dict)
    kept: dict[PeerId, list[str]] = field(default_factory=dict)
    offline: bool = False

    def connected(self) -> list[PeerId]:
        return [] if self.offline else self.links.peers(self.peer)

    def learn(self, peer: PeerId, addrs: list[str]) -> None:
        self.learnt[peer] = addrs

    def keep(self, peer: PeerId, addrs: list[str]) -> None:
        self.kept[peer] = addrs

    def forget(self, peer: PeerId) -> None:
        del self.kept[peer]


@dataclass
class FakeFinder:
    """A DHT that knows one thing."""

    addrs: list[str]

    async def find_peer(self, peer: PeerId) -> list[str]:
        await trio.lowlevel.checkpoint()
        return self.addrs


@dataclass
class Node:
    store: StoreService
    host: FakeHost
    membership: Membership
    stop: trio.CancelScope

    @property
    def peer(self) -> PeerId:
        return self.host.peer


async def start_node(
    nursery: trio.Nursery, links: Links, number: int, *, addrs: list[str] | None = None,
    finder: FakeFinder | None = None, name: str = "",
) -> Node:  # fmt: skip
    store = await start_store(nursery, links, number)
    host = FakeHost(signer(number).peer, links)
    info = MemberInfo(
        name or f"node{number}",
        [f"/ip4/10.0.0.{number}/tcp/1"] if addrs is None else addrs,
        "0.1.0",
        number,
        {"host": True},
    )
    membership = Membership(store, host, lambda: info, SimClock(), finder=finder)
    stop = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with stop:
            await membership.run(task_status=task_status)

    await nursery.start(run)
    return Node(store, host, membership, stop)


async def test_members_see_each_other_with_names_addresses_and_offers(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    nodes = [await start_node(nursery, links, number) for number in (1, 2, 3)]
    await trio.sleep(1.2 * RENEW_S)
    for node in nodes:
        members = node.membership.members()
        assert members[0].peer == node.peer
        assert {one.name for one in members} == {"node1", "node2", "node3"}
        assert {node.membership.name_of(one.peer) for one in members} == {"node1", "node2", "node3"}
        assert node.membership.name_of(signer(9).peer) == ""
        assert all(one.alive and one.offers == {"host": True} for one in members)
        assert set(node.host.kept) == {other.peer for other in nodes if other is not node}
        assert node.host.learnt == node.host.kept


async def test_a_member_that_dies_is_not_alive_after_its_lease_and_forgotten_later(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice, bob = [await start_node(nursery, links, number) for number in (1, 2)]
    await trio.sleep(1.2 * RENEW_S)
    bob.stop.cancel()
    links.split([alice.peer], [bob.peer])
    await trio.sleep(LEASE_S / 2)
    assert alice.membership.members()[1].alive
    await trio.sleep(LEASE_S / 2 + RENEW_S)
    assert [one.alive for one in alice.membership.members()] == [True, False]
    await trio.sleep(3700)
    assert [one.peer for one in alice.membership.members()] == [alice.peer]


async def test_a_member_that_leaves_is_gone_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice, bob = [await start_node(nursery, links, number) for number in (1, 2)]
    await trio.sleep(12)
    links.listeners.clear()  # the process ends before the channel has sent anything
    await bob.membership.leave()
    assert [one.peer for one in alice.membership.members()] == [alice.peer]
    await bob.membership.refresh()
    await trio.sleep(60)
    assert [one.peer for one in alice.membership.members()] == [alice.peer]


async def test_leaving_ends_at_its_deadline_when_nobody_answers(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice, bob = [await start_node(nursery, links, number) for number in (1, 2)]
    links.silent.add(alice.peer)
    start = trio.current_time()
    await bob.membership.leave(timeout_s=1.5)
    assert trio.current_time() - start < 1.6


async def test_a_name_an_id_or_a_part_of_it_finds_a_member(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice = await start_node(nursery, links, 1)
    bob = await start_node(nursery, links, 2)
    await start_node(nursery, links, 3, name="twin")
    await start_node(nursery, links, 4, name="twin")
    await trio.sleep(12)
    resolve = alice.membership.resolve
    assert resolve("node2") == resolve(bob.peer) == resolve(bob.peer[-6:]) == bob.peer
    assert resolve(signer(77).peer) == signer(77).peer
    with pytest.raises(UsageError, match="fits 2 members"):
        resolve("twin")
    with pytest.raises(UsageError, match="fits 4 members"):
        resolve("12D3KooW")
    with pytest.raises(NotFound, match="no member is called 'nobody'"):
        resolve("nobody")


async def test_a_lease_that_is_not_one_is_ignored_and_counted(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice = await start_node(nursery, links, 1)
    good = {"name": "x", "addrs": [], "version": "1", "started_ms": 1}
    bad: list[object] = [
        7, {}, {**good, "addrs": ["no slash"]}, {**good, "name": "\x1b[2J"},
        {**good, "started_ms": -1},
    ]  # fmt: skip
    for number, value in enumerate(bad, 2):
        store = await start_store(nursery, links, number)
        await store.put("swarm", f"member/@{signer(number).peer}", value)
        await store.put("swarm", f"member/@{signer(number).peer}/more", good)
    await trio.sleep(5)
    assert [one.peer for one in alice.membership.members()] == [alice.peer]
    assert alice.membership.malformed >= len(bad)


async def test_members_without_addresses_are_looked_for_in_the_dht(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice = await start_node(nursery, links, 1, finder=FakeFinder(["/ip4/192.0.2.1/tcp/1"]))
    bob = await start_node(nursery, links, 2, addrs=[])
    alice.host.offline = True
    await trio.sleep(25)
    assert alice.host.kept == {bob.peer: ["/ip4/192.0.2.1/tcp/1"]}


async def test_connections_are_kept_to_a_limited_number_of_members(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alice = await start_node(nursery, links, 1)
    lease = {"addrs": ["/ip4/10.0.0.1/tcp/1"], "version": "1", "started_ms": 1}
    entries: list[Signed] = []
    for number in range(2, KEPT_MAX + 8):
        own, raw = signer(number), msgspec.msgpack.encode({**lease, "name": f"n{number}"})
        entry = Entry(
            1,
            SWARM.id,
            public_key_of(own.peer),
            bytes(8),
            1,
            NO_LINK,
            stamp(EPOCH_MS),
            LEASE,
            f"member/@{own.peer}",
            value=raw,
            expires_ms=EPOCH_MS + 600_000,
        )
        entries.append(seal(entry, own).signed)
    await alice.store.answer(signer(2).peer, codec.encode(Push(SWARM.id, entries)))
    await trio.sleep(60)
    assert len(alice.membership.members()) == KEPT_MAX + 7
    assert len(alice.host.kept) == KEPT_MAX
    await trio.sleep(5000)  # all of them are gone and forgotten
    late = await start_node(nursery, links, 100)
    await trio.sleep(60)
    assert set(alice.host.kept) == {late.peer}


async def test_a_lease_with_many_addresses_is_cut_to_what_the_store_takes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    addrs = [f"/dns4/{'h' * 200}{number}/tcp/1" for number in range(40)]
    store: Store = (await start_node(nursery, Links(), 1, addrs=addrs)).store
    item = store.get("swarm", f"member/@{signer(1).peer}")
    assert item is not None
    assert len(msgspec.msgpack.encode(item.value)) <= 1536


async def test_a_node_that_moved_tells_it_at_once_and_then_every_few_seconds_at_most(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    addrs = ["/ip4/10.0.0.1/tcp/1"]
    alice = await start_node(nursery, links, 1, addrs=addrs)
    bob = await start_node(nursery, links, 2)
    told: list[tuple[float, list[str]]] = []
    moved: list[PeerId] = []
    bob.membership.on_moved = moved.append
    await trio.sleep(1)
    began = trio.current_time()

    async def note() -> None:
        async with alice.store.watch("swarm", "member/@") as changes:
            async for _ in changes:
                item = alice.store.get("swarm", f"member/@{alice.peer}")
                assert item is not None
                lease = msgspec.convert(item.value, Lease)
                told.append((round(trio.current_time() - began, 1), lease.addrs))

    nursery.start_soon(note)
    await trio.lowlevel.checkpoint()
    for number in range(30):  # ten seconds of trouble
        addrs[:] = [f"/ip4/10.0.1.{number}/tcp/1"]
        alice.membership.moved()
        await trio.sleep(1 / 3)
    await trio.sleep(6)
    assert [at for at, _ in told] == [0.2, 5.2, 10.2]
    assert told[-1][1] == ["/ip4/10.0.1.29/tcp/1"]
    assert bob.host.kept[alice.peer] == ["/ip4/10.0.1.29/tcp/1"]
    assert set(moved) == {alice.peer}


async def test_a_lease_holds_relay_addresses_beside_those_of_many_interfaces(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    own, relays = signer(1).peer, [signer(7).peer, signer(8).peer]
    lan = [f"/ip6/2a01:4f8:{number}:1234:5678:9abc:def0:1234/tcp/40001" for number in range(20)]
    through = [f"/ip6/2a01:4f8:77:1234:5678:9abc:def0:1/tcp/40001/p2p/{one}" for one in relays]
    through += [f"/ip4/203.0.113.200/tcp/40001/p2p/{one}" for one in relays]
    relayed = [f"{one}/p2p-circuit" for one in through]
    addrs = [f"{one}/p2p/{own}" for one in [*lan[:3], *relayed, *lan[3:]]]
    node = await start_node(nursery, Links(), 1, addrs=addrs)
    item = node.store.get("swarm", f"member/@{own}")
    assert item is not None
    told = msgspec.convert(item.value, Lease).addrs
    assert told[:7] == [*lan[:3], *relayed]  # our own peer ID is not repeated in each
    assert len(told) >= 14
