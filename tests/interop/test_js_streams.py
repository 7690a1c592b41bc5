"""js-libp2p and our host, both ways: TCP, Noise, Yamux, identify, ping, streams."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from node.host.service import LibP2pHost
from tests.daemon.hosts import KEY, eventually, make_host, running
from tests.interop.js_peer import PATIENCE_S, JsError, JsPeer, js_peer, needs_js
from wire.errors import PeerUnreachable
from wire.ids import PeerId

pytestmark = needs_js
BIG_BYTES = 3_000_001  # several windows of either side


@asynccontextmanager
async def both() -> AsyncIterator[tuple[LibP2pHost, JsPeer]]:
    """Our host, of an open swarm, and a js node."""
    ours = make_host(key=None)
    async with running(ours), js_peer() as js:
        yield ours, js


async def we_dial(ours: LibP2pHost, js: JsPeer) -> PeerId:
    return await ours.connect(js.addresses[0])


async def test_we_dial_js_and_it_knows_us() -> None:
    async with both() as (ours, js):
        assert await we_dial(ours, js) == js.peer
        told = await js.event("identify", peer=str(ours.peer))
        assert {"/echo", "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"} <= set(told["protocols"])
        assert told["addresses"]
        assert await ours.ping(PeerId(js.peer)) < 1.0
        assert await js.do("ping", peer=ours.peer) >= 0


async def test_js_dials_us_and_is_admitted_to_an_open_swarm() -> None:
    async with both() as (ours, js):
        assert await js.do("dial", address=ours.addresses()[0]) == ours.peer
        await eventually(lambda: ours.connected() == [js.peer])
        told = await js.event("identify", peer=str(ours.peer))
        assert "/echo" in told["protocols"]
        assert await js.do("ping", peer=ours.peer) >= 0
        assert await ours.ping(PeerId(js.peer)) < 1.0


async def test_a_closed_swarm_lets_no_js_node_in() -> None:
    ours = make_host(key=KEY)
    async with running(ours), js_peer() as js:
        with pytest.raises(PeerUnreachable, match="does not speak /shoal/noise-aes/1"):
            await ours.connect(js.addresses[0])
        await js.do("dial", address=ours.addresses()[0])
        with pytest.raises(JsError):
            await js.do("echo", peer=ours.peer, size=10)
        await js.event("disconnect", peer=str(ours.peer))
        assert ours.connected() == []


async def echo_of_ours(ours: LibP2pHost, peer: PeerId, size: int) -> bool:
    """Send to the other side's /echo, and compare what comes back."""
    stream = await ours.open(peer, "/echo", timeout_s=PATIENCE_S)
    data = bytes(at * 31 & 0xFF for at in range(1000)) * (size // 1000 + 1)
    back = bytearray()

    async def send() -> None:
        for at in range(0, size, 65536):
            await stream.write(data[at : min(at + 65536, size)])
        await stream.finish()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while part := await stream.read(65536):
                back += part
    return bytes(back) == data[:size]


async def test_a_large_echo_from_us_and_from_js() -> None:
    async with both() as (ours, js):
        peer = await we_dial(ours, js)
        assert await echo_of_ours(ours, peer, BIG_BYTES)
        assert await js.do("echo", peer=ours.peer, size=BIG_BYTES)


async def test_many_streams_at_once_from_us_and_from_js() -> None:
    async with both() as (ours, js):
        peer = await we_dial(ours, js)
        fine = list[bool]()

        async def ask_ours(size: int) -> None:
            fine.append(await echo_of_ours(ours, peer, size))

        async def ask_theirs(size: int) -> None:
            fine.append(await js.do("echo", peer=ours.peer, size=size))

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(ask_ours, 1 + 997 * number)
                nursery.start_soon(ask_theirs, 1 + 997 * number)
        assert fine == [True] * 120


async def test_a_protocol_that_is_not_there_is_refused_and_the_connection_stays() -> None:
    async with both() as (ours, js):
        peer = await we_dial(ours, js)
        with pytest.raises(JsError, match="UnsupportedProtocol"):
            await js.do("echo", peer=ours.peer, size=10, protocol="/nothing")
        with pytest.raises(PeerUnreachable):
            await ours.open(peer, "/nothing", timeout_s=PATIENCE_S)
        assert await js.do("echo", peer=ours.peer, size=10)
        assert await echo_of_ours(ours, peer, 10)


async def test_a_js_node_that_goes_and_comes_is_seen_to() -> None:
    async with both() as (ours, js):
        peer = await we_dial(ours, js)
        await js.do("hang_up", peer=ours.peer)
        await eventually(lambda: ours.connected() == [])
        await we_dial(ours, js)
        assert await echo_of_ours(ours, peer, 1000)
        await ours.disconnect(peer)
        await js.event("disconnect", peer=str(ours.peer))
