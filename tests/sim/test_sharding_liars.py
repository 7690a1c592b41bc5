"""Stages that lie in the middle of an answer: it goes on without them, the same."""

from collections.abc import Callable
from contextlib import aclosing

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.generate import Generation
from protocols.sharding.ring import STALL_S
from protocols.sharding.sessions import StageSession
from protocols.sharding.wire import Pick, Picks, Step
from tests.sim.answering import PROMPT, AnswerSwarm, expected
from tests.sim.pretend_worker import VOCABULARY
from wire.ids import PeerId

CHAIN = {"a": (0, 2), "b": (2, 4), "c": (4, 6)}
COUNT = 8


def the_session(swarm: AnswerSwarm, name: str) -> StageSession:
    [session] = swarm.services[PeerId(name)].sessions.values()
    return session


async def told(generation: Generation, at: int, fault: Callable[[], None]) -> list[int]:
    """Read an answer; the fault comes after `at` tokens."""
    found = list[int]()
    async with aclosing(generation.tokens()) as tokens:
        async for picks in tokens:
            found += [pick.token for pick in picks]
            if len(found) == at:
                fault()
    return found


def _over(picks: Picks) -> list[Picks]:
    return [Picks(picks.number, picks.position, [Pick(VOCABULARY)])]


def _over_beside(picks: Picks) -> list[Picks]:
    pick = Pick(picks.picks[0].token, -1.0, [(VOCABULARY, -1.0)])
    return [Picks(picks.number, picks.position, [pick])]


def _ahead(picks: Picks) -> list[Picks]:
    return [picks, Picks(1 << 53, picks.position, picks.picks)]


@pytest.mark.parametrize("lie", [_over, _over_beside, _ahead])
async def test_a_last_stage_that_tells_nonsense_is_replaced(
    autojump_clock: MockClock, nursery: trio.Nursery, lie: Callable[[Picks], list[Picks]]
) -> None:
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (4, 6)})
    swarm.avoided = {PeerId("x")}

    def hit() -> None:
        session = the_session(swarm, "c")
        add = session._picks.add

        def lied(picks: Picks) -> None:
            for each in lie(picks):
                add(each)

        session._picks.add = lied  # type: ignore[method-assign]

    async with swarm.generate(PROMPT, COUNT, speculate=False) as generation:
        assert await told(generation, 3, hit) == expected(PROMPT, COUNT)
        assert [hop.peer for hop in generation.route] == ["a", "b", "x"]
    assert trio.current_time() < 3.0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("liar", CHAIN)
async def test_a_stage_that_swallows_steps_is_replaced_with_all_who_can_be(
    autojump_clock: MockClock, nursery: trio.Nursery, liar: str
) -> None:
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": CHAIN[liar]})
    swarm.avoided = {PeerId("x")}

    async def swallow(_: Step | Picks) -> None:
        await trio.lowlevel.checkpoint()

    def hit() -> None:
        the_session(swarm, liar).inlet.take = swallow

    async with swarm.generate(PROMPT, COUNT, speculate=False) as generation:
        assert await told(generation, 3, hit) == expected(PROMPT, COUNT)
        assert [hop.peer for hop in generation.route] == [p.replace(liar, "x") for p in CHAIN]
        assert generation.replaced == 1
    assert 3 * STALL_S < trio.current_time() < 3 * STALL_S + 10
    nursery.cancel_scope.cancel()


async def test_a_failover_keeps_to_the_codecs_of_the_session(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (2, 3), "y": (3, 4)})
    swarm.avoided = {PeerId("x"), PeerId("y")}
    swarm.told_rtt_s = 0.001

    def hit() -> None:
        swarm.told_rtt_s = 0.1  # such links would get float16
        swarm.kill("b")

    async with swarm.generate(PROMPT, COUNT, speculate=False) as generation:
        assert await told(generation, 3, hit) == expected(PROMPT, COUNT)
        codecs = [(hop.peer, hop.codec) for hop in generation.route]
    assert codecs == [("a", "float32"), ("x", "float32"), ("y", "float32"), ("c", "picks")]
    nursery.cancel_scope.cancel()
