"""Peers that break the rules of sessions and feeds hurt their own, and cost little."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.room import PEER_SHARE, SESSIONS_MAX
from protocols.sharding.sessions import PONG_S
from protocols.sharding.wire import (
    FEED,
    SESSION,
    End,
    Fed,
    Feed,
    Open,
    Pick,
    Picks,
    Ping,
    Place,
    Pong,
    Rewire,
    Sampling,
    Step,
)
from protocols.sharding.worker_wire import Output, WorkerAnswer, WorkerPing, WorkerStep
from tests.sim.pretend_worker import MODEL, encode_row, reference
from tests.sim.ring import ENTRY, Ring, Swarm, until
from wire.errors import Busy, NotFound, RemoteError, ShoalError
from wire.ids import PeerId

PROMPT = [5, 17, 3, 88, 41]
LAYERS = 4
EVE, S0, S1 = PeerId("eve"), PeerId("s0"), PeerId("s1")
GREEDY = Sampling()


@pytest.fixture
async def swarm(nursery: trio.Nursery) -> Swarm:
    """Two stages and an entry, all honest; and Eve, a member like the others."""
    swarm = Swarm(nursery, n_layers=LAYERS)
    await swarm.chain(0, 2, 4)
    await swarm.add(EVE)
    return swarm


ROUTE = [(S0, 0, 2), (S1, 2, 4)]


@asynccontextmanager
async def honest(swarm: Swarm) -> AsyncGenerator[Ring]:
    """A session of somebody else, which must not notice anything."""
    async with swarm.ring(ROUTE) as ring:
        found = await ring.say(PROMPT, 3)
        yield ring
        while len(found) < 8:
            ring.step(found[-1:])
            found += await ring.picked()
        assert found == reference(PROMPT, 8, n_layers=LAYERS)
        assert len(await ring.end()) == 2


def opening(session: bytes, *, max_tokens: int = 32, start: int = 2) -> Open:
    """Eve is entry, previous and next of a stage."""
    end, gives, takes = (4, "picks", "float32") if start else (2, "float32", "ids")
    return Open(session, MODEL, start, end, max_tokens, GREEDY, EVE, Place(EVE, end), takes, gives)


def calls(swarm: Swarm) -> Any:
    return swarm.nodes[EVE].service.calls


async def refusal(swarm: Swarm, peer: PeerId, method: Any, *messages: object) -> RemoteError:
    """Say something and listen; return the error that it ends with."""
    try:
        async with calls(swarm).stream(peer, method, timeout_s=5) as call:
            for message in messages:
                await call.send(message)
            async for _ in call:
                pass
    except RemoteError as error:
        return error
    raise AssertionError("it was not refused")


async def feed(swarm: Swarm, session: bytes, *messages: object, peer: PeerId = S1) -> RemoteError:
    """Feed a stage; return the error that it ends with."""
    return await refusal(swarm, peer, FEED, Feed(session, 2), *messages)


def row(value: int = 7) -> bytes:
    return encode_row(value, 32)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([Step(1, 0, b"x" * 31, 0)], "31 B are not"),
        ([Step(1, 0, b"", 0)], "0 B are not"),
        ([Step(1, 0, row() * 129, 0)], "4128 B are not 1 to 128 rows of 32 B"),
        ([Step(1, 0, row(), 9)], "9 picks of 1 rows"),
        ([Step(1, 5, row(), 1)], "rows from 5 on, after those before 0"),
        ([Step(1, 0, row() * 33, 1)], "rows up to 33, room was reserved for 32"),
        ([Step(1, 0, row(), 1), Step(1 << 53, 1 << 17, row(), 1)], "rows from 131072 on"),
        ([Picks(1, 1, [Pick(1)])], "a stage is fed with steps"),
        ([Feed(bytes(16), 2)], "a feed is opened once"),
    ],
)
async def test_rows_that_do_not_fit_end_their_session_only(
    autojump_clock: MockClock, swarm: Swarm, steps: list[Any], says: str
) -> None:
    session = secrets.token_bytes(16)
    async with honest(swarm), calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(session))
        await call.receive()
        error = await feed(swarm, session, *steps)
        assert error.code == "bad_message"
        assert says in str(error)
        if not isinstance(steps[-1], Feed):
            with pytest.raises(RemoteError) as caught:
                await call.receive()
            assert caught.value.code == "bad_message"
            assert (session, 2) not in swarm.nodes[S1].service.sessions


async def test_rows_that_the_worker_refuses_end_their_session_only(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    session = secrets.token_bytes(16)
    async with honest(swarm), calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(session))
        await call.receive()
        error = await feed(swarm, session, Step(1, 0, bytes(31) + b"x", 1))
        assert (error.code, str(error)) == ("bad_message", "a row is spoilt")


async def test_nobody_feeds_a_session_but_whom_its_entry_named(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    async with honest(swarm) as ring:
        for session in (ring.session, secrets.token_bytes(16)):
            error = await feed(swarm, session, Step(1 << 50, 0, row(), 1))
            assert isinstance(error, NotFound)
        error = await refusal(swarm, ENTRY, FEED, Feed(ring.session, LAYERS))  # picks, to the entry
        assert isinstance(error, NotFound)


async def test_a_session_begins_with_open_and_is_opened_once(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    async with honest(swarm):
        for first in (Ping(), End(), Rewire(EVE, Place(EVE, 4))):
            assert "begins with open" in str(await refusal(swarm, S1, SESSION, first))
        twice = [opening(bytes(16))] * 2
        assert "opened once" in str(await refusal(swarm, S1, SESSION, *twice))


async def test_who_says_nothing_is_not_waited_for(autojump_clock: MockClock, swarm: Swarm) -> None:
    for method in (SESSION, FEED):
        assert (await refusal(swarm, S1, method)).code == "deadline"


async def test_a_thousand_sessions_of_one_peer_leave_room_for_others(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    opened, refused = list[bytes](), list[ShoalError]()

    async def open_one() -> None:
        session = secrets.token_bytes(16)
        try:
            async with calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
                await call.send(opening(session, max_tokens=1))
                await call.receive()
                opened.append(session)
                await call.receive()
        except ShoalError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(open_one)
        await trio.sleep(60)
        assert len(opened) == SESSIONS_MAX * PEER_SHARE
        assert all(isinstance(error, Busy) for error in refused)
        async with honest(swarm):
            pass
        nursery.cancel_scope.cancel()
    await trio.sleep(25)
    assert swarm.nodes[S1].workers[2].span.sessions == {}
    assert swarm.nodes[S1].service.sessions == {}


async def test_one_peer_cannot_reserve_all_room(autojump_clock: MockClock, swarm: Swarm) -> None:
    async with calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(bytes(16), max_tokens=3000))
        await call.receive()
        second = opening(bytes(15) + b"x", max_tokens=100)
        assert isinstance(await refusal(swarm, S1, SESSION, second), Busy)
        async with honest(swarm):
            pass


async def test_a_flood_of_pings_costs_few_to_the_worker(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    async with honest(swarm), calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(bytes(16)))
        await call.receive()
        pongs, worker = 0, swarm.nodes[S1].workers[2]
        before = len(worker.asked)

        async def count() -> None:
            nonlocal pongs
            while isinstance(await call.receive(), Pong):
                pongs += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            began_at = trio.current_time()
            for _ in range(2000):
                await call.send(Ping())
            await trio.sleep_until(began_at + 2.0)
            nursery.cancel_scope.cancel()
        pings = [ask for ask in worker.asked[before:] if isinstance(ask, WorkerPing)]
        assert 1 <= pongs <= 2.0 / PONG_S + 1
        assert len(pings) <= 2.0 / PONG_S + 3


async def test_a_flood_of_rewires_opens_few_feeds(autojump_clock: MockClock, swarm: Swarm) -> None:
    async with honest(swarm), calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(bytes(16)))
        await call.receive()
        counters = swarm.net.rpc(S1).counters
        before, began_at = counters.calls_out, trio.current_time()
        for number in range(2000):
            await call.send(Rewire(EVE, Place((EVE, S0, ENTRY)[number % 3], 4)))
        await trio.sleep_until(began_at + 1.0)
        assert counters.calls_out - before <= 22


async def test_an_entry_that_never_reads_is_let_go(autojump_clock: MockClock, swarm: Swarm) -> None:
    service = swarm.nodes[S1].service  # to itself: there is no window that could hold anything
    async with honest(swarm), service.calls.stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(bytes(16)))
        for _ in range(40):
            with trio.move_on_after(0.1), suppress(ShoalError):  # once it is let go
                await call.send(Rewire(EVE, Place("nobody", 4)))  # each is told as broken
            await trio.sleep(0.1)
        await trio.sleep(30)
        assert (bytes(16), 2) not in service.sessions


async def test_a_next_stage_that_does_not_read_stops_the_one_before_not_its_memory(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = Swarm(nursery, n_layers=LAYERS)
    await swarm.add(ENTRY)
    await swarm.add(EVE)
    node = await swarm.add("s0", history_bytes=4 << 20)
    worker = node.host(nursery, 0, 2, n_layers=LAYERS, tokens=1 << 17, hidden_size=1024)
    session, took = secrets.token_bytes(16), 0
    async with calls(swarm).stream(S0, SESSION, timeout_s=5) as control:
        await control.send(opening(session, max_tokens=10_000, start=0))
        await control.receive()

        async def take_the_feed(message: object) -> None:
            await trio.sleep_forever()

        with swarm.nodes[EVE].service.expect(session, 2, S0, lambda _: None) as inlet:
            inlet.take = take_the_feed
            async with calls(swarm).stream(S0, FEED, timeout_s=5) as call:
                await call.send(Feed(session, 0))
                await call.receive()
                for number in range(1, 1000):
                    await call.send(Step(number, took, bytes(4 * 8), 0))
                    took += 8
                await trio.sleep(30)
    kept = node.service.sessions[session, 0].history.size_bytes
    assert kept == worker.span.rows * 4096
    assert 256 << 10 < kept < 3 << 20  # of 32 MB: what RPC has taken, and a sixteenth of 4 MB


async def test_a_worker_that_answers_nonsense_ends_only_what_it_spoilt(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    worker = swarm.nodes[S0].workers[0]
    async with swarm.ring(ROUTE) as ring:
        await ring.say(PROMPT, 2)

        def tamper(answer: WorkerAnswer) -> WorkerAnswer:
            if isinstance(answer, Output):
                return msgspec.structs.replace(answer, rows=answer.rows[:-1])
            return answer

        worker.tamper = tamper
        ring.step([1])
        await ring.controls[0].ended.wait()
        error = ring.controls[0].error
        assert error is not None
        assert error.code == "worker_fault"
        worker.tamper = lambda answer: answer
        async with honest(swarm):
            pass


async def test_steps_of_one_session_in_the_worker_are_bounded(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    worker = swarm.nodes[S0].workers[0]
    async with swarm.ring(ROUTE) as ring:
        worker.step_s = 1000.0
        for _ in range(50):
            ring.step([1])
        await trio.sleep(20)
        assert sum(isinstance(ask, WorkerStep) for ask in worker.asked) <= 5


async def test_feeds_that_wait_for_a_session_do_not_wait_for_long(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    errors = list[ShoalError]()

    async def wait() -> None:
        errors.append(await feed(swarm, secrets.token_bytes(16)))

    async with honest(swarm), trio.open_nursery() as nursery:
        for _ in range(180):  # RPC answers 256 calls of a peer at a time
            nursery.start_soon(wait)
    assert len(errors) == 180
    await until(lambda: swarm.net.rpc(S1).counters.active_in == 0)


async def test_a_newer_feed_replaces_an_older_one(autojump_clock: MockClock, swarm: Swarm) -> None:
    session = secrets.token_bytes(16)
    async with honest(swarm), calls(swarm).stream(S1, SESSION, timeout_s=5) as call:
        await call.send(opening(session))
        await call.receive()
        async with calls(swarm).stream(S1, FEED, timeout_s=5) as old:
            await old.send(Feed(session, 2))
            await old.send(Step(5, 0, row() * 2, 0))
            assert await old.receive() == Fed(0, 0)
            async with calls(swarm).stream(S1, FEED, timeout_s=5) as new:
                await new.send(Feed(session, 2))
                assert await new.receive() == Fed(5, 2)
                with pytest.raises(RemoteError) as caught:
                    await old.receive()
                assert caught.value.code == "replaced"
                await call.send(Rewire("somebody", Place(EVE, 4)))
                with pytest.raises(RemoteError) as caught:
                    await new.receive()
                assert caught.value.code == "replaced"
