"""Strangers: who does the handshake and has no key gets identify, ping, and five seconds."""

import contextlib
import secrets
from collections.abc import Awaitable, Callable

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamError

from node.host.addresses import parse_address
from node.host.admission import ADMIT, Hello, Proof
from node.host.negotiate import select
from node.host.service import LibP2pHost
from node.host.tcp import CountedTcp
from node.host.yamux import MuxedConnection
from tests.daemon.hosts import PATIENCE_S, eventually, make_host, running
from wire.codec import encode
from wire.frames import pack
from wire.ports import Stream


class Stranger:
    """A libp2p node that does the handshake and then what the test says."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.host = LibP2pHost(secrets.token_bytes(32), None, [])
        self._nursery = nursery

    async def handshake(self, host: LibP2pHost) -> MuxedConnection:
        address = parse_address(host.addresses()[0])
        tcp = await trio.open_tcp_stream(address.host, address.port)
        swarm = self.host._swarm  # pyright: ignore[reportPrivateUsage]
        muxed = await swarm.secure(CountedTcp(tcp, swarm.traffic), host.peer)
        self._nursery.start_soon(muxed.start)
        return muxed


async def test_a_stranger_gets_identify_and_ping_and_nothing_else(nursery: trio.Nursery) -> None:
    a = make_host()
    async with running(a):
        muxed = await Stranger(nursery).handshake(a)
        for protocol in ("/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", ADMIT):
            assert await select(await muxed.open_stream(), [protocol]) == protocol
        with trio.move_on_after(0.3) as waited:
            await select(await muxed.open_stream(), ["/echo"])
        assert waited.cancelled_caught
        assert a.connected() == []
        await muxed.close()


async def test_a_stream_that_waits_for_admission_never_reaches_its_server_if_that_fails(
    nursery: trio.Nursery,
) -> None:
    a, reached = make_host(), list[object]()

    async def note(stream: Stream) -> None:
        reached.append(stream.peer)

    a.serve("/note", note)
    async with running(a):
        stranger = Stranger(nursery)
        muxed = await stranger.handshake(a)
        early = await muxed.open_stream()
        nursery.start_soon(outlast, select, early, ["/note"])
        admit = await muxed.open_stream()
        await select(admit, [ADMIT])
        hello, proof = encode(Hello(bytes(32))), encode(Proof(bytes(32)))
        await admit.write(pack(hello) + pack(proof))
        with trio.fail_after(4):  # without a word it has 5 s
            await muxed.event_closed.wait()
        await eventually(lambda: a.counters().connections == 0)
        assert reached == []


async def outlast(attempt: Callable[..., Awaitable[object]], *args: object) -> None:
    with contextlib.suppress(MuxedStreamError):
        await attempt(*args)


async def test_a_half_open_stranger_is_gone_after_five_seconds(nursery: trio.Nursery) -> None:
    a = make_host()
    async with running(a):
        muxed = await Stranger(nursery).handshake(a)
        start = trio.current_time()
        with trio.fail_after(7):
            await muxed.event_closed.wait()
        assert 4 < trio.current_time() - start < 7
        await eventually(lambda: a.counters().connections == 0)
        assert a.counters().failed_admissions == 1


async def test_strangers_may_open_few_streams(nursery: trio.Nursery) -> None:
    a = make_host()
    async with running(a):
        muxed = await Stranger(nursery).handshake(a)
        refused = 0
        for _ in range(12):
            try:
                await select(await muxed.open_stream(), ["/ipfs/ping/1.0.0"])
            except Exception:
                refused += 1
        assert refused == 4
        await muxed.close()


async def test_a_stranger_that_sends_garbage_for_its_admission_is_gone_at_once(
    nursery: trio.Nursery,
) -> None:
    for garbage in (pack(b"\xff" * 40), b"\xff" * 400, pack(encode(Proof(bytes(32))))):
        a = make_host()
        async with running(a):
            muxed = await Stranger(nursery).handshake(a)
            admit = await muxed.open_stream()
            await select(admit, [ADMIT])
            await admit.write(garbage)
            with trio.fail_after(4):  # without a word it has 5 s
                await muxed.event_closed.wait()
            await eventually(lambda a=a: a.counters().failed_admissions == 1)


async def test_what_follows_the_proof_at_once_is_a_members() -> None:
    a, data = make_host(), bytes(300_000)  # more than a stranger may send
    for _ in range(4):
        b = make_host()
        async with running(a, b):
            b.learn(a.peer, a.addresses())
            async with trio.open_nursery() as nursery:
                for _ in range(12):  # and more streams than a stranger may open
                    nursery.start_soon(send_and_count, b, a, data)
            assert b.peers()[0].connections == 1
            assert a.counters().failed_admissions == 0
        a = make_host()


async def send_and_count(host: LibP2pHost, other: LibP2pHost, data: bytes) -> None:
    stream = await host.open(other.peer, "/count", timeout_s=PATIENCE_S)
    await stream.write(data)
    await stream.finish()
    assert int.from_bytes(await stream.read_exactly(8), "big") == len(data)
