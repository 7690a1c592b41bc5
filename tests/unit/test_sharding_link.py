"""The daemon's end of the socket to a worker, over a real pair of sockets."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from protocols.sharding.link import BACKLOG_BYTES, Link, WorkerGone, socket_pair
from protocols.sharding.wire import FRAME_MAX, ROWS_MAX, Step
from protocols.sharding.worker_wire import (
    Done,
    Failure,
    Ready,
    WorkerAnswer,
    WorkerClose,
    WorkerPing,
    WorkerStep,
    worker_answer_decoder,
    worker_ask_decoder,
)
from wire.codec import decode, encode
from wire.errors import DeadlineExceeded, RemoteError
from wire.frames import FrameParser, pack


class Far:
    """The worker's end."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._frames = FrameParser(FRAME_MAX)
        self._waiting = list[tuple[int, object]]()

    async def next(self) -> tuple[int, object]:
        while not self._waiting:
            data = await self.stream.receive_some(1 << 20)
            assert data, "the daemon has closed it"
            frames = self._frames.feed(data)
            self._waiting += [decode(frame, worker_ask_decoder, FRAME_MAX) for frame in frames]
        return self._waiting.pop(0)

    async def say(self, number: int, answer: object) -> None:
        await self.stream.send_all(pack(encode((number, answer))))


@asynccontextmanager
async def linked() -> AsyncGenerator[tuple[Link[WorkerAnswer], Far]]:
    ours, theirs = socket_pair()
    link = Link(ours, worker_answer_decoder)
    far = Far(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, far.stream:
            await nursery.start(link.run)
            yield link, far
            nursery.cancel_scope.cancel()


async def test_answers_find_who_asked_in_any_order() -> None:
    async with linked() as (link, far):
        await far.say(0, Ready(7, token_bytes=3))
        await link.ready.wait()
        assert link.readiness == Ready(7, token_bytes=3)
        found = list[object]()
        for session in (1, 2):
            link.post(WorkerClose(session), found.append)
        (one, _), (two, _) = await far.next(), await far.next()
        await far.say(two, Failure("busy", "no"))
        await far.say(one, Done())
        await far.say(99, Done())  # nobody has asked
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_next, far, Done())
            assert await link.ask(WorkerPing(), timeout_s=5) == Done()
        assert found == [Failure("busy", "no"), Done()]


async def answer_next(far: Far, answer: object) -> None:
    number, _ = await far.next()
    await far.say(number, answer)


async def test_an_error_a_late_answer_and_an_end_are_told() -> None:
    async with linked() as (link, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_next, far, Failure("not_found", "who?"))
            with pytest.raises(RemoteError, match=r"who\?"):
                await link.ask(WorkerClose(1), timeout_s=5)
        with pytest.raises(DeadlineExceeded):
            await link.ask(WorkerPing(), timeout_s=0.01)
        found = list[object]()
        link.post(WorkerClose(1), found.append)
        await far.stream.aclose()
        with pytest.raises(WorkerGone):
            await link.ask(WorkerPing(), timeout_s=5)
        await link.gone.wait()
        assert found == [None]
        with pytest.raises(WorkerGone):
            link.post(WorkerClose(1), found.append)


async def test_a_worker_that_does_not_read_holds_up_nobody_but_who_waits_for_room() -> None:
    async with linked() as (link, far):
        rows = bytes(ROWS_MAX)
        sent = 6
        for number in range(sent):
            link.post(WorkerStep(number, Step(number, 0, rows, 0)), lambda _: None)
        link.post(WorkerPing(), lambda _: None)
        with trio.move_on_after(0.05) as patience:
            await link.room()
        assert patience.cancelled_caught
        assert sent * ROWS_MAX > BACKLOG_BYTES
        for number in range(sent):
            _, ask = await far.next()
            assert isinstance(ask, WorkerStep)
            assert (ask.session, len(ask.step.rows)) == (number, ROWS_MAX)
        await link.room()
        assert isinstance((await far.next())[1], WorkerPing)


async def test_a_worker_that_says_nonsense_is_as_good_as_gone() -> None:
    async with linked() as (link, far):
        await far.stream.send_all(pack(b"\xc1"))
        await link.gone.wait()
        with pytest.raises(WorkerGone):
            await link.ask(WorkerPing(), timeout_s=5)
