"""Answers go on, the same, whoever is lost: at every token, on the virtual clock."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.generate import Generation
from protocols.sharding.wire import SILENCE_S
from tests.sim.rings import PROMPT, RingSwarm, answer_of, expected
from wire.ids import PeerId

COUNT = 8
CHAIN = {"a": (0, 2), "b": (2, 4), "c": (4, 6)}


async def test_a_ring_says_what_the_whole_model_says(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await RingSwarm.start(nursery, CHAIN)
    async with swarm.generate(PROMPT, COUNT) as generation:
        assert await answer_of(generation) == expected(PROMPT, COUNT)
    [finished] = swarm.finished
    assert [hop.peer for hop in finished.hops] == ["a", "b", "c"]
    assert all(finished.receipts)
    nursery.cancel_scope.cancel()


async def timed(
    generation: Generation, fault: Callable[[], None], at: int
) -> tuple[list[int], float]:
    """Read an answer; the fault comes after `at` tokens. Returns it, and the longest pause."""
    found, pause_s = list[int](), 0.0
    if at == 0:
        fault()
    tokens = generation.tokens()
    while True:
        began = trio.current_time()
        try:
            picks = await anext(tokens)
        except StopAsyncIteration:
            return found, pause_s
        pause_s = max(pause_s, trio.current_time() - began)
        found += [pick.token for pick in picks]
        if len(found) == at:
            fault()


# seconds: a look for the lost one, a new session, feeds on both sides, the replay
REPAIR_S = 0.6


@pytest.mark.parametrize("at", range(COUNT))
@pytest.mark.parametrize("fault", ["kill", "freeze", "crash", "stuck"])
async def test_whoever_is_lost_at_whatever_token_the_answer_goes_on_the_same(
    autojump_clock: MockClock, nursery: trio.Nursery, fault: str, at: int
) -> None:
    for lost, span in CHAIN.items():
        swarm = await RingSwarm.start(nursery, {**CHAIN, "x": span})
        swarm.avoided = {PeerId("x")}
        peer = PeerId(lost)

        def hit(swarm: RingSwarm = swarm, peer: PeerId = peer) -> None:
            match fault:
                case "kill":
                    swarm.kill(peer)
                case "freeze":
                    swarm.freeze(peer)
                case "crash":
                    swarm.workers[peer].crash()
                case _:
                    swarm.workers[peer].frozen = True

        async with swarm.generate(PROMPT, COUNT, speculate=False) as generation:
            found, pause_s = await timed(generation, hit, at)
            assert found == expected(PROMPT, COUNT), lost
            assert [hop.peer for hop in generation.route] == [p.replace(lost, "x") for p in CHAIN]
            assert generation.replaced == 1
        quick = fault in ("kill", "crash")
        assert pause_s < REPAIR_S + (0.0 if quick else SILENCE_S)
        if not quick and at < COUNT - 1:
            assert pause_s > SILENCE_S - 1.0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at", range(COUNT))
async def test_a_changed_path_of_the_entry_loses_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery, at: int
) -> None:
    swarm = await RingSwarm.start(nursery, {**CHAIN, "x": (0, 6)})
    swarm.avoided = {PeerId("x")}
    async with swarm.generate(PROMPT, COUNT, speculate=False) as generation:
        found, pause_s = await timed(generation, swarm.change_path, at)
        assert found == expected(PROMPT, COUNT)
        assert [hop.peer for hop in generation.route] == list(CHAIN)
        assert generation.replaced == 0
    assert pause_s < REPAIR_S
    rows = [swarm.workers[PeerId(peer)].span.rows for peer in CHAIN]
    assert rows == [len(PROMPT) + COUNT - 1] * 3  # nothing is computed twice
    nursery.cancel_scope.cancel()
