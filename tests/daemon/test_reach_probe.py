"""STUN, AutoNAT and the probe's driver over real hosts and sockets. Loopback addresses of different
networks stand for the Internet: all of 127/8 is this machine.
"""

import secrets
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
import trio

from node.host.addresses import Address
from node.host.service import LibP2pHost
from node.reach import autonat_wire, stun
from node.reach.autonat import DialBackClient, DialBackServer
from node.reach.autonat_wire import DIAL_BACK, DIAL_REQUEST
from node.reach.identify import seen_by
from node.reach.stun_sockets import StunServer, ask, look, look_one
from node.reach.watch import Probe
from tests.daemon.hosts import KEY, eventually, running
from wire.errors import PeerUnreachable
from wire.frames import pack
from wire.ports import Stream

NETWORKS = ("127.1.0.1", "127.2.0.1", "127.3.0.1")
PATIENCE_S = 10.0


def anybody(_host: str) -> bool:
    return True


def make(at: int) -> LibP2pHost:
    return LibP2pHost(secrets.token_bytes(32), KEY, [f"/ip4/{NETWORKS[at]}/tcp/0"])


@asynccontextmanager
async def meeting(count: int) -> AsyncGenerator[list[LibP2pHost]]:
    """Hosts of which the first is connected to the others."""
    hosts = [make(at) for at in range(count)]
    async with running(*hosts):
        yield hosts


async def connect(host: LibP2pHost, other: LibP2pHost) -> None:
    await host.connect(other.peer, other.addresses())


def own(host: LibP2pHost) -> Address:
    return host.listeners[0].address


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


# AutoNAT


@asynccontextmanager
async def asking() -> AsyncGenerator[tuple[LibP2pHost, LibP2pHost, DialBackClient]]:
    """Two hosts; the first asks, the second dials."""
    async with meeting(2) as (host, server):
        client = DialBackClient(host)
        DialBackServer(server, lambda: [NETWORKS[1]], anybody)
        await connect(host, server)
        with trio.fail_after(PATIENCE_S):
            yield host, server, client


async def test_an_address_where_we_listen_is_reached_and_another_is_not() -> None:
    async with asking() as (host, server, client):
        before = server.peers()[0].connections
        assert await client.ask(server.peer, own(host)) == "reached"
        with _unused() as place:
            assert await client.ask(server.peer, place) == "failed"
        assert server.peers()[0].connections == before
        await eventually(lambda: host.counters().connections == 1)
        assert host.counters().failed_admissions == 0


async def test_a_foreign_address_is_dialled_for_a_price_and_tells_nothing_of_who_is_there() -> None:
    async with asking() as (host, server, client), _somebody() as somebody:
        paid = host.counters().bytes_out
        assert await client.ask(server.peer, somebody) == "failed"
        assert host.counters().bytes_out - paid > 30_000
        stream = await host.open(server.peer, DIAL_REQUEST, timeout_s=5.0)
        await stream.write(autonat_wire.encode_request([somebody], 1))
        await stream.read(100)
        await stream.write(autonat_wire.encode_data(4096) * 25)
        answer = autonat_wire.decode((await stream.read(100))[1:])
        assert answer == autonat_wire.DialResponse(200, 0, autonat_wire.DIAL_ERROR)


@pytest.mark.parametrize(
    "address",
    [
        Address("ip4", NETWORKS[1], 5000),  # the server itself
        Address("ip4", NETWORKS[2], 22),  # other people's services
    ],
)
async def test_what_a_server_does_not_dial_is_no_answer(address: Address) -> None:
    async with asking() as (_, server, client):
        assert await client.ask(server.peer, address) == "no answer"


async def test_who_asks_too_often_gets_no_answer_and_others_do() -> None:
    async with asking() as (host, server, client):
        outcomes = [await client.ask(server.peer, own(host)) for _ in range(14)]
        assert outcomes == ["reached"] * 12 + ["no answer"] * 2
        other = make(2)
        second = DialBackClient(other)
        async with running(other):
            await connect(other, server)
            assert await second.ask(server.peer, own(other)) == "reached"


