"""GossipSub of js-libp2p and ours in one topic: both versions, forwarding, IDONTWANT, tampering."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from node.host.service import LibP2pHost
from protocols.channels import signing, wire
from protocols.channels.service import ChannelService
from protocols.channels.subscription import Received
from protocols.rpc.service import RpcService
from tests.daemon.hosts import eventually, make_host, running
from tests.interop.js_peer import PATIENCE_S, JsPeer, js_peer, needs_js
from wire import frames
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

pytestmark = needs_js
TOPIC = "interop.news"
NEW, OLD = "/meshsub/1.2.0", "/meshsub/1.1.0"


@dataclass
class Ours:
    """A host of an open swarm with channels, and what it heard."""

    host: LibP2pHost
    signer: Signer
    channels: ChannelService
    heard: list[Received] = field(default_factory=list[Received])

    @property
    def words(self) -> list[bytes]:
        return [message.data for message in self.heard]

    async def listen(self) -> None:
        async with self.channels.listen(TOPIC) as messages:
            async for message in messages:
                self.heard.append(message)

    async def hears(self, *data: bytes) -> None:
        await eventually(lambda: set(data) <= set(self.words), within_s=PATIENCE_S)


@asynccontextmanager
async def swarm(*gossip: tuple[str, ...]) -> AsyncIterator[tuple[Ours, list[JsPeer]]]:
    """Our node, and a js node for each of `gossip`, its versions; all of them know ours only."""
    seed = secrets.token_bytes(32)
    host, signer = make_host(seed=seed, key=None), Signer(seed)
    channels = ChannelService(host, RpcService(host), signer, SystemClock())
    ours = Ours(host, signer, channels)
    async with running(host), trio.open_nursery() as nursery, AsyncExitStack() as stack:
        await nursery.start(channels.run)
        nursery.start_soon(ours.listen)
        nodes = [await stack.enter_async_context(js_peer(gossip=each)) for each in gossip]
        for js in nodes:
            await js.do("subscribe", topic=TOPIC)
            await js.do("dial", address=host.addresses()[0])
        for js in nodes:
            await js.until("subscribers", host.peer, topic=TOPIC)
            await js.until("mesh", host.peer, topic=TOPIC)
        yield ours, nodes
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_signed_messages_both_ways(version: str) -> None:
    async with swarm((version,)) as (ours, [js]):
        await js.publish(TOPIC, b"from js")
        await ours.hears(b"from js")
        assert [message.author for message in ours.heard] == [js.peer]
        await ours.channels.publish(TOPIC, b"from us")
        await js.hears(TOPIC, b"from us")
        event = await js.event("message", topic=TOPIC)
        assert (event["from"], event["via"]) == (ours.host.peer, ours.host.peer)
        assert await js.do("versions") == {ours.host.peer: version}


async def test_we_dial_a_node_of_js_and_gossip_starts() -> None:
    async with swarm() as (ours, _), js_peer() as js:
        await js.do("subscribe", topic=TOPIC)
        await ours.host.connect(js.addresses[0])
        await js.until("mesh", ours.host.peer, topic=TOPIC)
        await ours.channels.publish(TOPIC, b"hello")
        await js.hears(TOPIC, b"hello")
        assert await js.do("versions") == {ours.host.peer: NEW}


@pytest.mark.parametrize("versions", [(NEW, NEW), (OLD, NEW), (NEW, OLD)])
async def test_ours_forwards_between_two_that_do_not_know_each_other(
    versions: tuple[str, str],
) -> None:
    async with swarm(*[(version,) for version in versions]) as (ours, [a, b]):
        words = [f"{number}".encode() for number in range(60)]
        for word in words:
            await a.publish(TOPIC, word)
        await b.hears(TOPIC, *words)
        await ours.hears(*words)
        assert len(b.heard(TOPIC)) == len(ours.words) == len(words)
        event = await b.event("message", topic=TOPIC)
        assert (event["from"], event["via"]) == (a.peer, ours.host.peer)
        assert await a.do("connections") == [ours.host.peer]
        big = secrets.token_bytes(60_000)
        await b.publish(TOPIC, big)
        await a.hears(TOPIC, big)


async def test_idontwant_goes_both_ways_and_nothing_is_delivered_twice() -> None:
    async with swarm((NEW,), (NEW,)) as (ours, [a, b]):
        await a.do("dial", address=b.addresses[0])
        await a.until("mesh", b.peer, topic=TOPIC)
        await b.until("mesh", a.peer, topic=TOPIC)
        words = [secrets.token_bytes(8_000) for _ in range(20)]
        for word in words:
            await a.publish(TOPIC, word)
        await b.hears(TOPIC, *words)
        await ours.hears(*words)
        assert len(b.heard(TOPIC)) == len(ours.words) == len(words)
        counts = await b.do("counts")
        assert counts["idontwantHeard"] > 0  # from us
        assert counts["idontwantSent"] > 0


async def test_a_tampered_message_from_js_reaches_nobody() -> None:
    async with swarm((NEW,), (NEW,)) as (ours, [a, b]):
        await a.do("tamper", on=True)
        await a.publish(TOPIC, b"forged on its way")
        await eventually(lambda: ours.channels.stats.invalid == 1, within_s=PATIENCE_S)
        await a.do("tamper", on=False)
        await a.publish(TOPIC, b"honest")
        await b.hears(TOPIC, b"honest")
        await ours.hears(b"honest")
        assert (ours.words, b.heard(TOPIC)) == ([b"honest"], [b"honest"])


async def test_a_tampered_message_from_us_is_refused_by_js() -> None:
    async with swarm((NEW,)) as (ours, [js]):
        author = wire.author_of(ours.signer.peer)
        forged, honest = (
            signing.seal(ours.signer, author, TOPIC, text, number)
            for number, text in enumerate((b"forged", b"honest"), 1)
        )
        forged = wire.message(
            author=author,
            seqno=forged.seqno,
            topic=TOPIC,
            data=b"FORGED",
            signature=forged.signature,
        )
        stream = await ours.host.open(PeerId(js.peer), NEW, timeout_s=PATIENCE_S)
        for message in (forged, honest):
            await stream.write(frames.pack(wire.encode(wire.Rpc(messages=(message,)))))
        await js.hears(TOPIC, b"honest")
        assert js.heard(TOPIC) == [b"honest"]
        assert (await js.do("counts"))["messagesHeard"] == 2


async def test_who_leaves_the_topic_is_seen_to_leave() -> None:
    async with swarm((NEW,)) as (ours, [js]):
        await js.do("unsubscribe", topic=TOPIC)
        await eventually(lambda: ours.channels.views()[0].peers == 0, within_s=PATIENCE_S)
        await js.do("subscribe", topic=TOPIC)
        await eventually(lambda: ours.channels.views()[0].peers == 1, within_s=PATIENCE_S)
        await ours.channels.publish(TOPIC, b"again")
        await js.hears(TOPIC, b"again")
