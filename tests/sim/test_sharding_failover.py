"""Answers go on, the same, whoever is lost: at every token, on the virtual clock."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.generate import Generation
from protocols.sharding.parts import PATIENCE_S, HopLost
from protocols.sharding.reputation import AVOIDED_S
from protocols.sharding.wire import SILENCE_S, Sampling
from tests.sim.answering import PROMPT, AnswerSwarm, answer_of, expected
from wire.ids import PeerId

COUNT = 8
CHAIN = {"a": (0, 2), "b": (2, 4), "c": (4, 6)}


async def test_a_ring_says_what_the_whole_model_says(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
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
        swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": span})
        swarm.avoided = {PeerId("x")}
        peer = PeerId(lost)

        def hit(swarm: AnswerSwarm = swarm, peer: PeerId = peer) -> None:
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
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (0, 6)})
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


@pytest.mark.parametrize("lost", ["ab", "bc", "ac", "abc"])
@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize(
    "spare", [{"x": (0, 6)}, {"x": (0, 3), "y": (3, 6)}, dict.fromkeys("xyz", (0, 6))]
)
async def test_several_are_lost_at_once_and_others_with_other_bounds_take_over(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    lost: str,
    fault: str,
    spare: dict[str, tuple[int, int]],
) -> None:
    for at in (0, 3):
        swarm = await AnswerSwarm.start(nursery, {**CHAIN, **spare})
        swarm.avoided = {PeerId(name) for name in spare}

        def hit(swarm: AnswerSwarm = swarm) -> None:
            for name in lost:
                swarm.kill(name) if fault == "kill" else swarm.freeze(name)

        async with swarm.generate(PROMPT, COUNT, speculate=False) as generation:
            found, pause_s = await timed(generation, hit, at)
            assert found == expected(PROMPT, COUNT)
            peers = {str(hop.peer) for hop in generation.route}
            assert not peers & set(lost)
        assert pause_s < REPAIR_S + (SILENCE_S if fault == "freeze" else 0)
    nursery.cancel_scope.cancel()


async def test_a_replacement_that_is_lost_in_the_middle_of_the_replay_is_replaced(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    for after_ms in range(0, 200, 10):
        swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (2, 4), "y": (2, 4)})
        swarm.avoided = {PeerId("x"), PeerId("y")}

        async def again(swarm: AnswerSwarm = swarm, after_s: float = after_ms / 1000) -> None:
            await trio.sleep(after_s)
            used = [peer for peer in ("x", "y") if swarm.services[PeerId(peer)].sessions]
            if used:
                swarm.kill(used[0])

        def hit(swarm: AnswerSwarm = swarm, again: Callable[[], Awaitable[None]] = again) -> None:
            swarm.kill("b")
            nursery.start_soon(again)

        async with swarm.generate(PROMPT, COUNT) as generation:
            found, pause_s = await timed(generation, hit, 4)
            assert found == expected(PROMPT, COUNT)
        assert pause_s < 2 * REPAIR_S
    nursery.cancel_scope.cancel()


async def test_who_alone_has_the_blocks_is_waited_for(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    for away_s in (0.3, 5.0, 25.0):
        swarm = await AnswerSwarm.start(nursery, CHAIN)

        async def return_(swarm: AnswerSwarm = swarm, away_s: float = away_s) -> None:
            await trio.sleep(away_s)
            swarm.net.revive(PeerId("b"))

        def hit(swarm: AnswerSwarm = swarm, back: Callable[[], Awaitable[None]] = return_) -> None:
            swarm.kill("b")
            nursery.start_soon(back)

        async with swarm.generate(PROMPT, COUNT) as generation:
            found, pause_s = await timed(generation, hit, 4)
            assert found == expected(PROMPT, COUNT)
            assert away_s < pause_s < away_s + 2.0
    nursery.cancel_scope.cancel()


async def test_blocks_that_come_back_nowhere_end_the_answer_with_a_reason(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    began = trio.current_time()
    with pytest.raises(HopLost, match=r"blocks 2-4 on b are lost: b is not there"):
        async with swarm.generate(PROMPT, COUNT) as generation:
            await timed(generation, lambda: swarm.kill("b"), 4)
    assert PATIENCE_S < trio.current_time() - began < PATIENCE_S + 5
    assert all(not service.sessions for service in swarm.services.values())
    nursery.cancel_scope.cancel()


async def test_a_new_node_that_takes_the_blocks_is_found(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)

    async def heal() -> None:
        await trio.sleep(8.0)
        await swarm.add("new", 1, 5)

    def hit() -> None:
        swarm.kill("b")
        nursery.start_soon(heal)

    async with swarm.generate(PROMPT, COUNT) as generation:
        found, pause_s = await timed(generation, hit, 4)
        assert found == expected(PROMPT, COUNT)
        assert [hop.peer for hop in generation.route] == ["a", "new", "c"]
    assert pause_s < 10.0
    nursery.cancel_scope.cancel()


async def faults(swarm: AnswerSwarm, rng: random.Random) -> None:
    """Some of the nodes and links break; all come back in time."""
    for _ in range(rng.randrange(1, 6)):
        await trio.sleep(rng.uniform(0.0, 0.5))
        name = rng.choice("abcxyz")
        match rng.randrange(6):
            case 0:
                swarm.kill(name)
            case 1:
                swarm.freeze(name)
            case 2:
                swarm.change_path()
            case 3:
                swarm.workers[PeerId(name)].crash()
            case _:
                one, other = rng.sample("abcxyzw", 2)  # only the link between them
                swarm.net.cut(PeerId(one), PeerId(other), silent=rng.random() < 0.3)
    await trio.sleep(3.0)
    swarm.net.heal()
    for name in "abcxyz":
        swarm.net.revive(PeerId(name))


@pytest.mark.parametrize("seed", range(40))
async def test_any_schedule_of_faults_leaves_the_answers_as_they_were(
    autojump_clock: MockClock, nursery: trio.Nursery, seed: int
) -> None:
    rng = random.Random(seed)
    spans = {**CHAIN, "x": (0, 3), "y": (3, 6), "z": (1, 5), "w": (0, 6)}
    swarm = await AnswerSwarm.start(
        nursery,
        spans,
        latency_s=rng.choice([0.0, 0.005, 0.05]),
        history_bytes=rng.choice([0, 2000, 1 << 28]),
    )
    swarm.avoided = {PeerId("w")}
    prompt = [rng.randrange(90) for _ in range(rng.choice([1, 12, 200, 500]))]
    sampling = Sampling(temperature=rng.choice([0.0, 1.0]), seed=seed)
    for _ in range(2):  # the second goes on from the first
        async with trio.open_nursery() as breaking:
            breaking.start_soon(faults, swarm, rng)
            async with swarm.generate(
                prompt, 40, sampling=sampling, speculate=rng.random() < 0.5
            ) as generation:
                found = await answer_of(generation)
            assert found == expected(prompt, 40, sampling=sampling)
        prompt = [*prompt, *found, 7]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_silent", [False, True])
async def test_who_says_it_is_ready_and_is_not_is_left_out_of_later_routes(
    autojump_clock: MockClock, nursery: trio.Nursery, is_silent: bool
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"honest": (0, 6)})
    await swarm.add("liar", 0, 6)
    swarm.avoided = {PeerId("honest")}  # what the liar tells of its speed is better
    swarm.workers[PeerId("liar")].crash()
    if is_silent:
        swarm.freeze("liar")

    async def seconds() -> float:
        began = trio.current_time()
        async with swarm.generate(PROMPT, COUNT) as generation:
            assert [hop.peer for hop in generation.route] == ["honest"]
            opened = trio.current_time() - began
            assert await answer_of(generation) == expected(PROMPT, COUNT)
            return opened

    once = await seconds()
    assert await seconds() < min(once, 0.1)
    await trio.sleep(AVOIDED_S)
    assert await seconds() == pytest.approx(once, abs=0.05)  # tried again
    await trio.sleep(AVOIDED_S)
    assert await seconds() < min(once, 0.1)  # avoided for twice as long by now
    swarm.kill("honest")
    await swarm.add("liar", 0, 6)
    swarm.net.heal()
    async with swarm.generate(PROMPT, COUNT) as generation:  # nobody else has the blocks
        assert await answer_of(generation) == expected(PROMPT, COUNT)
    nursery.cancel_scope.cancel()
