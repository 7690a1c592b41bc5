"""Messages on their way to a program at the control socket: together, in order, none twice."""

from contextlib import aclosing

import pytest
import trio
from trio.testing import MockClock

from node.channels import TOGETHER_BYTES, ChannelDesk
from node.control.api import Event
from protocols.channels.policy import Policy
from protocols.channels.subscription import QUEUE_MAX
from shoal.channels import Message, Subscribe
from tests.sim.channel_swarm import TOPIC, Node, Swarm
from tests.sim.net import Net
from wire.ids import PeerId


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=0.02))


class Program:
    """Reads a topic through the desk of a node, one yield after the other."""

    def __init__(self, node: Node) -> None:
        desk = ChannelDesk(node.channels, lambda peer: f"name of {peer}", PeerId)
        self.stream = desk.messages(Subscribe(TOPIC), Policy())

    async def next(self) -> list[Message]:
        with trio.fail_after(120):
            found = await anext(self.stream)
        events = found if isinstance(found, list) else [found]
        assert all(isinstance(event, Event) for event in events)
        return [event.data for event in events if isinstance(event.data, Message)]


async def test_messages_that_wait_are_given_together_in_order(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    program = Program(b)
    async with aclosing(program.stream):
        assert await program.next() == []  # the event "ready"
        words = [b"%d" % number + bytes(1000) for number in range(100)]
        for word in words:
            await a.channels.publish(TOPIC, word)
        await trio.sleep(1)
        parts = [await program.next(), await program.next()]
        assert [message.data for part in parts for message in part] == words
        assert {message.name for part in parts for message in part} == {f"name of {a.peer}"}
        first_bytes = sum(len(message.data) for message in parts[0])
        assert TOGETHER_BYTES <= first_bytes < TOGETHER_BYTES + 1100


async def test_what_a_slow_program_lost_is_told_once(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    program = Program(b)
    async with aclosing(program.stream):
        await program.next()
        for number in range(QUEUE_MAX + 10):
            await a.channels.publish(TOPIC, b"%d" % number)
        await trio.sleep(5)
        found = await program.next()
        assert [message.dropped for message in found] == [10] + (QUEUE_MAX - 1) * [0]
        await a.channels.publish(TOPIC, b"more")
        assert [message.dropped for message in await program.next()] == [0]


async def test_a_message_that_waits_for_its_blob_is_not_overtaken(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    program = Program(b)
    async with aclosing(program.stream):
        await program.next()
        for word in (b"before", bytes(100_000), b"after"):
            await a.channels.publish(TOPIC, word)
        await trio.sleep(0.05)  # the blob takes 0.1 s
        assert [message.data for message in await program.next()] == [b"before"]
        found = await program.next()
        found += await program.next()
        assert [len(message.data) for message in found] == [100_000, 5]
