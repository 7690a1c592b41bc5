"""The daemon's side of a stage: answers `sharding.session` by its worker processes. No torch."""

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
import trio

from protocols.sharding.link import WorkerGone
from protocols.sharding.wire import (
    SESSION,
    Open,
    Opened,
    Output,
    Reply,
    Request,
    Step,
    WorkerAnswer,
    WorkerClose,
    WorkerOpen,
    WorkerStep,
)
from wire.errors import BadMessage, NotFound, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Rpc

OPEN_S = 10.0  # seconds for the worker to reserve a session; it may be in a step of another
STEP_S = 30.0  # seconds for one step, and
STEP_TOKEN_S = 0.5  # for each of its tokens: a long prompt on a slow processor
CLOSE_S = 2.0  # seconds to tell the worker that a session is over; its idle limit is behind it

log = structlog.get_logger(__name__)


class Worker(Protocol):
    """What answers for a stage: the link to its process."""

    async def ask(self, message: object, *, timeout_s: float) -> WorkerAnswer:
        """Ask and wait. Raises WorkerGone, DeadlineExceeded, or the worker's RemoteError."""
        ...


def step_timeout_s(step: Step, *, row_bytes: int) -> float:
    """Return how long one step may take: prompts take longer than single tokens."""
    return STEP_S + STEP_TOKEN_S * max(len(step.tokens), len(step.hidden) // row_bytes)


class StageSession:
    """One session on a stage of this node."""

    def __init__(self, link: Worker, number: int, row_bytes: int) -> None:
        self._link = link
        self._number = number
        self._row_bytes = row_bytes

    async def step(self, step: Step) -> Output:
        """Run one step in the worker."""
        timeout_s = step_timeout_s(step, row_bytes=self._row_bytes)
        output = await self._link.ask(WorkerStep(self._number, step), timeout_s=timeout_s)
        if not isinstance(output, Output):
            raise BadMessage(f"the worker answered a step with {type(output).__name__}")
        return output


class StageService:
    """Knows the stages that are loaded here and serves sessions on them, to peers and locally."""

    def __init__(self, rpc: Rpc) -> None:
        self.peer = rpc.peer
        self._stages: dict[tuple[str, int, int], tuple[Worker, int]] = {}
        self._numbers = itertools.count(1)
        self.sessions = 0  # open now
        rpc.serve_stream(SESSION, self._serve)

    def attach(self, model: str, start: int, end: int, link: Worker, *, hidden_size: int) -> None:
        """Begin to answer for a stage whose worker is ready."""
        self._stages[model, start, end] = link, 4 * hidden_size

    def detach(self, model: str, start: int, end: int) -> None:
        """Stop answering for a stage; sessions on it fail when its worker ends."""
        self._stages.pop((model, start, end), None)

    @asynccontextmanager
    async def session(self, request: Open, *, caller: PeerId) -> AsyncGenerator[StageSession]:
        """Reserve a session for the length of the block. Raises NotFound, or Busy remotely."""
        found = self._stages.get((request.model, request.start, request.end))
        if found is None:
            raise NotFound(
                f"layers {request.start}-{request.end} of {request.model[:12]} are not ready here"
            )
        link, row_bytes = found
        number = next(self._numbers)
        opening = WorkerOpen(number, caller, request.max_tokens, request.sampling)
        self.sessions += 1
        try:
            await link.ask(opening, timeout_s=OPEN_S)
            yield StageSession(link, number, row_bytes)
        finally:
            self.sessions -= 1
            with trio.move_on_after(CLOSE_S) as closing:
                closing.shield = True
                await _close(link, number)

    async def _serve(self, call: Call[Reply, Request]) -> None:
        """Answer one streaming call: one session."""
        try:
            opening = await call.receive()
        except trio.EndOfChannel:
            return
        if not isinstance(opening, Open):
            raise BadMessage("a session begins with open")
        async with self.session(opening, caller=call.peer) as session:
            await call.send(Opened())
            async for step in call:
                if not isinstance(step, Step):
                    raise BadMessage("a session is opened once")
                await call.send(await session.step(step))


async def _close(link: Worker, number: int) -> None:
    try:
        await link.ask(WorkerClose(number), timeout_s=CLOSE_S)
    except WorkerGone:
        return  # and the session with it
    except ShoalError as error:
        log.debug("session.close", error=str(error))
