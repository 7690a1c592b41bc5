"""Real hosts together: who gets in, who comes back, who is noticed to be gone."""

import os
import socket

import pytest
import trio

from node.host.addresses import parse_address
from node.host.admission import NotAdmitted
from node.host.backoff import Backoff
from node.host.gate import Limits
from node.host.mdns import Found
from node.host.service import LibP2pHost
from node.host.views import PeerDown, PeerUp
from node.tickets import SwarmKey
from tests.daemon.hosts import KEY, call, eventually, make_host, running
from wire.errors import DeadlineExceeded, PeerUnreachable, UsageError
from wire.ids import PeerId

OTHER_KEY = SwarmKey(b"o" * 32)


async def test_two_members_see_each_other() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        assert await b.connect(a.addresses()[0]) == a.peer
        await eventually(lambda: a.connected() == [b.peer])
        assert b.connected() == [a.peer]
        await call(b, a)
        await call(a, b)
        await eventually(lambda: all(host.peers()[0].rtt_ms is not None for host in (a, b)))
        (seen,) = b.peers()
        assert (seen.peer, seen.direction, seen.path) == (a.peer, "out", "direct")
        assert a.addresses()[0] == f"{seen.address}/p2p/{a.peer}"
        assert a.peers()[0].direction == "in"
        assert 0 < await b.ping(a.peer) < 1


@pytest.mark.parametrize(
    ("one", "other"), [(KEY, OTHER_KEY), (KEY, None), (None, KEY)], ids=["keys", "to", "from"]
)
async def test_two_swarms_never_become_peers(one: SwarmKey | None, other: SwarmKey | None) -> None:
    a, b = make_host(key=one), make_host(key=other)
    up: list[object] = []

    async def note(host: LibP2pHost) -> None:
        up.append(await anext(host.watch()))

    async with running(a, b), trio.open_nursery() as nursery:
        nursery.start_soon(note, a)
        nursery.start_soon(note, b)
        with pytest.raises(NotAdmitted):
            await b.connect(a.addresses()[0])
        with pytest.raises(PeerUnreachable):
            await b.open(a.peer, "/echo", timeout_s=3)
        await eventually(lambda: a.counters().connections == b.counters().connections == 0)
        assert up == a.connected() == b.connected() == []
        assert b.counters().failed_admissions >= 1
        nursery.cancel_scope.cancel()


async def test_an_open_swarm_takes_its_own_at_once() -> None:
    took_s = list[float]()
    for _ in range(3):  # one of them may meet a busy moment of the machine
        a, b = make_host(key=None), make_host(key=None)
        async with running(a, b):
            start = trio.current_time()
            await b.connect(a.addresses()[0])
            await call(b, a)
            await call(a, b)
            took_s.append(trio.current_time() - start)
    assert min(took_s) < 0.5  # a stranger waits for one second


async def test_a_restarted_peer_is_reachable_at_once_on_another_port() -> None:
    b, seed = make_host(), os.urandom(32)
    async with running(b):
        for _ in range(3):
            a = make_host(seed=seed)
            async with running(a):
                with trio.fail_after(3):  # a silent connection is known to be dead after 10 s
                    await b.connect(a.addresses()[0])
                await call(b, a)
            await eventually(lambda: not b.connected())


async def test_peers_that_dial_each_other_at_once_settle() -> None:
    for _ in range(10):
        a, b = make_host(), make_host()
        async with running(a, b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.connect, b.addresses()[0])
                nursery.start_soon(b.connect, a.addresses()[0])
            assert (a.connected(), b.connected()) == ([b.peer], [a.peer])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, a, b)
                nursery.start_soon(call, b, a)
            assert a.peers()[0].connections == b.peers()[0].connections <= 2


async def test_many_callers_share_one_dial() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        b.learn(a.peer, a.addresses())
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call, b, a)
        assert a.counters().accepted == 1


async def test_a_caller_that_gives_up_does_not_stop_the_dial_for_others() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        b.learn(a.peer, a.addresses())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, b, a)
            with trio.move_on_after(0.001):
                await b.connect(a.peer)
        assert a.counters().accepted == 1


