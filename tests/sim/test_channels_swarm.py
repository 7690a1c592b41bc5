"""Channels on simulated hosts: everybody hears everything once, whatever happens on the way."""

import itertools
import random

import pytest
import trio
from trio.testing import MockClock

from protocols.channels.history import Keep
from protocols.channels.reference import BLOB_MAX, MAGIC
from tests.sim.channel_swarm import TOPIC, Node, Swarm
from tests.sim.net import Net
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=0.02))


async def test_a_burst_reaches_all_of_thirty_nodes_once_and_soon(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes = await swarm.add(30)
    words = [b"%d" % number + bytes(1000) for number in range(60)]
    for word in words:
        await nodes[0].channels.publish(TOPIC, word)
    await trio.sleep(0.5)
    for node in nodes:
        assert sorted(node.words) == sorted(words)
        assert {message.author for message in node.heard} == {nodes[0].peer}
    assert sum(node.channels.stats.invalid for node in nodes) == 0
    await trio.sleep(20)
    assert {len(node.heard) for node in nodes} == {60}
    assert swarm.net.errors == []


async def test_it_reaches_those_we_are_not_connected_to(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b, c, d = await swarm.add(4)
    for one, other in ((a, c), (a, d), (b, d)):
        swarm.net.cut(one.peer, other.peer)  # a line is left
    await trio.sleep(3)
    await a.channels.publish(TOPIC, b"hello")
    await trio.sleep(1)
    assert [node.words for node in (a, b, c, d)] == [[b"hello"]] * 4
    assert d.heard[0].author == a.peer


async def test_all_is_heard_although_half_of_the_links_break(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes = await swarm.add(20)
    dice = random.Random(5)

    async def speak() -> None:
        for number in range(100):
            await nodes[number % 20].channels.publish(TOPIC, b"%d" % number)
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        for a, b in itertools.combinations(range(20), 2):
            if dice.random() < 0.5:
                await trio.sleep(0.1)
                swarm.net.cut(nodes[a].peer, nodes[b].peer, silent=dice.random() < 0.3)
    await trio.sleep(20)
    for node in nodes:
        assert sorted(node.words, key=int) == [b"%d" % number for number in range(100)]


async def test_a_peer_that_hangs_delays_nobody_and_hears_again_when_it_is_back(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes = await swarm.add(6)
    a, hung = nodes[0], nodes[5]
    for node in nodes[:5]:
        swarm.net.cut(node.peer, hung.peer, silent=True)
    began = trio.current_time()
    for number in range(400):
        await a.channels.publish(TOPIC, b"%d" % number + bytes(60_000))
        await trio.sleep(0.005)
    await trio.sleep(0.5)
    assert [len(node.heard) for node in nodes] == [400] * 5 + [0]
    assert trio.current_time() - began < 3
    assert a.channels.stats.unsent > 0
    await trio.sleep(120)
    swarm.net.heal()
    await trio.sleep(30)
    await a.channels.publish(TOPIC, b"again")
    await trio.sleep(1)
    assert hung.words.count(b"again") == 1
    assert len(set(hung.words)) == len(hung.words)


async def test_a_restarted_peer_is_heard_and_hears(autojump_clock: MockClock, swarm: Swarm) -> None:
    a, b, c = await swarm.add(3)
    swarm.net.kill(b.peer)
    await a.channels.publish(TOPIC, b"one")
    await trio.sleep(5)
    swarm.net.revive(b.peer)
    await trio.sleep(5)
    await a.channels.publish(TOPIC, b"two")
    await b.channels.publish(TOPIC, b"three")
    await trio.sleep(1)
    assert sorted(b.words) == [b"three", b"two"]
    assert [sorted(node.words) for node in (a, c)] == [[b"one", b"three", b"two"]] * 2


async def test_one_readers_slowness_is_its_own_loss(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b, c = await swarm.add(3)
    async with b.channels.listen(TOPIC, queue_max=10) as slow:
        for number in range(50):
            await a.channels.publish(TOPIC, b"%d" % number)
        await trio.sleep(1)
        assert (len(a.heard), len(b.heard), len(c.heard)) == (50, 50, 50)
        assert slow.dropped == 40
        assert [(await anext(slow)).data for _ in range(10)] == b.words[40:]
        with trio.move_on_after(0.1):
            await anext(slow)
            raise AssertionError
    assert b.channels.stats.dropped == 40
    assert b.channels.views()[0].dropped == 40


async def test_who_comes_late_gets_the_past_before_what_is_new_once_each(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes = await swarm.add(6)
    for number in range(30):
        await nodes[number % 5].channels.publish(TOPIC, b"%d" % number)
        await trio.sleep(1)
    late, half, patient = await swarm.add(3, listening=False)
    await swarm.listen(late, last=1000)
    await swarm.listen(half, last=1000, age_s=15.5)
    await swarm.listen(patient, last=4)
    for number in range(30, 35):
        await nodes[0].channels.publish(TOPIC, b"%d" % number)
    await trio.sleep(10)
    new = [b"%d" % number for number in range(35)]
    for reader, first in ((late, 0), (patient, 26), (half, 35 - len(half.words))):
        assert reader.words[:-5] == new[first:30]
        assert sorted(reader.words[-5:]) == new[30:]  # published at once, they come in any order
    assert 10 <= len(half.words) - 5 <= 15
    assert late.heard[0].author == nodes[0].peer
    assert late.heard[0].received_ms < late.heard[-1].received_ms - 25_000
    assert sum(node.channels.stats.given for node in nodes) <= 3 * 2 * 35


async def test_who_wants_much_of_the_past_gets_and_keeps_it(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    (a,) = await swarm.add(1, listening=False)
    await swarm.listen(a, keep=Keep(count=1000, size_bytes=1 << 20, age_s=7200))
    for number in range(500):
        await a.channels.publish(TOPIC, b"%d" % number)
        await trio.sleep(10)
    (late,) = await swarm.add(1, listening=False)
    await swarm.listen(late, last=400)
    await trio.sleep(5)
    assert late.words == [b"%d" % number for number in range(100, 500)]
    swarm.net.kill(a.peer)
    (later,) = await swarm.add(1, listening=False)
    await swarm.listen(later, last=300)
    await trio.sleep(5)
    assert later.words == [b"%d" % number for number in range(200, 500)]


async def test_what_a_reader_raises_comes_out_as_it_is(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    (a,) = await swarm.add(1)
    with pytest.raises(KeyError):
        async with a.channels.listen("other", last=10):
            raise KeyError
    assert [view.topic for view in a.channels.views()] == [TOPIC]


async def test_the_past_is_there_although_one_who_has_it_hangs(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    await a.channels.publish(TOPIC, b"old")
    await trio.sleep(1)
    (late,) = await swarm.add(1, listening=False)
    swarm.net.cut(b.peer, late.peer, silent=True)
    await swarm.listen(late, last=10)
    await a.channels.publish(TOPIC, b"new")
    await trio.sleep(7)
    assert late.words == [b"old", b"new"]


async def test_big_data_arrives_by_reference_in_its_place(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b, c = await swarm.add(3)
    big = bytes(300_000)
    for data in (b"before", big, b"after"):
        await a.channels.publish(TOPIC, data)
    await trio.sleep(3)
    assert [node.words for node in (a, b, c)] == [[b"before", big, b"after"]] * 3
    assert b.heard[1].cid == c.heard[1].cid != ""
    assert {asked[0] for _, asked in swarm.blobs.asked} == {a.peer}
    assert swarm.net.bytes_sent[a.peer] < len(big)
    (late,) = await swarm.add(1, listening=False)
    await swarm.listen(late, last=10)
    await trio.sleep(3)
    assert late.words == [b"before", big, b"after"]


async def test_a_blob_that_cannot_be_had_is_told_and_counted(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    published = await a.channels.publish(TOPIC, bytes(100_000))
    swarm.blobs.here.clear()
    await a.channels.publish(TOPIC, b"after")
    await trio.sleep(60)
    assert b.words == [b"", b"after"]
    assert published.cid in b.heard[0].error
    assert b.channels.stats.failed == 1


async def test_data_that_looks_like_a_reference_arrives_as_it_is(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    await a.channels.publish(TOPIC, MAGIC + b"not one")
    await trio.sleep(3)
    assert b.words == [MAGIC + b"not one"]


async def test_a_part_of_the_daemon_decides_what_goes_on(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    """The store's use: what changes nothing ends at the first who sees it."""
    a, b, c = await swarm.add(3, listening=False)
    swarm.net.cut(a.peer, c.peer)
    heard = dict[PeerId, list[tuple[PeerId, bytes]]]()

    def listen(node: Node) -> None:
        heard[node.peer] = list[tuple[PeerId, bytes]]()

        async def handler(peer: PeerId, data: bytes) -> bool:
            heard[node.peer].append((peer, data))
            if data == b"malformed":
                raise BadMessage("no news")
            return data != b"stale"

        node.channels.subscribe("shoal/test", handler)

    for node in (a, b, c):
        listen(node)
    await trio.sleep(3)
    for data in (b"stale", b"malformed", b"news"):
        await a.channels.publish("shoal/test", data)
    await trio.sleep(1)
    assert heard[a.peer] == []
    assert sorted(heard[b.peer]) == [(a.peer, b"malformed"), (a.peer, b"news"), (a.peer, b"stale")]
    assert heard[c.peer] == [(b.peer, b"news")]
    stats = b.channels.stats
    assert (stats.ignored, stats.invalid, stats.delivered) == (1, 1, 1)


async def test_limits_are_kept_at_our_own_door(autojump_clock: MockClock, swarm: Swarm) -> None:
    (a,) = await swarm.add(1)
    with pytest.raises(UsageError, match="not a topic"):
        await a.channels.publish("two words", b"")
    with pytest.raises(UsageError, match="over the limit"):
        await a.channels.publish(TOPIC, bytes(BLOB_MAX + 1))
    a.channels.subscribe("shoal/test", _never)
    with pytest.raises(UsageError, match="has a handler"):
        a.channels.subscribe("shoal/test", _never)


async def _never(peer: PeerId, data: bytes) -> bool:
    raise AssertionError


async def test_who_leaves_a_topic_hears_no_more_and_keeps_nothing(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    async with b.channels.listen("other") as messages:
        await trio.sleep(2)
        assert (await a.channels.publish("other", b"x")).peers == 1
        assert (await anext(messages)).data == b"x"
    await trio.sleep(2)
    assert (await a.channels.publish("other", b"y")).peers == 0
    assert [view.topic for view in b.channels.views()] == [TOPIC]


async def test_a_burst_of_large_messages_is_paced_and_arrives_whole(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes = await swarm.add(4)
    for number in range(400):  # 24 MB: more than the streams take at once
        await nodes[0].channels.publish(TOPIC, b"%d " % number + bytes(60_000))
    await trio.sleep(3)
    for node in nodes:
        assert sorted(int(word.split()[0]) for word in node.words) == list(range(400))
    assert nodes[0].channels.stats.unsent == 0
