"""STUN and the probe's driver over real hosts and sockets."""

import contextlib
import itertools
import secrets
import time
from dataclasses import replace

import pytest
import trio

from node.host import interfaces
from node.host.addresses import Address
from node.host.service import LibP2pHost
from node.reach import stun, watch
from node.reach.autonat import DialBackServer
from node.reach.identify import seen_by
from node.reach.stun_sockets import CALM_S, StunServer, ask, look, look_one
from node.reach.watch import Probe
from tests.daemon.hosts import KEY, PATIENCE_S, eventually, running
from tests.daemon.outside import NETWORKS, anybody, connect, make, meeting, own


async def tcp(address: Address) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def closed(stream: trio.SocketStream) -> bool:
    with trio.fail_after(PATIENCE_S):
        try:
            return await stream.receive_some(100) == b""
        except trio.BrokenResourceError:
            return True


# STUN


async def test_the_listening_port_tells_anybody_its_address() -> None:
    async with meeting(1) as (host,):
        server = StunServer(lambda: 4242)
        host.sorter.stun = server.serve
        async with await tcp(own(host)) as stream:
            for _ in range(2):
                answer = await ask(stream)
                name = stream.socket.getsockname()
                assert answer.mapped == Address("ip4", name[0], name[1])
                assert answer.other == Address("ip4", NETWORKS[0], 4242)
            assert server.connections == 1
        # and libp2p goes on at the same port
        other = make(1)
        async with running(other):
            await connect(other, host)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x01" + bytes(19),
        b"\x00\x01\x00\x00" + bytes(16),  # no cookie
        stun.encode_answer(stun.Request(bytes(12)), Address("ip4", "1.2.3.4", 5), None),
        b"\x00\x01\xff\xfc\x21\x12\xa4\x42" + bytes(12),  # 65 kB to come
        bytes(64),
    ],
)
async def test_what_is_no_request_ends_its_connection(sent: bytes) -> None:
    async with meeting(1) as (host,):
        host.sorter.stun = StunServer(lambda: None).serve
        async with await tcp(own(host)) as stream:
            await stream.send_all(sent)
            assert await closed(stream)
        async with await tcp(own(host)) as stream:
            assert (await ask(stream)).other is None


async def test_an_attribute_that_must_be_understood_is_refused_by_name() -> None:
    async with meeting(1) as (host,):
        host.sorter.stun = StunServer(lambda: None).serve
        request = stun.encode_request(bytes(12))
        change = b"\x00\x03\x00\x04\x00\x00\x00\x02"  # CHANGE-REQUEST of RFC 5780
        async with await tcp(own(host)) as stream:
            await stream.send_all(request[:2] + b"\x00\x08" + request[4:] + change)
            answer = await stream.receive_some(200)
            assert answer[:2] == b"\x01\x11"
            assert b"\x00\x00\x04\x14" in answer
            assert answer.endswith(b"\x00\x0a\x00\x02\x00\x03\x00\x00")


async def test_without_stun_such_bytes_are_nobodys() -> None:
    async with meeting(1) as (host,), await tcp(own(host)) as stream:
        await stream.send_all(stun.encode_request(bytes(12)))
        await eventually(lambda: host.counters().failed_handshakes == 1)


async def test_looking_from_a_fresh_port_needs_no_router_to_see_that_there_is_none() -> None:
    async with meeting(3) as (host, a, b):
        for one in (a, b):
            one.sorter.stun = StunServer(lambda: None).serve
        found = await look(host.listeners[0], [own(a), own(b)])
        assert found is not None
        assert (found.mapping, found.servers) == ("none", 2)
        mapped = await look_one(host.listeners[0], [Address("ip4", NETWORKS[1], 1), own(b)])
        assert mapped is not None
        assert mapped.host == NETWORKS[0]


# the driver


async def test_the_probe_finds_an_open_host_public_and_says_why() -> None:
    async with meeting(3) as (host, a, b), trio.open_nursery() as nursery:
        probes = [Probe(one, is_outside=anybody) for one in (host, a, b)]
        for probe in probes:
            await nursery.start(probe.run)
        assert probes[0].machine.verdict == "unknown"
        await connect(host, a)
        await connect(host, b)
        await eventually(lambda: probes[0].machine.verdict == "public", within_s=PATIENCE_S)
        machine = probes[0].machine
        await eventually(lambda: machine.behaviour is not None and machine.behaviour.servers == 2)
        assert machine.behaviour is not None
        assert machine.behaviour.mapping == "none"
        assert machine.addresses() == [own(host)]
        assert probes[0].stun_port is not None
        second = Address("ip4", NETWORKS[0], probes[0].stun_port)
        async with await tcp(second) as stream:
            assert (await ask(stream)).other == second
        assert await probes[0].predicted(16) == []
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match="all attempts to connect"):
        await tcp(second)


