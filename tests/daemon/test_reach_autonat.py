"""AutoNAT over real hosts and sockets, both sides, and what each may be abused for."""

import contextlib
import secrets
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from node.host.addresses import Address
from node.host.service import LibP2pHost
from node.reach import autonat_wire
from node.reach.autonat import DialBackClient, DialBackServer
from node.reach.autonat_wire import DIAL_BACK, DIAL_REQUEST
from tests.daemon.hosts import PATIENCE_S, eventually, running
from tests.daemon.outside import NETWORKS, anybody, connect, make, meeting, own
from wire.errors import PeerUnreachable
from wire.frames import pack
from wire.ports import Stream


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


@pytest.mark.parametrize("dials_us", [False, True])
async def test_a_server_that_tells_the_nonce_without_dialling_is_not_believed(
    *, dials_us: bool
) -> None:
    async with meeting(2) as (host, server):
        client = DialBackClient(host)

        async def lie(stream: Stream) -> None:
            asked = autonat_wire.decode((await stream.read(1000))[1:])
            assert isinstance(asked, autonat_wire.DialRequest)
            back = await server.open(host.peer, DIAL_BACK, timeout_s=5.0)
            await back.write(autonat_wire.encode_back(asked.nonce))
            with contextlib.suppress(PeerUnreachable):
                await back.read(1)
            await stream.write(autonat_wire.encode_response(200, 0, 200))

        server.serve(DIAL_REQUEST, lie)
        if dials_us:
            await connect(server, host)
            await eventually(lambda: host.connected())
        else:
            await connect(host, server)
        assert await client.ask(server.peer, own(host)) == "no answer"


async def test_several_addresses_are_asked_about_one_after_the_other() -> None:
    async with asking() as (host, server, client), trio.open_nursery() as nursery:
        outcomes = list[str]()

        async def ask() -> None:
            outcomes.append(await client.ask(server.peer, own(host)))

        for _ in range(4):
            nursery.start_soon(ask)
        await eventually(lambda: outcomes == ["reached"] * 4)


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
