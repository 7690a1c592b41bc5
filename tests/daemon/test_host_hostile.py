"""Hostile and foreign peers on a real socket, and honest ones that push beside them."""

import itertools
import random
import secrets
import tracemalloc
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader

from node.host import yamux
from node.host import yamux_frames as frames
from node.host.addresses import parse_address
from node.host.negotiate import select
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.host.tcp import CountedTcp
from node.host.views import Traffic
from tests.daemon.hosts import call, echo, eventually, exchange, make_host, running
from wire.errors import PeerUnreachable
from wire.ports import PUSH_MAX, Stream


class Echo:
    """A sink that pushes back what comes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_over = trio.Event()

    def on_data(self, data: bytes | memoryview) -> None:
        for at in range(0, len(data), PUSH_MAX):  # what came before it was attached comes at once
            self.stream.push(bytes(data[at : at + PUSH_MAX]), now=True)

    def on_room(self) -> None:
        return

    def on_end(self, error: PeerUnreachable | None) -> None:
        self.is_over.set()


class Collect(Echo):
    """A sink that keeps what comes."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.data = bytearray()
        self.room = trio.lowlevel.ParkingLot()
        self.news = trio.lowlevel.ParkingLot()

    def on_data(self, data: bytes | memoryview) -> None:
        self.data += data
        self.news.unpark_all()

    def on_room(self) -> None:
        self.room.unpark_all()


async def push_echo(stream: Stream) -> None:
    sink = Echo(stream)
    stream.attach(sink)
    await sink.is_over.wait()


async def push_all(stream: HostStream, sink: Collect, data: bytes, chance: random.Random) -> None:
    """Push in pieces of any size; cancelled, it stops between two."""
    at = 0
    while at < len(data):
        while not stream.has_room:
            await sink.room.park()
        size = chance.choice((1, 40, 5000, PUSH_MAX))
        stream.push(data[at : at + size], now=chance.random() < 0.5)
        at += size
        if chance.random() < 0.1:
            await trio.lowlevel.checkpoint()


async def test_pushed_bytes_come_back_whole_while_others_are_cancelled() -> None:
    a, b = make_host(), make_host()
    for host in (a, b):
        host.serve("/push", push_echo)
    chance = random.Random(5)
    async with running(a, b):
        await b.connect(a.addresses()[0])
        stream = await b.open(a.peer, "/push", timeout_s=3)
        sink = Collect(stream)
        stream.attach(sink)
        data = chance.randbytes(8_000_000)

        async def disturb() -> None:
            while True:
                with trio.move_on_after(chance.random() * 0.01):
                    other = await b.open(a.peer, "/count", timeout_s=3)
                    while True:
                        await other.write(bytes(100_000))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disturb)
                await push_all(stream, sink, data, chance)
                while len(sink.data) < len(data):
                    await sink.news.park()
                nursery.cancel_scope.cancel()
        assert sink.data == data
        assert b.peers()[0].connections == 1
        await call(b, a)


async def test_a_server_that_returns_ends_its_attached_stream_for_both() -> None:
    a, b = make_host(), make_host()

    async def return_at_once(stream: Stream) -> None:
        stream.attach(Echo(stream))

    a.serve("/brief", return_at_once)
    async with running(a, b):
        await b.connect(a.addresses()[0])
        stream = await b.open(a.peer, "/brief", timeout_s=3)
        sink = Collect(stream)
        stream.attach(sink)
        with trio.fail_after(3):
            await sink.is_over.wait()
        await call(b, a)


async def test_one_byte_a_moment_does_not_make_a_handshake_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = make_host(), make_host()
    monkeypatch.setattr("node.host.swarm.HANDSHAKE_S", 0.6)
    hello = b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(32)  # well-formed, and slow
    async with running(a, b):
        address = parse_address(a.addresses()[0])

        async def drip(number: int) -> None:
            tcp = await trio.open_tcp_stream(address.host, address.port)
            async with tcp:
                try:
                    for byte in hello:
                        await tcp.send_all(bytes([byte]))
                        await trio.sleep(0.03 + number * 0.001)
                except trio.BrokenResourceError:
                    pass

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(drip, number)
            await trio.sleep(0.2)
            assert a.counters().connections == 20
            await b.connect(a.addresses()[0])
            await call(b, a)
            await eventually(lambda: a.counters().connections == 1)
            assert a.counters().failed_handshakes == 20
            nursery.cancel_scope.cancel()


