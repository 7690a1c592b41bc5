"""Channels between simulated peers: reach, repetition, slow and faulty peers."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from protocols.channels.machine import QUEUE_MAX
from protocols.channels.service import PUSH_TIMEOUT_S, ChannelService
from protocols.channels.wire import PAYLOAD_MAX, PUSH, Push, Taken
from tests.sim.net import Net
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId

A, B, C, D = (PeerId(name) for name in "ABCD")
LATENCY_S = 0.01
HOP_S = 3 * LATENCY_S  # a new stream, and half a round trip for the message


class Swarm:
    """Channels on every peer, and what each heard: (peer that passed it on, data)."""

    def __init__(self, nursery: trio.Nursery, net: Net) -> None:
        self.nursery, self.net = nursery, net
        self.channels: dict[PeerId, ChannelService] = {}
        self.heard: dict[PeerId, list[tuple[PeerId, bytes]]] = {}

    async def add(self, *peers: PeerId) -> None:
        for peer in peers:
            heard = self.heard[peer] = list[tuple[PeerId, bytes]]()
            channels = ChannelService(self.net.rpc(peer), self.net.host(peer).connected)
            channels.subscribe("news", self.listen(heard))
            await self.nursery.start(channels.run)
            self.channels[peer] = channels

    def listen(
        self, heard: list[tuple[PeerId, bytes]]
    ) -> Callable[[PeerId, bytes], Awaitable[bool]]:
        async def handler(peer: PeerId, data: bytes) -> bool:
            heard.append((peer, data))
            if data == b"malformed":
                raise BadMessage("not news")
            return data != b"stale"

        return handler


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=LATENCY_S))


async def test_everybody_hears_it_once_and_soon(autojump_clock: MockClock, swarm: Swarm) -> None:
    await swarm.add(A, B, C, D)
    began = trio.current_time()
    await swarm.channels[A].publish("news", b"hello")
    await trio.sleep(HOP_S + 0.001)
    assert trio.current_time() - began < 2 * HOP_S
    assert swarm.heard == {A: [], B: [(A, b"hello")], C: [(A, b"hello")], D: [(A, b"hello")]}
    await trio.sleep(10)
    assert [len(heard) for heard in swarm.heard.values()] == [0, 1, 1, 1]


async def test_it_reaches_those_we_are_not_connected_to(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(A, B, C, D)
    for one, other in ((A, C), (A, D), (B, D)):
        swarm.net.cut(one, other)  # a line is left: A B C D
    await swarm.channels[A].publish("news", b"hello")
    await trio.sleep(1)
    assert (swarm.heard[C], swarm.heard[D]) == ([(B, b"hello")], [(C, b"hello")])


async def test_the_same_words_twice_are_two_messages(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(A, B, C)
    for _ in range(2):
        await swarm.channels[A].publish("news", b"hello")
    await trio.sleep(1)
    assert [data for _, data in swarm.heard[B]] == [b"hello"] * 2
    assert swarm.channels[B].stats.repeated + swarm.channels[C].stats.repeated > 0


async def test_a_burst_arrives_whole_and_in_order(autojump_clock: MockClock, swarm: Swarm) -> None:
    await swarm.add(A, B)
    for number in range(QUEUE_MAX):
        await swarm.channels[A].publish("news", b"%d" % number)
    await trio.sleep(5)
    assert [data for _, data in swarm.heard[B]] == [b"%d" % n for n in range(QUEUE_MAX)]
    assert swarm.net.rpc(A).counters.calls_out < 10  # in batches


@pytest.mark.parametrize("data", [b"stale", b"malformed"])
async def test_what_is_invalid_or_no_news_ends_at_the_first_who_sees_it(
    autojump_clock: MockClock, swarm: Swarm, data: bytes
) -> None:
    await swarm.add(A, B, C)
    swarm.net.cut(A, C)
    await swarm.channels[A].publish("news", data)
    await swarm.channels[A].publish("news", b"hello")
    await trio.sleep(1)
    assert swarm.heard[B] == [(A, data), (A, b"hello")]
    assert swarm.heard[C] == [(B, b"hello")]
    stats = swarm.channels[B].stats
    assert (stats.stale, stats.invalid) == ((1, 0) if data == b"stale" else (0, 1))


async def test_a_topic_without_subscriber_ends_here(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(A, B, C)
    swarm.net.cut(A, C)
    await swarm.channels[A].publish("other", b"hello")
    await trio.sleep(1)
    assert swarm.channels[B].stats.unwanted == 1
    assert swarm.channels[C].stats.unwanted == 0


async def test_a_peer_that_hangs_delays_nobody_and_loses_its_oldest(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(A, C)
    taken = list[int]()
    gate = trio.Event()

    async def hang(peer: PeerId, push: Push) -> Taken:
        await gate.wait()
        taken.extend(message.number for message in push.messages)
        return Taken(len(push.messages))

    swarm.net.rpc(B).serve(PUSH, hang)
    swarm.net.cut(B, C)
    await swarm.channels[A].publish("news", b"first")
    await trio.sleep(HOP_S)
    for _ in range(QUEUE_MAX + 10):
        await swarm.channels[A].publish("news", b"next")
        await trio.sleep(0.001)
    await trio.sleep(2 * HOP_S)
    assert len(swarm.heard[C]) == QUEUE_MAX + 11
    assert swarm.channels[A].stats.dropped == 10
    gate.set()
    await trio.sleep(5)
    assert len(taken) == QUEUE_MAX + 1
    assert taken == sorted(taken)


async def test_a_silent_peer_costs_its_own_messages_only(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(A, B, C)
    swarm.net.cut(A, B, silent=True)
    swarm.net.cut(B, C)
    await swarm.channels[A].publish("news", b"hello")
    await trio.sleep(PUSH_TIMEOUT_S + 1)
    assert swarm.channels[A].stats.failed == 1
    swarm.net.heal()
    await swarm.channels[A].publish("news", b"again")
    await trio.sleep(1)
    assert (A, b"again") in swarm.heard[B]
    assert swarm.heard[C] == [(A, b"hello"), (A, b"again")]


async def test_a_dead_peer_is_forgotten_and_heard_again_when_back(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(A, B)
    await swarm.channels[A].publish("news", b"one")
    await trio.sleep(1)
    swarm.net.kill(B)
    await swarm.channels[A].publish("news", b"two")
    await trio.sleep(1)
    swarm.net.revive(B)
    await swarm.channels[A].publish("news", b"three")
    await trio.sleep(1)
    assert [data for _, data in swarm.heard[B]] == [b"one", b"three"]


async def test_limits_are_kept_at_our_own_door(autojump_clock: MockClock, swarm: Swarm) -> None:
    await swarm.add(A, B)
    await swarm.channels[A].publish("news", bytes(PAYLOAD_MAX))
    await trio.sleep(1)
    assert [len(data) for _, data in swarm.heard[B]] == [PAYLOAD_MAX]
    with pytest.raises(UsageError, match="over the limit"):
        await swarm.channels[A].publish("news", bytes(PAYLOAD_MAX + 1))
    with pytest.raises(UsageError, match="not a topic"):
        await swarm.channels[A].publish("No Such Topic", b"")
    with pytest.raises(UsageError, match="subscribed already"):
        swarm.channels[A].subscribe("news", swarm.listen([]))
