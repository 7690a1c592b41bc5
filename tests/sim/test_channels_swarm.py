"""Channels on simulated hosts: everybody hears everything once, whatever happens on the way."""

import pytest
import trio
from trio.testing import MockClock

from tests.sim.channel_swarm import TOPIC, Swarm
from tests.sim.net import Net


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
