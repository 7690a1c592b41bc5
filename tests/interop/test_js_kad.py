"""The DHT of js-libp2p and ours in the public form: values, providers and peers, both ways."""

import base64
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from dht.messages import Value
from dht.service import DhtService
from dht.values import head_name, pk_value, public_key_bytes, seal_head
from node.finding import PUBLIC
from node.host.service import LibP2pHost
from node.kad import KadStreams
from tests.daemon.hosts import eventually, make_host, running
from tests.interop.js_peer import PATIENCE_S, JsError, JsPeer, js_peer, needs_js
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

pytestmark = needs_js
NAME = b"\x12\x20" + bytes(range(32))  # the multihash of a CID
OTHER = b"\x12\x20" + bytes(32)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Ours:
    """A host of an open swarm with a DHT for everybody."""

    host: LibP2pHost
    signer: Signer
    dht: DhtService
    streams: KadStreams

    def head(self, data: bytes, seq: int) -> Value:
        expires_ms = time.time_ns() // 1_000_000 + 3600_000
        return seal_head(self.signer, "run", data, seq=seq, expires_ms=expires_ms)

    async def meet(self, js: JsPeer) -> None:
        """Connect, and take a server of js into the table."""
        self.dht.peer_up(await self.host.connect(js.addresses[0]))
        await eventually(lambda: self.dht.contacts == 1, within_s=PATIENCE_S)


def make_ours() -> Ours:
    seed = secrets.token_bytes(32)
    host, signer, clock = make_host(seed=seed, key=None), Signer(seed), SystemClock()
    streams = KadStreams(
        host,
        PUBLIC,
        lambda peer, sender, request: dht.answer(peer, sender, request),
        lambda: dht.is_server,
        own=lambda: dht.sender(),
        clock=clock,
    )
    dht = DhtService(
        streams, host, signer, clock, peers=host.connected, is_public=True, rng=random.Random(1)
    )
    return Ours(host, signer, dht, streams)


@asynccontextmanager
async def ours_and_js(*, server: bool) -> AsyncIterator[tuple[Ours, JsPeer]]:
    """A node of ours, and one of js which is a client that has dialled us, or a server."""
    ours = make_ours()
    async with (
        running(ours.host),
        trio.open_nursery() as nursery,
        js_peer("kad_peer.mjs", server=server) as js,
    ):
        await nursery.start(ours.dht.run)
        await nursery.start(ours.streams.run)
        if not server:
            assert await js.do("dial", address=ours.host.addresses()[0]) == ours.host.peer
            await js.until("knows", True, peer=ours.host.peer)
        yield ours, js
        nursery.cancel_scope.cancel()


async def test_js_puts_values_on_our_node_and_gets_them() -> None:
    async with ours_and_js(server=False) as (ours, js):
        for value in (pk_value(public_key_bytes(PeerId(js.peer))), ours.head(b"one", 1)):
            put = await js.do("put", key=text(value.name), value=text(value.sealed))
            assert put == [ours.host.peer]
            assert await ours.dht.get(value.name) == (value,) or value.author is None
            assert await js.do("get", key=text(value.name)) == text(value.sealed)
        (held,) = await ours.dht.get(pk_value(public_key_bytes(PeerId(js.peer))).name)
        assert held.data == public_key_bytes(PeerId(js.peer))


async def test_js_gets_what_we_have_put_and_checks_it() -> None:
    async with ours_and_js(server=False) as (ours, js):
        first, second = ours.head(b"one", 1), ours.head(b"two", 2)
        for value in (first, second):
            assert (await ours.dht.put(value)).asked == 0  # nobody else is there
            assert await js.do("get", key=text(value.name)) == text(value.sealed)
        with pytest.raises(JsError):  # older than what we hold, and told so
            await js.do("put", key=text(first.name), value=text(first.sealed))
        assert await ours.dht.get(first.name) == (second,)
        assert await js.do("refused") == []


