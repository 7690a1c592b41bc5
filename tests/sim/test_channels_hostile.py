"""What a hostile member does on channels reaches nobody, costs little, and is held against it."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocols.channels import wire
from protocols.channels.history import HISTORY, Ask, Past
from protocols.channels.link import FRAME_TIMEOUT_S
from protocols.channels.links import RETRY_MAX_S, SWEEP_S
from protocols.channels.policy import Limits, Policy
from protocols.channels.replay import WINDOW_S
from protocols.channels.wire import FRAME_MAX, PROTOCOLS, Message, Rpc, Subscription
from tests.sim.channel_enemy import EVIL, Enemy, forged, sealed
from tests.sim.channel_swarm import TOPIC, Swarm
from tests.sim.net import Net
from wire import frames
from wire.errors import BadMessage, RemoteError
from wire.ports import Call


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=0.02))


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


async def test_a_true_message_beside_a_forged_one_with_its_number_is_heard(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    swarm.net.cut(a.peer, b.peer)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    true = sealed(a.signer, b"truth")
    lie = wire.message(
        author=true.author, seqno=true.seqno, topic=TOPIC, data=b"lie", signature=true.signature
    )
    others = [sealed(EVIL, b"%d" % number) for number in range(10)]
    await enemy.say(b, lie, true, *others)
    await trio.sleep(2)
    assert b.words[:10] == [message.data for message in others]
    assert b.words[10:] == [b"truth"]


async def test_who_begins_again_is_told_again_what_we_listen_to(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    (a,) = await swarm.add(1)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    for told in (1, 2, 3):
        await enemy.say(a)
        await trio.sleep(1)
        assert [each.topic for each in enemy.told] == [TOPIC] * told
        enemy.streams.pop(a.peer).drop()
        await trio.sleep(1)
    await enemy.say(a)
    await trio.sleep(1)
    assert (await a.channels.publish(TOPIC, b"x")).peers == 1


async def test_what_is_said_before_our_own_stream_is_open_counts(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    (a,) = await swarm.add(1)
    enemy = Enemy(swarm, listens=False)
    await enemy.say(a, sealed(EVIL, b"early"))
    await trio.sleep(2)
    assert a.words == []
    enemy.listen()
    await trio.sleep(RETRY_MAX_S)
    assert a.words == [b"early"]
    assert (await a.channels.publish(TOPIC, b"x")).peers == 1


async def test_what_came_with_the_past_is_no_news(autojump_clock: MockClock, swarm: Swarm) -> None:
    (a,) = await swarm.add(1)
    enemy = Enemy(swarm)
    await trio.sleep(2)
    said = sealed(EVIL, b"once")
    await enemy.say(a, said)
    await trio.sleep(1)
    (late,) = await swarm.add(1, listening=False)
    await swarm.listen(late, last=10)
    await trio.sleep(2)
    await enemy.say(late, said)
    await trio.sleep(1)
    assert late.words == [b"once"]


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


async def test_a_flood_that_costs_only_time_is_no_cheaper_on_ever_new_streams(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy, empty = Enemy(swarm), bytes(20_000)  # as many empty frames

    async def is_read() -> bool:
        enemy.streams.pop(b.peer, None)  # on a new stream
        await enemy.write(b, empty)
        await trio.sleep(0.1)
        await enemy.write(b, b"\x00")
        return b.peer in enemy.streams

    assert await is_read()
    for _ in range(20):
        await enemy.write(b, empty)
    assert [await is_read() for _ in range(3)] == [False] * 3
    await a.channels.publish(TOPIC, b"hello")
    await trio.sleep(10)
    assert b.words == [b"hello"]
    assert await is_read()  # nothing was broken, only too much at once


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
        await trio.sleep(1)
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


async def test_a_forgery_on_a_topic_of_other_writers_does_not_keep_the_true_message_out(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    async with b.channels.listen("strict", policy=Policy(frozenset((b.peer,)))):
        await trio.sleep(2)
        true = sealed(a.signer, b"true")
        author = wire.author_of(a.peer)
        fake = wire.message(
            author=author, seqno=true.seqno, topic="strict", data=b"", signature=bytes(64)
        )
        await enemy.say(b, fake)
        await trio.sleep(0.2)
        await enemy.say(b, true)
        await trio.sleep(1)
        assert b.words == [b"true"]
        assert b.channels.stats.invalid == 1


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


async def test_twenty_thousand_mangled_frames_break_nothing(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    dice = random.Random(7)
    whole = wire.encode(
        Rpc(
            subscriptions=(Subscription(TOPIC, True),),
            messages=(sealed(EVIL, b"x" * 20), forged(a.peer, b"y")),
            ihave=(wire.IHave(TOPIC, (bytes(46),)),),
            iwant=(bytes(46),),
            graft=(TOPIC,),
            prune=(wire.Prune(TOPIC, 60),),
            idontwant=(bytes(46),),
        )
    )
    a.channels.link_up(EVIL.peer, PROTOCOLS[0])
    refused = 0
    for number in range(20_000):
        frame = bytearray(whole)
        for _ in range(dice.randrange(1, 5)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        if number % 3 == 0:
            del frame[dice.randrange(len(frame)) :]
        try:
            a.channels.hear(EVIL.peer, [bytes(frame)])
        except BadMessage:
            refused += 1
        if number % 1000 == 0:
            a.channels.link_down(EVIL.peer)
            a.channels.link_up(EVIL.peer, PROTOCOLS[0])
            await trio.sleep(1)
    assert refused > 1000
    await b.channels.publish(TOPIC, b"still here")
    await trio.sleep(1)
    assert b"still here" in a.words
