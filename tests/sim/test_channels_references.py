"""References to blobs that a hostile member makes up: what they hold back, push out and use up."""

import pytest
import trio
from trio.testing import MockClock

from protocols.channels.fetching import FETCH_TIMEOUT_S, OF_AUTHOR_MAX
from protocols.channels.reference import BLOB_MAX, Reference, pack
from tests.sim.channel_enemy import EVIL, Enemy, sealed
from tests.sim.channel_swarm import TOPIC, Swarm
from tests.sim.net import Net


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, Net(nursery, latency_s=0.02))


def made_up(number: int, size_bytes: int = 100_000) -> bytes:
    return pack(Reference(f"nobody has {number}", size_bytes))


async def test_a_blob_that_nobody_has_holds_back_its_own_author_only(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    await enemy.say(b, sealed(EVIL, made_up(0)), sealed(EVIL, b"after it"))
    await trio.sleep(0.5)
    await a.channels.publish(TOPIC, b"hello")
    await trio.sleep(0.5)
    assert b.words == [b"hello"]
    await trio.sleep(FETCH_TIMEOUT_S)
    assert b.words == [b"hello", b"", b"after it"]


async def test_what_a_reference_promises_pushes_nothing_out(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    async with b.channels.listen(TOPIC) as messages:  # and does not read yet
        await a.channels.publish(TOPIC, b"first")
        await trio.sleep(0.5)
        await enemy.say(b, sealed(EVIL, made_up(0, BLOB_MAX)))
        await trio.sleep(0.5)
        await a.channels.publish(TOPIC, b"second")
        await trio.sleep(0.5)
        assert messages.dropped == 0
        assert [(await anext(messages)).data for _ in range(2)] == [b"first", b"second"]


async def test_many_references_of_one_author_leave_the_others_their_turn(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    a, b = await swarm.add(2)
    enemy = Enemy(swarm)
    for number in range(100):
        await enemy.say(b, sealed(EVIL, made_up(number)))
    await trio.sleep(0.5)
    assert b.channels.stats.failed == 100 - OF_AUTHOR_MAX  # told at once
    await a.channels.publish(TOPIC, bytes(200_000))
    await trio.sleep(2)
    assert [len(message.data) for message in b.heard if message.author == a.peer] == [200_000]
