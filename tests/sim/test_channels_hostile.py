"""What a hostile member does on channels reaches nobody, costs little, and is held against it."""

from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from protocols.channels import signing, wire
from protocols.channels.history import HISTORY, Ask, Past
from protocols.channels.links import FRAME_TIMEOUT_S, SWEEP_S
from protocols.channels.policy import Limits, Policy
from protocols.channels.replay import WINDOW_S
from protocols.channels.wire import FRAME_MAX, PROTOCOLS, Message, Rpc, Subscription
from tests.sim.channel_swarm import TOPIC, Node, Swarm
from tests.sim.net import Net
from tests.sim.replicas import SimClock, signer
from wire import frames
from wire.errors import PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Call, Stream

EVIL = signer(666)


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=0.02))


def numbers() -> Iterator[int]:
    """Numbers as honest nodes draw them."""
    while True:
        yield SimClock().wall_ms() * 1_000_000 + len(_drawn)
        _drawn.append(0)


_drawn = list[int]()
_numbers = numbers()


def sealed(
    author: Signer, data: bytes, *, number: int | None = None, topic: str = TOPIC
) -> Message:
    number = next(_numbers) if number is None else number
    return signing.seal(author, wire.author_of(author.peer), topic, data, number)


def forged(author: PeerId, data: bytes) -> Message:
    """A message in another's name, with a signature of our own."""
    good = sealed(EVIL, data)
    return wire.message(
        author=wire.author_of(author),
        seqno=good.seqno,
        topic=TOPIC,
        data=data,
        signature=good.signature,
    )


class Enemy:
    """A peer that speaks the protocol by hand."""

    def __init__(self, swarm: Swarm) -> None:
        self.host = swarm.net.host(EVIL.peer)
        self.streams: dict[PeerId, Stream] = {}
        for protocol in PROTOCOLS:
            self.host.serve(protocol, self._listen)

    async def _listen(self, stream: Stream) -> None:
        try:
            while await stream.read(65536):
                pass
        except PeerUnreachable:
            return

    async def say(self, node: Node, *messages: Message) -> None:
        await self.write(node, frames.pack(wire.encode(Rpc(messages=messages))))

    async def write(self, node: Node, data: bytes) -> None:
        """Write to a node, opening a stream if the last one was reset."""
        stream = self.streams.get(node.peer)
        if stream is None:
            stream = await self.host.open(node.peer, PROTOCOLS[0], timeout_s=5)
            self.streams[node.peer] = stream
            hello = Rpc(subscriptions=(Subscription(TOPIC, True),))
            await stream.write(frames.pack(wire.encode(hello)))
        try:
            await stream.write(data)
        except PeerUnreachable:
            del self.streams[node.peer]

    async def is_shut_out(self, node: Node) -> bool:
        """Whether a node resets what we open."""
        try:
            stream = await self.host.open(node.peer, PROTOCOLS[0], timeout_s=5)
            await trio.sleep(1)
            await stream.write(b"\x00")
        except ShoalError:
            return True
        return False


