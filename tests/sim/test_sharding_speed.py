"""What an answer costs: latency, guesses, long prompts, reused prefixes; on the virtual clock."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.generate import Generation, PrefixKeys
from protocols.sharding.wire import DRAFT_MAX, STEP_TOKENS, Pick, Sampling
from protocols.sharding.worker_wire import Output, WorkerAnswer
from tests.sim.answering import N_LAYERS, PROMPT, AnswerSwarm, answer_of, expected
from tests.sim.pretend_worker import VOCABULARY
from wire.ids import PeerId

CHAIN = {"a": (0, 2), "b": (2, 4), "c": (4, 6)}
LOOP = [7, 3, 9, 1] * 6


def cut(stages: int) -> dict[str, tuple[int, int]]:
    each = N_LAYERS // stages
    return {"abcdef"[i]: (i * each, (i + 1) * each) for i in range(stages)}


def in_a_loop(swarm: AnswerSwarm) -> None:
    """The last worker says the prompt again and again: a text full of repetitions."""

    def tamper(answer: WorkerAnswer) -> WorkerAnswer:
        if not isinstance(answer, Output) or not answer.picks:
            return answer
        first = answer.position - len(answer.picks) + 1
        picks = [Pick(LOOP[(first + index) % len(LOOP)]) for index in range(len(answer.picks))]
        return Output(answer.number, answer.position, answer.rows, picks)

    swarm.workers[PeerId("c")].tamper = tamper


async def seconds_per_token(generation: Generation, count: int) -> float:
    tokens = generation.tokens()
    await anext(tokens)
    began, left = trio.current_time(), count - 1
    async for picks in tokens:
        left -= len(picks)
    assert left == 0
    return (trio.current_time() - began) / (count - 1)


@pytest.mark.parametrize("stages", [1, 2, 3, 6])
@pytest.mark.parametrize("latency_s", [0.0, 0.001, 0.02, 0.1])
async def test_a_token_takes_its_compute_and_one_way_around_the_ring(
    autojump_clock: MockClock, nursery: trio.Nursery, stages: int, latency_s: float
) -> None:
    swarm = await AnswerSwarm.start(nursery, cut(stages), latency_s=latency_s, step_s=0.01)
    async with swarm.generate(PROMPT, 33, speculate=False) as generation:
        each_s = await seconds_per_token(generation, 33)
    assert each_s <= (stages * 0.01 + (stages + 1) * latency_s) / 0.9
    assert each_s >= stages * 0.01 + (stages + 1) * latency_s - 1e-6  # the clock is right
    nursery.cancel_scope.cancel()


async def test_guesses_make_repetitive_text_faster_on_slow_links_and_change_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    times = list[float]()
    for speculate in (False, True):
        swarm = await AnswerSwarm.start(nursery, CHAIN, latency_s=0.02, row_s=0.001)
        in_a_loop(swarm)
        async with swarm.generate(LOOP, 100, speculate=speculate) as generation:
            times.append(await seconds_per_token(generation, 100))
            assert (generation.accepted > 50) == speculate
    assert times[1] < times[0] / 1.5
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(8))
async def test_guesses_right_and_wrong_leave_the_answer_as_it_was(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocols.sharding.draft.PAYS", 0.5)  # also where few are right
    rng = random.Random(seed)
    prompt = [rng.randrange(3) for _ in range(rng.choice([3, 60, 300]))]
    sampling = Sampling(temperature=float(seed % 2), seed=seed)
    swarm = await AnswerSwarm.start(nursery, CHAIN, latency_s=0.02)
    drafted = 0
    async with swarm.generate(prompt, 60, sampling=sampling) as generation:
        found = list[int]()
        async for picks in generation.tokens():
            assert 1 <= len(picks) <= DRAFT_MAX
            found += [pick.token for pick in picks]
            if len(found) > 20 and not generation.replaced:
                swarm.kill("b") if seed % 3 == 0 else None
                await swarm.add("x", 1, 5) if not swarm.spans.get(PeerId("x")) else None
        drafted = generation.drafted
    assert found == expected(prompt, 60, sampling=sampling)
    assert drafted > 0
    nursery.cancel_scope.cancel()


async def test_nothing_is_guessed_where_a_row_costs_as_much_as_a_step(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN, latency_s=0.0, step_s=0.0, row_s=0.01)
    prompt = [1, 2, 3] * 10
    async with swarm.generate(prompt, 60) as generation:
        each_s = await seconds_per_token(generation, 60)
    assert each_s < 1.15 * 0.03
    nursery.cancel_scope.cancel()


async def test_stages_whose_caches_cannot_go_back_get_no_guesses(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"a": (0, 4)}, latency_s=0.02)
    await swarm.add("b", 4, 6, truncates=False)
    prompt = list(range(VOCABULARY))  # whatever is said was said before
    for _ in range(2):
        async with swarm.generate(prompt, 20) as generation:
            assert await answer_of(generation) == expected(prompt, 20)
            assert (generation.drafted, generation.reused_tokens) == (0, 0)
    nursery.cancel_scope.cancel()


async def test_stages_work_on_different_steps_of_a_long_prompt_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    prompt = [i * i % 89 for i in range(8 * STEP_TOKENS)]
    for stages in (1, 3):
        swarm = await AnswerSwarm.start(nursery, cut(stages), latency_s=0.0, step_s=0, row_s=0.001)
        async with swarm.generate(prompt, 1) as generation:
            began = trio.current_time()
            assert await answer_of(generation) == expected(prompt, 1)
            took_s = trio.current_time() - began
        step_s = STEP_TOKENS * 0.001
        assert took_s == pytest.approx((8 + stages - 1) * step_s, rel=0.1)
        assert [len(worker.asked) > 8 for worker in swarm.workers.values()] == [True] * stages
    nursery.cancel_scope.cancel()


async def test_a_prompt_that_goes_on_from_an_earlier_one_computes_only_what_is_new(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    long = [i * i % 89 for i in range(200)]
    async with swarm.generate(long, 20) as generation:
        first = await answer_of(generation)
    before = swarm.workers[PeerId("b")].span.rows
    longer = [*long, *first, 5, 6, 7]
    async with swarm.generate(longer, 8) as generation:
        assert await answer_of(generation) == expected(longer, 8)
        assert generation.reused_tokens == 208  # 16 by 16 of the 219 that were computed
    assert swarm.workers[PeerId("b")].span.rows - before < 40
    # another entry's key, or another prompt, reuses nothing
    other = [*long[:8], 1, *long[9:]]
    async with swarm.generate(other, 4) as generation:
        assert await answer_of(generation) == expected(other, 4)
        assert generation.reused_tokens == 0
    # stages that have different prefixes go on where all can
    async with swarm.generate(longer, 8) as generation:
        swarm.kill("b")
        await swarm.add("x", 2, 4)
        assert await answer_of(generation) == expected(longer, 8)
    assert generation.replaced == 1
    async with swarm.generate(longer, 8) as generation:
        assert await answer_of(generation) == expected(longer, 8)
    nursery.cancel_scope.cancel()


def test_prefix_keys_say_nothing_without_the_key() -> None:
    ours, theirs = PrefixKeys(b"a" * 32), PrefixKeys(b"b" * 32)
    keys = ours.of("m", list(range(50)))
    assert [len(key) for key in keys] == [16, 16, 16]
    assert ours.of("m", [*range(32), 99, 98]) == keys[:2]
    assert not set(keys) & set(theirs.of("m", list(range(50))))
    assert not set(keys) & set(ours.of("n", list(range(50))))
    assert not set(keys[1:]) & set(ours.of("m", [9, *range(1, 50)]))  # each names all before it
