"""Channel streams that move to better connections: nothing is lost, nobody is told twice."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocols.channels.links import MOVE_S, STABLE_S
from protocols.channels.wire import MOVE, READY
from tests.sim.channel_swarm import TOPIC, Node, Swarm
from tests.sim.net import RETIRED_S, Net
from wire.errors import PeerUnreachable


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=0.02))


def seen(node: Node) -> dict[str, int]:
    """What a node's machine remembers of its peers, by identity: a peer that came again differs."""
    return {peer: id(state) for peer, state in node.channels._machine._peers.items()}


def scores(node: Node) -> list[float]:
    return [node.channels._machine.score(peer) for peer in node.channels._machine._peers]


async def test_streams_move_in_the_middle_of_a_burst(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    before = seen(a), seen(b)
    words = [b"%d" % number + bytes(40_000) for number in range(300)]

    async def move() -> None:
        for _ in range(5):
            await trio.sleep(0.2)
            swarm.net.move(a.peer, b.peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        for number, word in enumerate(words):
            await (a, b)[number % 2].channels.publish(TOPIC, word)
            await trio.sleep(0.005)
    await trio.sleep(3)
    for node in (a, b):
        assert sorted(node.words) == sorted(words)  # each once
        assert node.channels._links.moved >= 3
        assert node.channels.stats.dropped == node.channels.stats.unsent == 0
        assert min(scores(node)) >= 0
    await trio.sleep(2 * RETIRED_S)
    await a.channels.publish(TOPIC, b"after the end of the old connection")
    await trio.sleep(1)
    assert len(b.words) == 301
    assert (seen(a), seen(b)) == before  # neither machine has noticed anything
    assert swarm.net.errors == []


async def test_a_swarm_whose_paths_change_all_the_time_loses_nothing(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    nodes, dice = await swarm.add(6), random.Random(3)
    words = [b"%d" % number + bytes(1000) for number in range(80)]

    async def move() -> None:
        while True:
            await trio.sleep(0.05)
            one, other = dice.sample(nodes, 2)
            swarm.net.move(one.peer, other.peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        for word in words:
            await dice.choice(nodes).channels.publish(TOPIC, word)
            await trio.sleep(0.02)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    for node in nodes:
        assert sorted(node.words) == sorted(words)
    assert swarm.net.errors == []


async def test_a_stream_that_breaks_while_it_moves_begins_again(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    for number in range(24):
        old = swarm.net.streams(a.peer, b.peer)
        swarm.net.move(a.peer, b.peer)
        await trio.sleep(number * 0.005)  # at all moments of a move
        for stream in old:
            stream.break_at(trio.current_time())
        await trio.sleep(STABLE_S + 1)
        word = b"%d" % number
        await a.channels.publish(TOPIC, word)
        await b.channels.publish(TOPIC, word + word)
        await trio.sleep(5)
        assert sorted(a.words[-2:]) == sorted(b.words[-2:]) == [word, word + word]
    assert {type(error) for error in swarm.net.errors} <= {PeerUnreachable}


async def test_a_peer_without_moves_gets_a_new_stream_when_the_old_one_ends(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    del swarm.net.host(b.peer)._servers[MOVE]  # another implementation
    swarm.net.move(a.peer, b.peer)
    await trio.sleep(RETIRED_S / 2)
    await a.channels.publish(TOPIC, b"one")
    await trio.sleep(RETIRED_S)
    await a.channels.publish(TOPIC, b"two")
    await trio.sleep(5)
    assert b.words == [b"one", b"two"]


async def test_a_second_stream_that_is_never_used_changes_nothing(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    host = swarm.net.host(a.peer)
    first = await host.open(b.peer, MOVE, timeout_s=1)
    assert await first.read(1) == READY
    second = await host.open(b.peer, MOVE, timeout_s=1)
    with pytest.raises(PeerUnreachable):
        await second.read(1)  # one at a time
    await trio.sleep(2 * MOVE_S)
    with pytest.raises(PeerUnreachable):
        await first.read(1)
    await a.channels.publish(TOPIC, b"hello")
    await trio.sleep(1)
    assert b.words == [b"hello"]
    swarm.net.move(a.peer, b.peer)
    await trio.sleep(2 * RETIRED_S)
    await a.channels.publish(TOPIC, b"moved")
    await trio.sleep(1)
    assert b.words == [b"hello", b"moved"]
    assert a.channels._links.moved == 1
