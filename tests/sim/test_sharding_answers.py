"""What an answer costs and leaves behind: latency, guesses, prefixes, hanging up; virtual clock."""

import random
from contextlib import aclosing

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.generate import END_S, Generation, PrefixKeys
from protocols.sharding.parts import NoRoom
from protocols.sharding.ring import STALL_S
from protocols.sharding.route import NoRoute
from protocols.sharding.wire import DRAFT_MAX, STEP_TOKENS, Pick, Picks, Sampling
from protocols.sharding.worker_wire import Output, WorkerAnswer, WorkerOpen
from tests.sim.answering import N_LAYERS, PROMPT, AnswerSwarm, answer_of, expected
from wire.errors import UsageError
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
    autojump_clock: MockClock, nursery: trio.Nursery, seed: int
) -> None:
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
    for _ in range(2):
        async with swarm.generate(LOOP, 20) as generation:
            assert await answer_of(generation) == expected(LOOP, 20)
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
        assert generation.reused_tokens == 0  # not said yet
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


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015, 0.025, 0.1, 0.33, 0.5])
async def test_who_hangs_up_leaves_no_session_behind(
    autojump_clock: MockClock, nursery: trio.Nursery, after_s: float
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    began = trio.current_time()
    with trio.move_on_after(after_s):
        async with swarm.generate(PROMPT, 500) as generation:
            await answer_of(generation)
    assert trio.current_time() - began < after_s + 0.2
    await trio.sleep(0.2)
    assert [len(service.sessions) for service in swarm.services.values()] == [0] * 4
    nursery.cancel_scope.cancel()


async def test_hanging_up_does_not_wait_for_a_frozen_stage(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    with trio.move_on_after(1.0):
        async with swarm.generate(PROMPT, 500) as generation, aclosing(generation.tokens()) as said:
            async for _ in said:
                if not swarm.net.link(PeerId("a"), PeerId("b")).silent:
                    swarm.freeze("b")
    assert trio.current_time() < 1.0 + END_S + 0.2
    [finished] = swarm.finished
    assert [receipt is not None for receipt in finished.receipts] == [True, False, True]
    nursery.cancel_scope.cancel()


async def test_an_error_of_who_reads_comes_out_as_it_is(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    with pytest.raises(KeyError, match="mine"):
        async with swarm.generate(PROMPT, 500):
            raise KeyError("mine")
    assert len(swarm.finished) == 1
    nursery.cancel_scope.cancel()


async def test_full_nodes_are_passed_by_and_if_all_are_full_the_asker_is_told(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"a": (0, 3)})
    await swarm.add("full", 3, 6, tokens=30)
    await swarm.add("b", 3, 6)
    swarm.avoided = {PeerId("b")}
    async with swarm.generate(PROMPT, 40) as generation:
        assert await answer_of(generation) == expected(PROMPT, 40)
        assert [hop.peer for hop in generation.route] == ["a", "b"]
        assert generation.replaced == 0
    del swarm.spans[PeerId("b")]
    began = trio.current_time()
    with pytest.raises(NoRoom, match="nobody has room for blocks 3-6") as caught:
        async with swarm.generate(PROMPT, 40) as generation:
            pass
    assert trio.current_time() - began < 0.5
    assert caught.value.code == "busy"
    assert caught.value.retry_after_s
    assert caught.value.retry_after_s > 0
    nursery.cancel_scope.cancel()


async def test_what_cannot_be_answered_is_refused_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"a": (0, 3)})
    with pytest.raises(NoRoute, match="blocks 3-6"):
        async with swarm.generate(PROMPT, 8):
            pass
    for prompt, count in (([], 8), (PROMPT, 0), (PROMPT, 1 << 17)):
        with pytest.raises(UsageError, match="make no session"):
            async with swarm.generate(prompt, count):
                pass
    assert trio.current_time() == 0.0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("codec", "rtt_s", "between"),
    [
        ("auto", 0.001, "float32"),
        ("auto", 0.02, "float16"),
        ("int8", 0.001, "int8"),
    ],
)
async def test_codecs_between_stages(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str, rtt_s: float, between: str
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    swarm.told_rtt_s = rtt_s
    async with swarm.generate(PROMPT, 8, codec=codec) as generation:
        assert await answer_of(generation) == expected(PROMPT, 8)
    opened = {
        peer: [(ask.takes, ask.gives) for ask in worker.asked if isinstance(ask, WorkerOpen)]
        for peer, worker in swarm.workers.items()
    }
    assert opened == {"a": [("ids", between)], "b": [(between, between)], "c": [(between, "picks")]}
    nursery.cancel_scope.cancel()


async def test_what_is_told_of_each_hop(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (2, 4)}, latency_s=0.03, step_s=0.02)
    swarm.avoided = {PeerId("x")}
    async with swarm.generate(PROMPT, 40, speculate=False) as generation:
        count = 0
        async for picks in generation.tokens():
            count += len(picks)
            if count == 30:
                swarm.kill("b")
        a, x, c = generation.timings
    assert (a.peer, a.start, a.end, a.tokens, c.tokens) == ("a", 0, 2, 40, 40)
    assert (x.peer, x.tokens) == ("x", 10)
    assert a.link_ms == pytest.approx(30, rel=0.1)
    assert a.compute_ms == pytest.approx(20)
    nursery.cancel_scope.cancel()