async def test_between_loopback_addresses_nothing_is_probed() -> None:
    async with meeting(2) as (host, a), trio.open_nursery() as nursery:
        probes = [Probe(one) for one in (host, a)]
        for probe in probes:
            await nursery.start(probe.run)
        await connect(host, a)
        await trio.sleep(0.2)
        assert [probe.machine.verdict for probe in probes] == ["unknown"] * 2
        assert [probe.stun_port for probe in probes] == [None] * 2
        assert host.counters().connections == a.counters().connections == 1
        nursery.cancel_scope.cancel()


async def test_for_whom_a_hole_was_made_tells_nothing_of_who_else_gets_in() -> None:
    async with meeting(3) as (host, a, b), trio.open_nursery() as nursery:
        probe = Probe(host, is_outside=anybody, poll_s=0.05)
        await nursery.start(probe.run)
        await connect(host, a)
        await connect(host, b)
        family = probe.machine.families["ip4"]
        await eventually(lambda: len(family.vantages) == 2)
        with contextlib.suppress(OSError):  # our anchor may hold that very connection
            host.holes.connect(own(b)).close()
        await eventually(lambda: [one.peer for one in family.vantages] == [a.peer])
        probe.restart()
        await eventually(lambda: len(family.vantages) == 2)
        nursery.cancel_scope.cancel()


async def test_a_machine_that_slept_looks_at_everything_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with meeting(2) as (host, a), trio.open_nursery() as nursery:
        slept, told = [0.0], list[float]()
        probe = Probe(
            host,
            is_outside=anybody,
            boot_s=lambda: trio.current_time() + slept[0],
            poll_s=0.05,
        )
        monkeypatch.setattr(host, "network_changed", lambda: told.append(trio.current_time()))
        a.sorter.stun = StunServer(lambda: None).serve
        DialBackServer(a, list, anybody)
        await nursery.start(probe.run)
        await connect(host, a)
        await eventually(lambda: probe.machine.verdict == "public")
        assert told == []
        candidate = probe.machine.families["ip4"].candidates[own(host)]
        slept[0] = 60.0
        await eventually(lambda: len(told) == 1)
        await eventually(lambda: probe.machine.verdict == "public")
        assert probe.machine.families["ip4"].candidates[own(host)] is not candidate
        nursery.cancel_scope.cancel()


async def test_news_at_the_moment_of_a_change_are_not_lost_with_the_old_network() -> None:
    async with meeting(2) as (host, a), trio.open_nursery() as nursery:
        probe = Probe(host, is_outside=anybody)
        DialBackServer(a, list, anybody)
        await nursery.start(probe.run)
        await connect(host, a)
        await eventually(lambda: probe.machine.verdict == "public")
        probe.set_mapped({})  # the driver is to look what is due, and then
        probe.restart()  # its looks are cancelled
        await eventually(lambda: probe.machine.verdict == "public")
        nursery.cancel_scope.cancel()


async def test_who_was_dialled_learns_from_the_other_at_which_address() -> None:
    async with meeting(2) as (host, a):
        await connect(a, host)
        await eventually(lambda: host.connected())
        assert await seen_by(a, host.peer) is not None  # its own ephemeral port: of no use
        seen = await seen_by(host, a.peer)
        assert seen == own(host)
        assert await seen_by(host, make(2).peer) is None


async def test_an_anchor_that_hangs_up_is_replaced() -> None:
    async with meeting(3) as (host, a, b), trio.open_nursery() as nursery:
        probe = Probe(host, is_outside=anybody)
        held = {one.peer: list[trio.SocketStream]() for one in (a, b)}

        async def serve(one: LibP2pHost, stream: trio.SocketStream) -> None:
            held[one.peer].append(stream)
            await server.serve(stream)

        server = StunServer(lambda: None)
        for one in (a, b):
            one.sorter.stun = lambda stream, one=one: serve(one, stream)
        await nursery.start(probe.run)
        await connect(host, a)
        await connect(host, b)
        family = probe.machine.families["ip4"]
        await eventually(lambda: family.observed is not None)
        assert family.anchor is not None
        first = family.anchor.peer
        for stream in held[first]:
            stream.socket.close()
        await eventually(lambda: family.anchor is not None and family.anchor.peer != first)
        nursery.cancel_scope.cancel()


