"""What an answer leaves behind, who is asked, and stages at fault; on the virtual clock."""

from contextlib import aclosing

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.generate import END_S
from protocols.sharding.parts import NoRoom
from protocols.sharding.ring import STALL_S
from protocols.sharding.route import NoRoute
from protocols.sharding.sessions import StageSession
from protocols.sharding.wire import PREFIX_TOKENS, Opened, Picks
from protocols.sharding.worker_wire import WorkerOpen
from tests.sim.answering import ENTRY, PROMPT, AnswerSwarm, answer_of, expected
from wire.errors import UsageError
from wire.ids import PeerId

CHAIN = {"a": (0, 2), "b": (2, 4), "c": (4, 6)}
LONG = [i * i % 89 for i in range(4 * PREFIX_TOKENS)]


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


async def test_an_answer_that_nobody_waited_for_is_not_kept(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    with trio.move_on_after(2.0):
        async with swarm.generate(LONG, 500) as generation:
            await answer_of(generation)
    await trio.sleep(0.5)
    assert [len(worker.span.sessions) for worker in swarm.workers.values()] == [0, 0, 0]
    nursery.cancel_scope.cancel()


async def test_a_prompt_of_whole_blocks_that_was_answered_before_leaves_a_token_to_compute(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    for reused in (0, len(LONG) - PREFIX_TOKENS):
        async with swarm.generate(LONG, 20) as generation:
            assert await answer_of(generation) == expected(LONG, 20)
            assert generation.reused_tokens == reused
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


async def test_hanging_up_does_not_wait_for_who_cannot_be_reached(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await AnswerSwarm.start(nursery, CHAIN)
    swarm.freeze("b")
    with trio.move_on_after(1.0):
        async with swarm.generate(PROMPT, 500):
            pass
    assert trio.current_time() < 1.2
    await trio.sleep(0.1)
    assert [len(service.sessions) for service in swarm.services.values()] == [0] * 4
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015, 0.025, 0.1, 0.5])
async def test_all_that_stops_in_the_middle_is_over_in_time(
    autojump_clock: MockClock, after_s: float, stuck: bool
) -> None:
    async with trio.open_nursery() as everything:
        swarm = await AnswerSwarm.start(everything, {"entry": (0, 3), "b": (3, 6)})

        async def ask() -> None:
            async with swarm.generate(PROMPT, 500) as generation:
                await answer_of(generation)

        everything.start_soon(ask)
        await trio.sleep(after_s)
        if stuck:
            swarm.freeze("b")
            swarm.workers[ENTRY].frozen = True
        everything.cancel_scope.cancel()
    assert trio.current_time() - after_s < END_S + 0.2


async def test_a_stage_that_claims_rows_that_nobody_has_is_passed_by(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"a": (0, 3), "b": (3, 6), "x": (3, 6)})
    swarm.avoided = {PeerId("x")}
    said = StageSession.opened

    def opened(session: StageSession) -> Opened:
        return Opened(5000, 0) if session.is_last and not used() else said(session)

    def used() -> bool:
        return bool(swarm.services[PeerId("x")].sessions)

    monkeypatch.setattr(StageSession, "opened", opened)
    async with swarm.generate(PROMPT, 8) as generation:
        assert await answer_of(generation) == expected(PROMPT, 8)
        assert generation.route[-1].peer == "x"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", ["crash", "stuck"])
async def test_a_stage_of_the_entry_itself_is_like_another(
    autojump_clock: MockClock, nursery: trio.Nursery, fault: str
) -> None:
    swarm = await AnswerSwarm.start(nursery, {"entry": (0, 6), "x": (0, 6)})
    swarm.avoided = {PeerId("x")}
    async with swarm.generate(PROMPT, 20, speculate=False) as generation:
        async with aclosing(generation.tokens()) as tokens:
            found = [pick.token for pick in await anext(tokens)]
            assert swarm.net.bytes_sent == {}
            if fault == "crash":
                swarm.workers[ENTRY].crash()
            else:
                swarm.workers[ENTRY].frozen = True
            found += [pick.token async for picks in tokens for pick in picks]
        assert found == expected(PROMPT, 20)
        assert [hop.peer for hop in generation.route] == ["x"]
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