async def foreign_yamux(nursery: trio.Nursery, host: LibP2pHost, upgrader: Any) -> Yamux:
    """What py-libp2p itself would dial us with: its own Noise, Yamux and negotiation."""
    address = parse_address(host.addresses()[0])
    tcp = CountedTcp(await trio.open_tcp_stream(address.host, address.port), Traffic())
    peer = ID.from_base58(host.peer)
    secured = await upgrader.upgrade_security(RawConnection(tcp, initiator=True), True, peer)
    muxed = await upgrader.upgrade_connection(secured, peer)
    assert isinstance(muxed, Yamux)
    nursery.start_soon(muxed.start)
    await muxed.event_started.wait()
    return muxed


async def test_another_implementation_connects_with_plain_noise(nursery: trio.Nursery) -> None:
    host = LibP2pHost(secrets.token_bytes(32), None, ["/ip4/127.0.0.1/tcp/0"])
    host.serve("/echo", echo)
    key = create_new_key_pair()
    noise = NoiseTransport(key, create_new_x25519_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE: noise}, {TProtocol(YAMUX): Yamux})
    async with running(host):
        muxed = await foreign_yamux(nursery, host, upgrader)
        await eventually(host.connected)  # an open swarm takes in whoever stays
        stream: Any = await muxed.open_stream()
        assert await select(stream, ["/echo"]) == "/echo"
        data = bytes(range(256)) * 2000
        async with trio.open_nursery() as both:
            both.start_soon(stream.write, data)
            received = b""
            while len(received) < len(data):
                received += await stream.read(65536)
        assert received == data
        identify: Any = await muxed.open_stream()
        assert await select(identify, ["/ipfs/id/1.0.0"]) == "/ipfs/id/1.0.0"
        assert b"/echo" in await identify.read(4096)
        await muxed.close()


async def test_the_first_protocol_that_the_peer_speaks_is_opened() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        await b.connect(a.addresses()[0])
        stream = await b.open(a.peer, ["/echo/2", "/echo", "/count"], timeout_s=3)
        assert stream.protocol == "/echo"
        await exchange(stream, b"hello")
        with pytest.raises(PeerUnreachable, match=r"/echo/2 or /echo/3"):
            await b.open(a.peer, ["/echo/2", "/echo/3"], timeout_s=3)


async def test_ten_thousand_half_open_streams_hold_no_more_than_the_cap() -> None:
    a, b, c = make_host(), make_host(), make_host()
    async with running(a, b, c):
        for host in (b, c):
            await host.connect(a.addresses()[0])
        honest = await c.open(a.peer, "/echo", timeout_s=3)
        await exchange(honest, b"before")
        connections = b._sessions._peers  # pyright: ignore[reportPrivateUsage]
        muxed = connections.of(a.peer)[0].muxed
        # Numbers that the honest muxer never gives, opened and never named.
        numbers = itertools.count(1_000_001 if muxed.is_initiator else 1_000_002, 2)
        tracemalloc.start()
        try:
            for _ in range(100):
                for number in itertools.islice(numbers, 100):
                    muxed.send_control(frames.pack(frames.WINDOW_UPDATE, frames.SYN, number, 0))
                await exchange(honest, b"during")
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        theirs = a._sessions._peers.of(b.peer)[0].muxed  # pyright: ignore[reportPrivateUsage]
        held = len(theirs.streams)
        assert yamux.STREAMS_UNTRUSTED_MAX < held <= yamux.STREAMS_IN_MAX + 1  # and our ping's
        assert grown < 4_000_000  # of 256 tasks, usual 1.6 MB; the refused 9,744 leave nothing
        await call(c, a)
        assert set(a.connected()) == {b.peer, c.peer}