async def test_an_anchor_that_changes_its_mind_is_replaced_and_moves_nothing() -> None:
    """A connection that stands is mapped as before, so that the server lies."""
    async with meeting(3) as (host, a, b), trio.open_nursery() as nursery:
        probe = Probe(host, is_outside=anybody)
        port = itertools.count(1)

        async def lie(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(stun.HEADER_BYTES):
                    told = Address("ip4", "11.1.1.1", next(port))
                    await stream.send_all(
                        stun.encode_answer(stun.decode_request(bytes(data)), told, None)
                    )
            stream.socket.close()

        for one in (a, b):
            one.sorter.stun = lie
        await nursery.start(probe.run)
        await connect(host, a)
        family = probe.machine.families["ip4"]
        await eventually(lambda: family.observed is not None and family.anchor is not None)
        first = family.anchor
        assert first is not None
        await connect(host, b)
        await trio.sleep(CALM_S)
        anchor = probe._anchors["ip4"]  # pyright: ignore[reportPrivateUsage]
        anchor.ask_now()
        await eventually(lambda: family.anchor is not None and family.anchor.peer != first.peer)
        nursery.cancel_scope.cancel()


async def test_nobodys_question_gets_at_our_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of our networks, and our router, who lets in more from here than from outside."""
    networks = ["11.7.0.0/24"]
    monkeypatch.setattr(watch, "interface_networks", lambda: networks)
    host = LibP2pHost(secrets.token_bytes(32), KEY, ["/ip4/0.0.0.0/tcp/0"])
    async with running(host), trio.open_nursery() as nursery:
        probe = Probe(host)
        await nursery.start(probe.run)
        probe.machine.observed(Address("ip4", "11.8.0.1", 4001), trio.current_time())
        near = [probe._is_near(one) for one in ("11.7.0.9", "11.8.0.1", "11.9.0.1")]  # pyright: ignore[reportPrivateUsage]
        assert near == [True, True, False]
        nursery.cancel_scope.cancel()


async def test_a_machine_without_a_network_notices_when_it_gets_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = ["127.0.0.1"]
    monkeypatch.setattr(interfaces, "interface_hosts", lambda _: hosts)
    host = LibP2pHost(secrets.token_bytes(32), KEY, ["/ip4/0.0.0.0/tcp/0"])
    async with running(host), trio.open_nursery() as nursery:
        probe, told = Probe(host, poll_s=0.02), list[bool]()
        monkeypatch.setattr(host, "network_changed", lambda: told.append(True))
        await nursery.start(probe.run)
        hosts[:] = ["192.168.1.2"]
        await eventually(lambda: told == [True])
        assert [one.host for one in probe.machine.addresses()] == hosts
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="there sleep looks the same")
async def test_a_clock_that_is_set_is_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async with meeting(1) as (host,), trio.open_nursery() as nursery:
        probe, told = Probe(host, is_outside=anybody, poll_s=0.02), list[bool]()
        monkeypatch.setattr(host, "network_changed", lambda: told.append(True))
        await nursery.start(probe.run)
        await trio.sleep(0.1)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        await trio.sleep(0.1)
        assert told == []
        nursery.cancel_scope.cancel()


async def test_a_peer_cannot_send_us_to_somebody_else_for_stun() -> None:
    async with meeting(2) as (host, a), trio.open_nursery() as nursery:
        probe = Probe(host, is_outside=anybody)
        await nursery.start(probe.run)
        host.learn(a.peer, [f"/ip4/127.9.0.9/tcp/25/p2p/{a.peer}", *a.addresses()])
        await connect(a, host)
        await eventually(lambda: host.connected())
        seen = host.peers()[0]
        assert seen.direction == "in"
        found = probe._vantage(replace(seen, address=str(own(a))))  # pyright: ignore[reportPrivateUsage]
        assert found.stun == (own(a),)
        nursery.cancel_scope.cancel()
