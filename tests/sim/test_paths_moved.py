"""What stands on calls while the paths under it change all the time: nothing fails, nothing is
begun again.
"""

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocols.blobs.wire import CHUNK_BYTES
from tests.sim.answering import PROMPT as QUESTION
from tests.sim.answering import AnswerSwarm, answer_of
from tests.sim.answering import expected as expected_answer
from tests.sim.blob_peers import Peers
from tests.sim.net import Net
from tests.sim.ring import LAYERS, PROMPT, Swarm, expected, go_on
from tests.sim.training import Swarm as Training
from wire.ids import PeerId

A, B, C = (PeerId(name) for name in "ABC")
BIG = b"".join(number.to_bytes(4, "big") * (CHUNK_BYTES // 4) for number in range(20))


async def move_all(net: Net, seed: int, pause_s: float) -> None:
    """Move somebody's streams, again and again."""
    rng = random.Random(seed)
    while True:
        await trio.sleep(rng.random() * pause_s)
        net.move(*rng.sample(sorted(net.hosts), 2))


def moved(net: Net) -> int:
    return sum(rpc.counters.moved for rpc in net._rpcs.values())


def failed(net: Net) -> int:
    return sum(rpc.counters.errors_out + rpc.counters.repeated for rpc in net._rpcs.values())


@pytest.mark.parametrize("seed", range(4))
async def test_a_ring_goes_on_with_the_same_sessions(
    autojump_clock: MockClock, nursery: trio.Nursery, seed: int
) -> None:
    swarm = Swarm(nursery, n_layers=LAYERS)
    route = await swarm.chain(0, 1, 3, 4)
    async with swarm.ring(route) as ring, trio.open_nursery() as moving:
        moving.start_soon(move_all, swarm.net, seed, 0.3)
        found = await ring.say(PROMPT, 3)
        assert await go_on(ring, found, 20) == expected(20)
        assert not any(control.ended.is_set() for control in ring.controls)
        moving.cancel_scope.cancel()
    assert [swarm.nodes[p].workers[s].span.rows for p, s, _ in route] == [len(PROMPT) + 19] * 3
    assert moved(swarm.net) > 4


async def test_an_answer_is_given_without_a_repair(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"a": (0, 2), "b": (2, 4), "c": (4, 6)})
    async with swarm.generate(QUESTION, 8) as generation, trio.open_nursery() as moving:
        moving.start_soon(move_all, swarm.net, 1, 0.05)
        assert await answer_of(generation) == expected_answer(QUESTION, 8)
        moving.cancel_scope.cancel()
    [finished] = swarm.finished
    assert [hop.peer for hop in finished.hops] == ["a", "b", "c"]
    nursery.cancel_scope.cancel()


async def test_a_blob_comes_from_the_same_providers(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    net = Net(nursery)
    peers = Peers(net, tmp_path)
    a, providers = peers.make(A), [peers.make(peer, upload_bytes_per_s=5e6) for peer in (B, C)]
    for provider in providers:
        cid = await provider.put_bytes(BIG)
    async with trio.open_nursery() as moving:
        moving.start_soon(move_all, net, 2, 0.3)
        await a.fetch(cid, [B, C])
        moving.cancel_scope.cancel()
    assert await a.read_bytes(cid) == BIG
    assert a.counters.providers_dropped == 0
    assert moved(net) > 2
    assert failed(net) == 0


async def test_rounds_need_no_second_attempt(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = Training(Net(nursery), nursery)
    for _ in range(3):
        await swarm.add(min_members=3)
    async with trio.open_nursery() as moving:
        moving.start_soon(move_all, swarm.net, 3, 0.05)
        await swarm.train(3)
        moving.cancel_scope.cancel()
    swarm.check(3)
    for trainer in swarm.trainers:
        for outcome in trainer.outcomes:
            assert outcome.certificate is not None
            assert outcome.certificate.attempt == 0
    assert moved(swarm.net) > 2
    nursery.cancel_scope.cancel()