async def test_a_last_stage_that_picks_what_was_not_asked_for_is_replaced(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (4, 6)})
    swarm.avoided = {PeerId("x")}
    async with swarm.generate(PROMPT, 8, speculate=False) as generation:
        found = list[int]()
        async for picks in generation.tokens():
            found += [pick.token for pick in picks]
            if len(found) == 3:
                [session] = swarm.services[PeerId("c")].sessions.values()
                add = session._picks.add

                def two(picks: Picks, add: object = add) -> None:
                    add(Picks(picks.number, picks.position, picks.picks * 2))  # type: ignore[operator]

                session._picks.add = two  # type: ignore[method-assign]
        assert found == expected(PROMPT, 8)
        assert generation.route[-1].peer == "x"
    nursery.cancel_scope.cancel()


async def test_a_step_that_is_lost_on_the_way_is_sent_again_after_a_while(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    async with swarm.generate(PROMPT, 8, speculate=False) as generation:
        tokens = generation.tokens()
        await anext(tokens)
        [session] = swarm.services[PeerId("b")].sessions.values()
        session.feeder.number += 1  # it believes that it has sent one more than it has
        rest = [pick.token async for picks in tokens for pick in picks]
        assert rest == expected(PROMPT, 8)[1:]
        assert generation.replaced == 0
    assert STALL_S < trio.current_time() < STALL_S + 5
    nursery.cancel_scope.cancel()


async def test_rows_that_a_stage_forgot_are_computed_again_for_the_next_one(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, {**CHAIN, "x": (4, 6)})
    swarm.avoided = {PeerId("x")}
    async with swarm.generate(PROMPT, 20, speculate=False) as generation:
        found = list[int]()
        async for picks in generation.tokens():
            found += [pick.token for pick in picks]
            if len(found) == 5:
                for name in ("a", "b"):
                    [session] = swarm.services[PeerId(name)].sessions.values()
                    session.history.forget(session.history.position)
                swarm.kill("c")
        assert found == expected(PROMPT, 20)
        assert [hop.peer for hop in generation.route] == ["a", "b", "x"]
        assert generation.replaced == 1
    assert trio.current_time() < 3.0
    nursery.cancel_scope.cancel()


async def test_eight_answers_at_once_use_all_replicas(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, dict.fromkeys("abcd", (0, 6)))

    async def one(prompt: list[int]) -> None:
        async with swarm.generate(prompt, 30) as generation:
            assert await answer_of(generation) == expected(prompt, 30)

    async with trio.open_nursery() as answers:
        for index in range(8):
            answers.start_soon(one, [index, *PROMPT])
    used = [sum(isinstance(a, WorkerOpen) for a in w.asked) for w in swarm.workers.values()]
    assert sum(used) == 8
    assert max(used) <= 3
    nursery.cancel_scope.cancel()