async def test_too_many_connections_to_one_peer_cost_the_oldest() -> None:
    seed = os.urandom(32)
    a = make_host(limits=Limits(per_peer=2))
    async with running(a):
        hosts = [make_host(seed=seed) for _ in range(4)]  # one identity, dialling four times
        async with running(*hosts):
            for host in hosts:
                await host.connect(a.addresses()[0])
            await eventually(lambda: a.counters().connections == 2)
            await eventually(lambda: [bool(host.connected()) for host in hosts] == [0, 0, 1, 1])
            await call(hosts[3], a)
            # Of two connections, the newest is used: the older may lead to a machine that is gone.
            newest = hosts[3].counters().bytes_in
            await call(a, hosts[3], bytes(50_000))
            assert hosts[3].counters().bytes_in - newest > 50_000


async def test_inbound_over_the_limit_is_refused_and_those_inside_stay() -> None:
    a = make_host(limits=Limits(connections=1))
    b, c = make_host(), make_host()
    async with running(a, b, c):
        await b.connect(a.addresses()[0])
        with pytest.raises(PeerUnreachable):
            await c.connect(a.addresses()[0])
        assert a.counters().refused == 1
        await call(b, a)


async def test_a_kept_peer_is_dialled_again_until_it_is_forgotten() -> None:
    b, seed = make_host(), os.urandom(32)
    first = make_host(seed=seed)
    async with running(b):
        async with running(first):
            address = first.addresses()[0]
            b.keep(first.peer, [address])
            await eventually(lambda: b.connected() == [first.peer])
        await eventually(lambda: not b.connected())
        second = make_host(seed=seed, listen=address.split("/p2p/")[0])
        async with running(second):
            await eventually(lambda: b.connected() == [second.peer])
            b.forget(second.peer)
            await b.disconnect(second.peer)
            await eventually(lambda: not b.connected())
            await trio.sleep(0.8)
            assert b.connected() == []


async def test_news_of_a_kept_peer_that_moved_ends_the_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.host.keeping.Backoff", lambda: Backoff(delay_s=30.0))
    b, seed = make_host(), os.urandom(32)
    gone = make_host(seed=seed)
    async with running(gone):
        address = gone.addresses()[0]
    async with running(b):
        b.keep(gone.peer, [address])
        await trio.sleep(0.5)  # by now it has failed, and waits for a quarter of a minute
        moved = make_host(seed=seed)
        async with running(moved):
            b.keep(moved.peer, moved.addresses())
            await eventually(lambda: b.connected() == [moved.peer], within_s=2.0)


async def test_every_watcher_learns_who_is_here_and_who_comes_and_goes() -> None:
    a, b = make_host(), make_host()
    async with running(a):
        early = a.watch()
        async with running(b):
            await b.connect(a.addresses()[0])
            assert await anext(early) == PeerUp(b.peer)
            late = a.watch()
            assert await anext(late) == PeerUp(b.peer)
        for watcher in (early, late):
            with trio.fail_after(3):
                assert await anext(watcher) == PeerDown(b.peer)


async def test_bytes_are_those_that_crossed_the_sockets() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        await b.connect(a.addresses()[0])
        handshake = b.counters().bytes_out
        assert 300 < handshake < 3000  # Noise, negotiation and admission are in it
        stream = await b.open(a.peer, "/count", timeout_s=3)
        await stream.write(bytes(1_000_000))
        await stream.finish()
        await stream.read_exactly(8)
        sent = b.counters().bytes_out
        assert 1_000_000 < sent - handshake < 1_010_000  # 0.1 % of framing and encryption
        await eventually(lambda: a.counters().bytes_in == b.counters().bytes_out)
        await eventually(lambda: a.counters().bytes_out == b.counters().bytes_in)
        assert b.peers()[0].bytes_out == b.counters().bytes_out


