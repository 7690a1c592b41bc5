"""Circuits through a real relay, on loopback: they carry everything, and hold to their limits."""

import time
from types import SimpleNamespace

import pytest
import trio

from node.host.addresses import parse_address
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.reach import circuit
from node.reach.circuit import CircuitClient
from node.reach.hop import RelayBudget
from node.reach.messages import HOP
from node.reach.relay import Relay
from tests.daemon.circuits import UNPACED, ring
from tests.daemon.hosts import PATIENCE_S, call, eventually, make_host, running
from tests.daemon.slow_links import QUIET_S, slow_link
from wire.errors import PeerUnreachable

STALLS = 1  # of a busy machine, which look like a trip; negotiating one by one takes 12 and more


async def write_on(stream: HostStream, data: bytes, *, every_s: float) -> None:
    while True:
        await stream.write(data)
        await trio.sleep(every_s)


async def test_a_peer_is_reached_through_a_relay() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        await call(a, b, b"through a relay")
        (seen,) = [each for each in a.peers() if each.peer == b.peer]
        assert seen.path == "relayed"
        assert seen.address == f"{net.centre.addresses()[0]}/p2p-circuit"
        assert len(net.relay.view().circuits) == 1
        assert net.relay.view().moved_bytes > 1000
        await a.disconnect(b.peer)
        await eventually(lambda: not net.relay.view().circuits)


async def test_a_relay_address_is_enough_to_connect() -> None:
    async with ring(3) as net:
        stranger, client = make_host(), None
        async with running(stranger):
            with pytest.raises(PeerUnreachable, match="no circuits here"):
                await stranger.connect(net.through(0))
            client = CircuitClient(stranger, is_closed=True)
            with pytest.raises(PeerUnreachable, match="no reservation there"):
                await stranger.connect(net.through(0))
            await client.reserve(net.centre.peer)
            await net.reserve(0)
            assert await stranger.connect(net.through(0)) == net.hosts[0].peer
            await call(stranger, net.hosts[0])


async def test_all_that_is_sent_arrives_both_ways_at_once() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        data = bytes(range(256)) * 40_000  # ten megabytes, 40 windows

        async def count(sender: LibP2pHost, target: LibP2pHost) -> None:
            stream = await sender.open(target.peer, "/count", timeout_s=PATIENCE_S)
            await stream.write(data)
            await stream.finish()
            assert int.from_bytes(await stream.read_exactly(8), "big") == len(data)

        await a.connect(b.peer)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(count, a, b)
                nursery.start_soon(count, b, a)
        assert net.relay.view().moved_bytes > 2 * len(data)


async def test_an_open_swarm_has_circuits_too() -> None:
    async with ring(3, key=None) as net:
        a, b, _ = net.hosts
        await net.reserve(1)
        await call(a, b)
        with pytest.raises(PeerUnreachable, match="no reservation there"):
            await b.connect(net.through(2))


async def test_a_relay_is_not_reached_through_a_relay() -> None:
    async with ring(3) as net:
        a, b, c = net.hosts
        await net.reserve(1)
        Relay(b, RelayBudget(), lambda: True)
        await call(a, b)
        with pytest.raises(PeerUnreachable, match="itself reached through a relay"):
            await net.clients[0].reserve(b.peer)
        address = parse_address(f"{b.addresses()[0]}/p2p-circuit/p2p/{c.peer}")
        with pytest.raises(PeerUnreachable, match="itself reached through a relay"):
            await net.clients[0].dial(address, c.peer)
        # Nor does it serve one that asks over a circuit all the same.
        stream = await a.open(b.peer, HOP, timeout_s=PATIENCE_S)
        assert stream.path == "relayed"


async def test_the_first_answer_takes_three_round_trips_behind_the_tcp_connection() -> None:
    a, b = make_host(), make_host()
    async with running(a, b), slow_link(b.addresses()[0]) as link:
        a.learn(b.peer, [link.address])
        await call(a, b)
        assert link.trips <= 6 + STALLS


async def test_the_first_answer_through_a_relay_takes_three_round_trips() -> None:
    async with ring(1) as net:
        (b,), a = net.hosts, make_host()
        CircuitClient(a, is_closed=True)
        await net.reserve(0)
        async with running(a), slow_link(net.centre.addresses()[0]) as link:
            await a.connect(link.address)
            await trio.sleep(4 * QUIET_S)  # for its first pings
            a.learn(b.peer, [f"{link.address}/p2p-circuit/p2p/{b.peer}"])
            before = link.trips
            await call(a, b)
            assert link.trips - before <= 6 + STALLS


async def test_circuits_end_with_their_bytes_and_their_time() -> None:
    for budget in (
        RelayBudget(rate_bytes_s=UNPACED, circuit_bytes=200_000),
        RelayBudget(rate_bytes_s=UNPACED, circuit_s=0.7),
    ):
        async with ring(budget=budget) as net:
            a, b = net.hosts
            await net.reserve(1)
            await call(a, b)
            stream = await a.open(b.peer, "/count", timeout_s=PATIENCE_S)
            with trio.fail_after(5), pytest.raises(PeerUnreachable):
                await write_on(stream, bytes(10_000), every_s=0.01)
            with trio.fail_after(PATIENCE_S):
                while net.relay.view().circuits or b.peer in a.connected():  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await call(a, b)  # and the next one is made
            assert net.relay.view().refused == 0  # an answer would be bytes in the middle of it


@pytest.mark.parametrize("is_off_by_s", [-1e10, -4000.0, 3590.0, 1e9])
async def test_a_clock_that_is_wrong_keeps_nobody_from_a_relay(
    monkeypatch: pytest.MonkeyPatch, is_off_by_s: float
) -> None:
    async with ring() as net:
        monkeypatch.setattr(
            circuit, "time", SimpleNamespace(time=lambda: time.time() + is_off_by_s)
        )
        found = await net.reserve(1)
        assert 60.0 < found.until - trio.current_time() <= 3600.0
        await call(net.hosts[0], net.hosts[1])


async def test_a_relay_paces_all_circuits_together() -> None:
    async with ring(3, budget=RelayBudget(rate_bytes_s=1_000_000)) as net:
        a, b, c = net.hosts
        await net.reserve(1)
        for host in (a, c):
            await call(host, b)
        begun, moved = trio.current_time(), net.relay.view().moved_bytes

        async def flood(host: LibP2pHost) -> None:
            stream = await host.open(b.peer, "/count", timeout_s=PATIENCE_S)
            await write_on(stream, bytes(50_000), every_s=0.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, a)
            nursery.start_soon(flood, c)
            await trio.sleep(1.5)
            # Floods fill no queue of others: a word comes through between their turns.
            await call(c, b)
            nursery.cancel_scope.cancel()
        passed = net.relay.view().moved_bytes - moved
        assert 0.5e6 < passed < 1e6 * (trio.current_time() - begun) + 0.5e6


async def test_a_relay_that_is_off_gives_nothing() -> None:
    is_on = [True]
    relay_host, client_host = make_host(), make_host()
    relay = Relay(relay_host, RelayBudget(), lambda: is_on[0])
    client = CircuitClient(client_host, is_closed=True)
    async with running(relay_host, client_host):
        await client_host.connect(relay_host.addresses()[0])
        assert relay.free == 128
        await client.reserve(relay_host.peer)
        assert relay.free == 127
        is_on[0] = False
        assert relay.free == 0
        with pytest.raises(PeerUnreachable, match="takes no reservation"):
            await client.reserve(relay_host.peer)