async def test_a_server_that_says_yes_without_dialling_is_not_believed() -> None:
    async with meeting(2) as (host, server):
        client = DialBackClient(host)

        async def lie(stream: Stream) -> None:
            await stream.read(1000)
            await stream.write(autonat_wire.encode_response(200, 0, 200))

        server.serve(DIAL_REQUEST, lie)
        await connect(host, server)
        assert await client.ask(server.peer, own(host)) == "no answer"


async def test_a_server_that_wants_too_many_bytes_does_not_get_them() -> None:
    async with meeting(2) as (host, server):
        client = DialBackClient(host)

        async def want(stream: Stream) -> None:
            await stream.read(1000)
            await stream.write(autonat_wire.encode_data_request(0, 1 << 30))
            await stream.read(1000)

        server.serve(DIAL_REQUEST, want)
        await connect(host, server)
        before = host.counters().bytes_out
        assert await client.ask(server.peer, own(host)) == "no answer"
        assert host.counters().bytes_out - before < 10_000


@pytest.mark.parametrize("sent", [b"", b"\x09" + bytes(9), b"\xff\xff\xff\xff", pack(b"\x08\x01")])
async def test_a_stranger_may_deliver_a_nonce_and_nothing_else(sent: bytes) -> None:
    host, stranger = make(0), LibP2pHost(secrets.token_bytes(32), None, [])
    DialBackClient(host)
    async with running(host, stranger):
        tcp_stream = await stranger.once.connect(own(host))
        async with stranger.once.stream(tcp_stream, host.peer, DIAL_BACK) as stream:
            await stream.write(sent)
            await stream.finish()
            with pytest.raises(PeerUnreachable):
                await stream.read_exactly(1)
        assert host.counters().server_errors == 0


async def test_a_stranger_may_not_ask_to_be_dialled() -> None:
    host, stranger = make(0), LibP2pHost(secrets.token_bytes(32), None, [])
    DialBackServer(host, list, anybody)
    async with running(host, stranger):
        tcp_stream = await stranger.once.connect(own(host))
        with trio.move_on_after(0.5) as waiting:  # the host waits for its admission
            async with stranger.once.stream(tcp_stream, host.peer, DIAL_REQUEST):
                raise AssertionError("it was let in")
        assert waiting.cancelled_caught


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x80\x80\x80\x80",
        pack(b""),
        pack(b"\x08\x01"),
        pack(bytes(4000)),
        autonat_wire.encode_response(200),
        autonat_wire.encode_data(5),
        pack(b"\x0a\x04\x0a\xff\xff\x7f"),
        b"\x00" * 100_000,
    ],
)
async def test_garbage_to_a_server_ends_its_stream_only(sent: bytes) -> None:
    async with asking() as (host, server, client):
        stream = await host.open(server.peer, DIAL_REQUEST, timeout_s=5.0)
        with trio.move_on_after(1.0):
            await stream.write(sent)
            await stream.finish()
            with pytest.raises(PeerUnreachable):
                await stream.read_exactly(1000)
        stream.drop()
        assert await client.ask(server.peer, own(host)) == "reached"
        assert server.counters().server_errors == 0


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
        host.holes.connect(replace(own(b), port=9)).close()  # the anchor may have its port
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
            wall=lambda: trio.current_time() + slept[0],
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


@contextmanager
def _unused() -> Generator[Address]:
    """A port of the first network where nobody listens, held so that it stays so."""
    with socket.socket() as sock:
        sock.bind((NETWORKS[0], 0))
        yield Address("ip4", NETWORKS[0], sock.getsockname()[1])


@asynccontextmanager
async def _somebody() -> AsyncGenerator[Address]:
    """A listener of somebody else, that says nothing."""
    async with trio.open_nursery() as nursery:
        listener = (await trio.open_tcp_listeners(0, host=NETWORKS[2]))[0]

        async def serve(stream: trio.SocketStream) -> None:
            await stream.aclose()

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield Address("ip4", NETWORKS[2], listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()
