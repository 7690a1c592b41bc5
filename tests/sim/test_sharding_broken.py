"""Rings that break: stages lost, links cut, paths changed, on a virtual clock."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.wire import (
    Broken,
    Place,
)
from tests.sim.ring import (
    ENTRY,
    LAYERS,
    PROMPT,
    TWIN,
    Ring,
    Swarm,
    expected,
    go_on,
)
from wire.ids import PeerId


@pytest.fixture
async def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, n_layers=LAYERS)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("fault", ["kill", "crash"])
async def test_a_lost_stage_is_replaced_and_only_it_computes_again(
    autojump_clock: MockClock, swarm: Swarm, lost: int, fault: str
) -> None:
    route = await swarm.chain(0, 1, 3, 4)
    _, start, end = route[lost]
    twin = (await swarm.add("twin")).host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 9)
        node = swarm.nodes[route[lost][0]]
        if fault == "kill":
            swarm.net.kill(node.peer)
        else:
            node.workers[start].crash()
        ring.step(found[-1:])
        await ring.controls[lost].ended.wait()
        error = ring.controls[lost].error
        assert error is not None
        assert error.code == ("unreachable" if fault == "kill" else "worker_gone")
        await ring.replace(lost, TWIN)
        found += await ring.picked()
        assert await go_on(ring, found, 20) == expected(20)
    rows = [swarm.nodes[peer].workers[start].span.rows for peer, start, _ in ring.route]
    assert rows == [len(PROMPT) + 19] * 3  # each row once
    assert twin.span.rows == len(PROMPT) + 19


async def test_all_stages_may_be_lost_at_once(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 2, 4)
    for name, start, end in (("x", 0, 2), ("y", 2, 4)):
        (await swarm.add(name)).host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 9)
        ring.step(found[-1:])
        for peer, _, _ in route:
            swarm.net.kill(peer)
        ring.route[1] = (PeerId("y"), 2, 4)
        await ring.replace(0, PeerId("x"))
        await ring.replace(1, PeerId("y"))
        found += await ring.picked()
        assert await go_on(ring, found, 20) == expected(20)


async def test_a_broken_link_between_stages_is_told_and_mended_by_a_rewire(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        swarm.net.cut(PeerId("s0"), PeerId("s1"))
        ring.step(found[-1:])
        broken = await ring.controls[0].heard(Broken)
        assert (broken.next, broken.forgot) == (Place("s1", 2), False)
        swarm.net.heal()
        await ring.rewire(0)
        found += await ring.picked()
        assert await go_on(ring, found, 9) == expected(9)


async def test_a_feed_whose_connection_is_new_goes_on_without_a_word(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        swarm.net.cut(PeerId("s0"), PeerId("s1"))
        swarm.net.heal()
        assert await go_on(ring, found, 9) == expected(9)
        assert not any(isinstance(said, Broken) for said in ring.controls[0].said)


@pytest.mark.parametrize("lost", ["picks", "feed", "all"])
async def test_an_entry_whose_path_changes_goes_on_with_the_same_sessions(
    autojump_clock: MockClock, swarm: Swarm, lost: str
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        ring.step(found[-1:])
        if lost in ("picks", "all"):
            swarm.net.cut(ENTRY, PeerId("s1"))
        if lost in ("feed", "all"):
            swarm.net.cut(ENTRY, PeerId("s0"))
        await trio.sleep(5)
        swarm.net.heal()
        for index, control in enumerate(ring.controls):
            if control.ended.is_set():
                ring.controls[index] = await ring.open(index)
                assert ring.controls[index].opened.position >= len(PROMPT) + 2
        await ring.rewire(-1)
        found += await ring.picked()
        assert await go_on(ring, found, 12) == expected(12)
    assert [swarm.nodes[p].workers[s].span.rows for p, s, _ in route] == [len(PROMPT) + 11] * 2


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_to_the_feeds_no_row_is_lost_or_doubled(
    autojump_clock: MockClock, swarm: Swarm, seed: int
) -> None:
    """Links break and mend, feeds are opened anew and drafts are wrong, all at random moments."""
    luck = random.Random(seed)
    route = await swarm.chain(0, 1, 3, 4)
    answer = expected(60)

    async def trouble(ring: Ring) -> None:
        while True:
            await trio.sleep(luck.expovariate(8))
            index = luck.randrange(-1, 3)
            here = route[index][0] if index >= 0 else ENTRY
            there = route[index + 1][0] if index < 2 else ENTRY
            if luck.random() < 0.5:
                swarm.net.cut(here, there)
                await trio.sleep(luck.choice((0.0, 0.05, 0.3)))
                swarm.net.heal()
                await trio.sleep(0.02)
                for number, control in enumerate(ring.controls):
                    if control.ended.is_set():
                        ring.controls[number] = await ring.open(number)
            await ring.rewire(index)

    async with swarm.ring(route) as ring, trio.open_nursery() as nursery:
        nursery.start_soon(trouble, ring)
        ring.step(PROMPT[:3], picks=0)
        ring.step(PROMPT[3:])
        found = await ring.picked()
        while len(found) < 60:
            guess = [token if luck.random() < 0.7 else 1 for token in answer[len(found) :][:3]]
            ring.step(
                [found[-1], *guess], position=len(PROMPT) + len(found) - 1, picks=len(guess) + 1
            )
            picks = await ring.picked()
            right = next((i for i, token in enumerate(guess) if picks[i] != token), len(guess))
            found += picks[: right + 1]
        nursery.cancel_scope.cancel()
    assert found[:60] == answer