async def test_what_js_may_not_put_is_refused_and_not_kept() -> None:
    async with ours_and_js(server=False) as (ours, js):
        value = ours.head(b"one", 1)
        forged = value.sealed[:-1] + bytes([value.sealed[-1] ^ 1])
        for name, sealed in ((value.name, forged), (b"/unknown/x", b"x"), (b"/pk/abcd", b"x")):
            with pytest.raises(JsError, match="not put correctly"):
                await js.do("put", key=text(name), value=text(sealed))
        assert len(ours.dht.node.holding) == 0


async def test_js_provides_and_finds_providers_on_our_node() -> None:
    async with ours_and_js(server=False) as (ours, js):
        await ours.dht.provide(NAME)
        assert await js.do("providers", key=text(NAME)) == {
            ours.host.peer: [each.split("/p2p/")[0] for each in ours.host.addresses()]
        }
    async with ours_and_js(server=True) as (ours, js):
        await js.do("dial", address=ours.host.addresses()[0])
        await js.until("knows", True, peer=ours.host.peer)
        await js.do("provide", key=text(OTHER))  # who is a server has addresses to tell
        await eventually(lambda: len(ours.dht.node.holding) == 1)
        assert await ours.dht.providers(OTHER) == [js.peer]


async def test_js_finds_a_peer_through_our_node() -> None:
    async with ours_and_js(server=True) as (ours, first), js_peer("kad_peer.mjs") as second:
        await ours.meet(first)
        await second.do("dial", address=ours.host.addresses()[0])
        await second.until("knows", True, peer=ours.host.peer)
        found = await second.do("find", peer=first.peer)
        assert [each.split("/p2p/")[0] for each in found] == [
            each.split("/p2p/")[0] for each in first.addresses
        ]


async def test_we_put_and_get_values_on_a_server_of_js() -> None:
    async with ours_and_js(server=True) as (ours, js):
        ours.dht.set_mode(is_server=False)
        ours.streams.mode_changed()
        await ours.meet(js)
        pk = pk_value(public_key_bytes(PeerId(js.peer)))
        for value in (pk, ours.head(b"one", 1), ours.head(b"two", 2)):
            kept = await ours.dht.put(value)
            assert (kept.kept, dict(kept.refusals)) == (1, {})
            assert await js.do("held", key=text(value.name)) == text(value.sealed)
            (got,) = await ours.dht.get(value.name)
            assert got.data == value.data
        assert await ours.dht.get(head_name(PeerId(js.peer), "run")) == ()
        assert await js.do("refused") == []


async def test_we_provide_and_find_providers_on_a_server_of_js() -> None:
    async with (
        ours_and_js(server=True) as (ours, js),
        js_peer("kad_peer.mjs", server=True) as another,
    ):
        await ours.meet(js)
        assert (await ours.dht.provide(NAME)).kept == 1
        assert list(await js.do("providers", key=text(NAME))) == [ours.host.peer]
        await another.do("dial", address=js.addresses[0])
        await another.until("knows", True, peer=js.peer)
        await another.do("provide", key=text(OTHER))
        assert another.peer in await ours.dht.providers(OTHER)
        assert await ours.dht.providers(b"\x12\x20" + bytes([1]) * 32) == []


async def test_js_sees_us_as_a_server_only_while_we_are_one() -> None:
    async with ours_and_js(server=False) as (ours, js):
        ours.dht.set_mode(is_server=False)
        ours.streams.mode_changed()
        async with js_peer("kad_peer.mjs") as another:
            await another.do("dial", address=ours.host.addresses()[0])
            told = await another.event("identify", peer=str(ours.host.peer))
            assert PUBLIC not in told["protocols"]
            assert not await another.do("knows", peer=ours.host.peer)
        told = await js.event("identify", peer=str(ours.host.peer))
        assert PUBLIC in told["protocols"]