async def test_ipv6_and_all_interfaces_are_listened_on_and_told_with_real_ports() -> None:
    hosts = [make_host(listen="/ip6/::1/tcp/0"), make_host(listen="/ip4/0.0.0.0/tcp/0")]
    b = make_host()
    async with running(*hosts, b):
        for host in hosts:
            for address in host.addresses():
                assert parse_address(address).port > 0
                assert not parse_address(address).is_unspecified
        await b.connect(hosts[0].addresses()[0])
        assert b.peers()[0].address.startswith("/ip6/::1/tcp/")
        await eventually(lambda: hosts[0].connected())
        assert hosts[0].peers()[0].address.startswith("/ip6/::1/tcp/")


@pytest.mark.parametrize(
    ("listen", "said"),
    [("/ip4/127.0.0.1", "not an address"), ("/dns/localhost/tcp/0", "cannot listen on a name")],
)
async def test_an_address_that_cannot_be_listened_on_is_named(listen: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        await make_host(listen=listen).run()


async def test_a_port_that_another_host_has_is_not_shared_silently() -> None:
    a = make_host()
    async with running(a):
        with pytest.raises(UsageError, match="in use"):
            await make_host(listen=a.addresses()[0]).run()


async def test_asking_for_the_impossible_says_why() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        with pytest.raises(PeerUnreachable, match="no address known"):
            await b.connect(a.peer)
        with pytest.raises(PeerUnreachable, match="this node itself"):
            await b.connect(b.addresses()[0])
        with pytest.raises(UsageError, match="names no peer"):
            await b.connect("/ip4/127.0.0.1/tcp/1")
        await b.connect(a.addresses()[0])
        with pytest.raises(PeerUnreachable, match="does not speak /absent"):
            await (await b.open(a.peer, "/absent", timeout_s=3)).read(1)
        with pytest.raises(PeerUnreachable, match="does not speak /absent or /neither"):
            await b.open(a.peer, ["/absent", "/neither"], timeout_s=3)
        # The right place, the wrong name: whoever answers there is not whom we asked for.
        b.learn(PeerId(b.peer[:-1] + "1"), [])
        somebody = make_host()
        with pytest.raises(PeerUnreachable):
            await b.connect(somebody.peer, [a.addresses()[0].split("/p2p/")[0]])


async def test_opening_a_stream_to_a_peer_that_is_silent_ends_in_time() -> None:
    b, somebody = make_host(), make_host()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with running(b):
            b.learn(somebody.peer, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"])
            start = trio.current_time()
            with pytest.raises(DeadlineExceeded):
                await b.open(somebody.peer, "/echo", timeout_s=0.2)
            assert trio.current_time() - start < 2  # a dial has 5 s


async def test_a_finding_on_the_lan_is_tried_once_and_kept_only_if_admitted() -> None:
    a, friend, stranger = make_host(), make_host(), make_host(key=OTHER_KEY)
    async with running(a, friend, stranger):
        nobody = [Found(make_host().peer, ("/ip4/127.0.0.1/tcp/1",)) for _ in range(3)]
        for found in (*nobody, *(Found(h.peer, tuple(h.addresses())) for h in (stranger, friend))):
            a.found(found)
            a.found(found)
        await eventually(lambda: a.connected() == [friend.peer])
        await eventually(lambda: a.counters().failed_admissions)
        await trio.sleep(0.5)
        assert a.counters().failed_admissions == 1
        assert [a.addresses_of(one.peer) for one in nobody] == [[], [], []]
        await friend.disconnect(a.peer)
        await eventually(lambda: a.connected() == [])
        await eventually(lambda: a.connected() == [friend.peer])  # it is kept


async def test_who_never_came_gives_its_kept_place_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.host.keeping.KEPT_MAX", 2)
    a, first, second, third = [make_host() for _ in range(4)]
    async with running(a, first, second, third):
        a.keep(first.peer, first.addresses())
        await eventually(lambda: a.connected() == [first.peer])
        a.keep(make_host().peer, ["/ip4/127.0.0.1/tcp/1"])
        a.keep(second.peer, second.addresses())
        await eventually(lambda: len(a.connected()) == 2)
        a.keep(third.peer, third.addresses())  # the places of those who are here are theirs
        await trio.sleep(0.5)
        assert set(a.connected()) == {first.peer, second.peer}
