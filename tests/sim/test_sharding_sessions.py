"""Generations over stages on several peers: real models, calls over in-memory streams."""

import copy
from collections.abc import Collection
from typing import Any

import pytest
import torch
import trio
from trio.testing import MockClock

from protocols.sharding.generate import Generation, HopLost, Shape, open_generation
from protocols.sharding.hop import Connector
from protocols.sharding.link import WorkerGone
from protocols.sharding.placement import Span
from protocols.sharding.route import find_replacement
from protocols.sharding.service import StageService
from protocols.sharding.stage import Stage
from protocols.sharding.wire import SESSION, Open, Output, Sampling, Step, WorkerAnswer
from protocols.sharding.worker import Worker
from tests.sim.net import Net
from tests.unit.sharding_models import LAYERS, PROMPT, cuts, make_model
from wire.errors import BadMessage, RemoteError, ShoalError
from wire.ids import PeerId

MODEL = "ab" * 32
ENTRY = PeerId("entry")
STEP_S = 0.05  # what a step takes on the virtual clock
GREEDY = Sampling()


class InProcess:
    """A worker without a process: the same answers, on the virtual clock."""

    def __init__(self, stage: Stage, *, tokens_max: int = 4096) -> None:
        self.worker = Worker(stage, tokens_max=tokens_max, now=trio.current_time)
        self.crashed = False

    @property
    def sessions(self) -> int:
        return len(self.worker._sessions)

    async def ask(self, message: Any, *, timeout_s: float) -> WorkerAnswer:
        await trio.sleep(STEP_S)
        if self.crashed:
            raise WorkerGone("the worker process ended")
        try:
            return self.worker.answer(message)
        except ShoalError as error:  # as it comes out of the link to a real one
            raise RemoteError(error.code, str(error)) from error


class Swarm:
    """One entry node and a node for each of some spans."""

    def __init__(self, nursery: trio.Nursery, spans: list[Span], **changes: object) -> None:
        self.net = Net(nursery, latency_s=0.01)
        self.model = make_model("llama", **changes)
        self.spans = spans
        self.workers: dict[PeerId, InProcess] = {}
        self.services = {ENTRY: StageService(self.net.rpc(ENTRY))}
        for span in spans:
            worker = InProcess(Stage(copy.deepcopy(self.model), span.start, span.end))
            if span.peer not in self.services:
                self.services[span.peer] = StageService(self.net.rpc(span.peer))
            self.services[span.peer].attach(MODEL, span.start, span.end, worker, hidden_size=32)
            self.workers[span.peer] = worker

    def open(self, route: list[Span], *, max_tokens: int = 100, sampling: Sampling = GREEDY) -> Any:
        def replace(lost: Span, without: Collection[PeerId]) -> Span | None:
            return find_replacement(lost, self.spans, without=without)

        return open_generation(
            Connector(self.net.rpc(ENTRY), self.services[ENTRY], row_bytes=4 * 32),
            Shape(MODEL, LAYERS, 32),
            route,
            max_tokens=max_tokens,
            sampling=sampling,
            replace=replace,
        )

    def expected(self, count: int, prompt: list[int] = PROMPT) -> list[int]:
        ids = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return [int(token) for token in ids[0, len(prompt) :]]


def chain(stages: int) -> list[Span]:
    return [Span(PeerId(f"s{i}"), *span) for i, span in enumerate(cuts(stages))]


async def tokens(generation: Generation, count: int, prompt: list[int] = PROMPT) -> list[int]:
    found = [await generation.advance(prompt)]
    while len(found) < count:
        found.append(await generation.advance([found[-1]]))
    return found


@pytest.mark.parametrize("stages", [1, 2, 4])
async def test_a_chain_says_what_the_unsharded_model_says(
    autojump_clock: MockClock, nursery: trio.Nursery, stages: int
) -> None:
    route = chain(stages)
    swarm = Swarm(nursery, route)
    async with swarm.open(route) as generation:
        assert await tokens(generation, 64) == swarm.expected(64)