async def test_a_forged_author_is_heard_by_nobody_and_the_true_message_is(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b, c = await swarm.add(3)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    await enemy.say(b, forged(a.peer, b"lie"))
    true = sealed(a.signer, b"truth")
    lie = wire.message(
        author=true.author, seqno=true.seqno, topic=TOPIC, data=b"lie", signature=true.signature
    )
    await enemy.say(b, lie)  # the number of the true one: it must not hide it
    await enemy.say(c, true)
    await trio.sleep(2)
    assert [node.words for node in (a, b, c)] == [[], [b"truth"], [b"truth"]]
    assert b.channels.stats.invalid == 2


async def test_a_flood_of_invalid_messages_ends_with_its_sender_shut_out(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes = await swarm.add(5)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    for number in range(300):
        await enemy.say(nodes[0], forged(nodes[1].peer, b"%d" % number))
        if number % 10 == 0:
            await nodes[1].channels.publish(TOPIC, b"%d" % number)
    await trio.sleep(2)
    for node in nodes:
        assert sorted(node.words, key=int) == [b"%d" % number for number in range(0, 300, 10)]
    assert nodes[0].channels.stats.invalid < 100  # the rest was not even checked
    assert await enemy.is_shut_out(nodes[0])
    assert not await enemy.is_shut_out(nodes[2])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\x7f",  # a frame of 256 MiB
        frames.pack(bytes(FRAME_MAX)),
        frames.pack(b"\x12\x05hello"),
        b"GET / HTTP/1.1\r\n\r\n" + bytes(60),
    ],
)
async def test_garbage_costs_its_sender_the_stream_and_us_nothing(
    autojump_clock: MockClock, swarm: Swarm, garbage: bytes
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    for _ in range(10):
        if await enemy.is_shut_out(a):
            break
        await enemy.write(a, garbage)
        await trio.sleep(0.2)
        await b.channels.publish(TOPIC, b"x")
    await trio.sleep(1)
    assert set(a.words) == {b"x"}
    assert len(a.words) == len(b.words)
    assert swarm.net.errors == []
    assert await enemy.is_shut_out(a)


async def test_a_frame_that_never_ends_is_given_up(autojump_clock: MockClock, swarm: Swarm) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    began = trio.current_time()
    await enemy.write(a, b"\xff\x01")  # 255 bytes, one a second
    while a.peer in enemy.streams:
        await trio.sleep(1)
        await enemy.write(a, b"\x00")
    assert FRAME_TIMEOUT_S <= trio.current_time() - began < FRAME_TIMEOUT_S + SWEEP_S + 3
    await b.channels.publish(TOPIC, b"x")
    await trio.sleep(1)
    assert a.words == [b"x"]


async def test_a_message_that_is_sent_again_is_old_also_after_a_restart(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    said = sealed(a.signer, b"pay Eve")
    await enemy.say(b, said)
    await trio.sleep(1)
    assert b.words == [b"pay Eve"]
    for wait_s in (1, 130, 300):  # the machine forgets after two minutes
        await trio.sleep(wait_s)
        await enemy.say(b, said)
    await trio.sleep(1)
    assert b.words == [b"pay Eve"]
    assert b.channels.stats.ignored == 2
    await trio.sleep(WINDOW_S)
    (fresh,) = await swarm.add(1)  # knows nothing of what was
    await enemy.say(fresh, said)
    await trio.sleep(1)
    assert fresh.words == []
    assert fresh.channels.stats.ignored == 1


async def test_an_own_topic_takes_its_owners_word_only(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    topic = f"own/{a.peer}/diary"
    async with b.channels.listen(topic) as messages:
        await trio.sleep(2)
        await enemy.say(b, sealed(EVIL, b"gossip", topic=topic))
        await a.channels.publish(topic, b"dear diary")
        assert (await anext(messages)).data == b"dear diary"
    assert b.channels.stats.invalid == 1


async def test_a_list_of_writers_is_its_readers_own_matter(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b, strict = await swarm.add(3)
    async with strict.channels.listen("talk", policy=Policy(frozenset((a.peer,)))) as messages:
        await trio.sleep(2)
        await b.channels.publish("talk", b"no")
        await a.channels.publish("talk", b"yes")
        assert (await anext(messages)).data == b"yes"
        stats = strict.channels.stats
        assert (stats.ignored, stats.invalid) == (1, 0)  # b did nothing wrong
        async with strict.channels.listen("talk") as open_:
            await b.channels.publish("talk", b"to the other")
            assert (await anext(open_)).data == b"to the other"
        await a.channels.publish("talk", b"again")
        assert (await anext(messages)).data == b"again"


async def test_an_author_over_its_rate_is_not_passed_on(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    for _ in range(3000):
        await a.channels.publish(TOPIC, b"spam")
        await trio.sleep(0.0001)
    await trio.sleep(1)
    assert Limits().messages_burst <= len(b.heard) < Limits().messages_burst + 200


async def test_a_past_that_is_not_signed_or_not_so_old_is_not_believed(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    (a,) = await swarm.add(1)
    swarm.net.cut(a.peer, EVIL.peer)
    old = sealed(a.signer, b"old")
    await trio.sleep(WINDOW_S + 100)
    lies = [
        Past(1000, _one(forged(a.peer, b"lie"))),
        Past(1000, _one(old)),  # 700 s old: it was to come now
        Past(1000, _one(sealed(a.signer, b"elsewhere", topic="other"))),
        Past(1000, b"\x12\x05hello"),
        Past(1000, b""),
    ]

    async def give(call: Call[Past, Ask]) -> None:
        await call.receive()
        for past in lies:
            await call.send(past)
        await call.send(Past(1000, _one(sealed(EVIL, b"mine"))))

    enemy = Enemy(swarm)
    swarm.net.rpc(EVIL.peer).serve_stream(HISTORY, give)
    (late,) = await swarm.add(1, listening=False)
    swarm.net.cut(a.peer, late.peer)
    await trio.sleep(1)
    await enemy.say(late)
    await trio.sleep(1)
    await swarm.listen(late, last=10)
    await trio.sleep(5)
    assert late.words == [b"mine"]
    assert late.channels.stats.invalid == len(lies)


async def test_the_past_is_given_of_what_is_listened_to_only(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    (a,) = await swarm.add(1)
    rpc = swarm.net.rpc(EVIL.peer)
    async with rpc.stream(a.peer, HISTORY, timeout_s=5) as call:
        await call.send(Ask("shoal/crdt", 1000, 10))
        with pytest.raises(RemoteError) as caught:
            await call.receive()
    assert caught.value.code == "not_found"


def _one(message: Message) -> bytes:
    return wire.encode(Rpc(messages=(message,)))