async def test_a_stage_of_the_entry_node_itself_is_used_without_the_network(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = [Span(ENTRY, 0, 4)]
    swarm = Swarm(nursery, route)
    async with swarm.open(route) as generation:
        assert await tokens(generation, 8) == swarm.expected(8)
    assert swarm.net.bytes_sent == {}


async def test_a_long_prompt_goes_in_several_steps(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route, max_position_embeddings=1024)
    prompt = [3 + (7 * i) % 90 for i in range(600)]
    async with swarm.open(route, max_tokens=640) as generation:
        assert await tokens(generation, 8, prompt) == swarm.expected(8, prompt)


async def test_sessions_are_closed_when_the_reader_leaves(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)
    with trio.move_on_after(1.0):  # a client that hangs up in mid-answer
        async with swarm.open(route) as generation:
            await tokens(generation, 90)
    await trio.sleep(5.0)
    assert [worker.sessions for worker in swarm.workers.values()] == [0, 0]
    assert [service.sessions for service in swarm.services.values()] == [0, 0, 0]


@pytest.mark.parametrize("fault", ["kill", "cut", "crash", "silence"])
@pytest.mark.parametrize("lost", [0, 1])
async def test_a_lost_stage_is_replaced_and_the_answer_goes_on(
    autojump_clock: MockClock, nursery: trio.Nursery, fault: str, lost: int
) -> None:
    route = chain(2)
    twin = Span(PeerId("twin"), route[lost].start, route[lost].end)
    swarm = Swarm(nursery, [*route, twin])
    async with swarm.open(route) as generation:
        found = await tokens(generation, 9)
        match fault:
            case "kill":
                swarm.net.kill(route[lost].peer)
            case "crash":
                swarm.workers[route[lost].peer].crashed = True
            case _:
                swarm.net.cut(ENTRY, route[lost].peer, silent=fault == "silence")
        for _ in range(15):
            found.append(await generation.advance([found[-1]]))
        assert found == swarm.expected(24)
        assert generation.replaced == 1
        assert generation.route[lost] == twin


async def test_a_sampled_answer_goes_on_the_same_after_a_loss(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, [*route, Span(PeerId("twin"), 2, 4)])
    warm = Sampling(temperature=1.5, top_p=0.9, seed=11)
    async with swarm.open(route, sampling=warm) as generation:
        expected = await tokens(generation, 20)
    async with swarm.open(route, sampling=warm) as generation:
        found = await tokens(generation, 7)
        swarm.net.kill(route[1].peer)
        while len(found) < 20:
            found.append(await generation.advance([found[-1]]))
    assert found == expected


async def test_a_stage_that_nobody_else_has_ends_the_answer_with_a_reason(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)
    async with swarm.open(route) as generation:
        await tokens(generation, 3)
        swarm.net.kill(route[1].peer)
        with pytest.raises(HopLost, match="layers 2-4 on s1 are lost"):
            await generation.advance([5])


async def test_a_stage_that_is_already_gone_is_replaced_before_the_first_token(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, [*route, Span(PeerId("twin"), 0, 2)])
    swarm.net.kill(route[0].peer)
    async with swarm.open(route) as generation:
        assert await tokens(generation, 4) == swarm.expected(4)
        assert [span.peer for span in generation.route] == ["twin", "s1"]


async def test_a_stage_that_is_full_refuses_and_the_others_are_let_go(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)
    swarm.services[route[1].peer].attach(
        MODEL, 2, 4, InProcess(Stage(swarm.model, 2, 4), tokens_max=50), hidden_size=32
    )
    with pytest.raises(RemoteError) as caught:
        async with swarm.open(route, max_tokens=60):
            pytest.fail("it was opened")
    assert caught.value.code == "busy"
    await trio.sleep(5.0)
    assert swarm.workers[route[0].peer].sessions == 0


@pytest.mark.parametrize("full", [("s1",), ("s1", "twin")])
async def test_another_stage_with_the_same_layers_is_tried_before_an_answer_is_refused(
    autojump_clock: MockClock, nursery: trio.Nursery, full: tuple[str, ...]
) -> None:
    route = chain(2)
    twins = [Span(PeerId(name), 2, 4) for name in ("twin", "zwilling")]
    swarm = Swarm(nursery, [*route, *twins])
    for name in full:
        worker = InProcess(Stage(copy.deepcopy(swarm.model), 2, 4), tokens_max=50)
        swarm.services[PeerId(name)].attach(MODEL, 2, 4, worker, hidden_size=32)
    async with swarm.open(route, max_tokens=60) as generation:
        assert await tokens(generation, 4) == swarm.expected(4)
        assert generation.route[1] == twins[len(full) - 1]


async def test_what_a_stage_says_gives_no_orders_to_a_terminal(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = [Span(PeerId("rude"), 0, LAYERS)]
    swarm = Swarm(nursery, [])

    async def shout(_: object) -> None:
        raise ShoalError("\x1b[2Jgone\n\r")

    swarm.net.rpc(route[0].peer).serve_stream(SESSION, shout)
    with pytest.raises(RemoteError) as caught:
        async with swarm.open(route):
            pytest.fail("it was opened")
    assert str(caught.value) == "?[2Jgone??"


async def test_a_stage_counts_sessions_by_the_peer_that_opened_them(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(1)
    swarm = Swarm(nursery, route)
    worker = swarm.workers[route[0].peer].worker
    async with swarm.open(route, max_tokens=2048):
        assert {session.peer for session in worker._sessions.values()} == {ENTRY}
        with pytest.raises(RemoteError, match="room for 0 tokens is left to you"):
            async with swarm.open(route, max_tokens=1):
                pytest.fail("it was opened")


async def test_two_sessions_do_not_disturb_each_other(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)
    answers: dict[int, list[int]] = {}

    async def answer(number: int, prompt: list[int]) -> None:
        async with swarm.open(route) as generation:
            answers[number] = await tokens(generation, 16, prompt)

    async with trio.open_nursery() as both:
        both.start_soon(answer, 1, PROMPT)
        both.start_soon(answer, 2, PROMPT[::-1])
    assert answers == {1: swarm.expected(16), 2: swarm.expected(16, PROMPT[::-1])}


async def test_a_peer_that_breaks_the_protocol_hurts_only_itself(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)
    rpc = swarm.net.rpc(ENTRY)

    async def send(message: Open | Step) -> str:
        async with rpc.stream(route[0].peer, SESSION, timeout_s=5) as call:
            await call.send(message)
            with pytest.raises(RemoteError) as caught:
                await call.receive()
            return caught.value.code

    async with swarm.open(route) as generation:
        found = await tokens(generation, 4)
        assert await send(Step(0, PROMPT, b"", True)) == "bad_message"  # before any open
        assert await send(Open("cd" * 32, 0, 2, 10, GREEDY)) == "not_found"
        found += [await generation.advance([found[-1]])]
    assert found == swarm.expected(5)


async def test_an_output_that_does_not_fit_is_refused(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)
    wide = Stage(make_model("llama", hidden_size=64), 0, 2)
    swarm.services[route[0].peer].attach(MODEL, 0, 2, InProcess(wide), hidden_size=64)
    with pytest.raises(BadMessage, match="not at 12 with 1536 B"):
        async with swarm.open(route) as generation:
            await generation.advance(PROMPT)


async def test_a_stage_that_missed_a_step_is_seen(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    route = chain(2)
    swarm = Swarm(nursery, route)

    class Forgetful(InProcess):
        async def ask(self, message: Any, *, timeout_s: float) -> WorkerAnswer:
            answer = await super().ask(message, timeout_s=timeout_s)
            return Output(11, answer.hidden, None) if isinstance(answer, Output) else answer

    worker = Forgetful(Stage(copy.deepcopy(swarm.model), 0, 2))
    swarm.services[route[0].peer].attach(MODEL, 0, 2, worker, hidden_size=32)
    async with swarm.open(route) as generation:
        with pytest.raises(BadMessage, match="a stage is at 11 with 1536 B, not at 12"):
            await generation.advance(PROMPT)
