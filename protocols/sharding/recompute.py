"""`sharding.recompute`: doing the work of a stage again, for who audits it.

It goes to a worker as a session of its own would, in short steps one after the other, so that the
answers that the worker computes meanwhile wait for little.
"""

from collections import Counter

import trio

from protocols.sharding.calls import Calls
from protocols.sharding.link import Worker
from protocols.sharding.service import StageService
from protocols.sharding.wire import (
    PROOF_ROWS,
    RECOMPUTE,
    Recompute,
    Recomputed,
    RowsPart,
    Step,
    rows_of_step,
)
from protocols.sharding.worker_wire import (
    Checked,
    Opened,
    Output,
    ProofsReply,
    WorkerCheck,
    WorkerOpen,
    WorkerProofs,
    WorkerStep,
)
from wire.errors import BadMessage, Busy, DeadlineExceeded, RemoteError
from wire.ids import PeerId
from wire.ports import Call

AT_ONCE = 2  # recomputations at a time: a stage is there for answers first
AT_ONCE_PEER = 1  # of one peer
COUNT_MAX = 8192  # rows of one: a session longer than this is not worth an audit
OPEN_S = 5.0  # seconds to reach a peer
STEP_S = 30.0  # seconds for one short step
TOTAL_S = 120.0  # seconds for all of it

AuditCall = Call[Recomputed, Recompute | RowsPart]


async def ask_again(calls: Calls, peer: PeerId, request: Recompute, rows: bytes) -> Recomputed:
    """Have a peer (or this node) recompute rows. Raises ShoalError, DeadlineExceeded too."""
    part = request.row_bytes * min(PROOF_ROWS, rows_of_step(request.row_bytes))
    with trio.move_on_after(TOTAL_S):
        async with calls.stream(peer, RECOMPUTE, timeout_s=OPEN_S) as call:
            await call.send(request)
            for start in range(0, len(rows), part):
                await call.send(RowsPart(rows[start : start + part]))
            try:
                return await call.receive()
            except trio.EndOfChannel:
                raise RemoteError("no_answer", "the call ended without an answer") from None
    raise DeadlineExceeded(f"not recomputed in {TOTAL_S:g} s")


class Recomputing:
    """Answers `sharding.recompute` for the spans of this node."""

    def __init__(self, stages: StageService) -> None:
        self._stages = stages
        self._running = Counter[PeerId]()
        stages.calls.serve_stream(RECOMPUTE, self._serve)

    async def _serve(self, call: AuditCall) -> None:
        if self._running.total() >= AT_ONCE or self._running[call.peer] >= AT_ONCE_PEER:
            raise Busy("enough is recomputed here at a time")
        self._running[call.peer] += 1
        try:
            with trio.move_on_after(TOTAL_S) as scope:
                await self._recompute(call)
            if scope.cancelled_caught:
                raise DeadlineExceeded(f"not recomputed in {TOTAL_S:g} s")
        finally:
            self._running[call.peer] -= 1
            self._running += Counter[PeerId]()  # drops zeros

    async def _recompute(self, call: AuditCall) -> None:
        request = await _next(call)
        if not isinstance(request, Recompute) or request.count > COUNT_MAX:
            raise BadMessage(f"a recomputation begins by saying of what, up to {COUNT_MAX} rows")
        span = request.model, request.start, request.end
        async with self._stages.borrow(*span, tokens=request.count, peer=call.peer) as borrowed:
            worker, ticket = borrowed
            opened = await worker.ask(_opening(request, ticket), timeout_s=STEP_S)
            if not isinstance(opened, Opened):
                raise RemoteError("worker_fault", "the worker did not open a session")
            steps = _Steps(worker, ticket, request)
            while steps.position < request.count:
                message = await _next(call)
                if not isinstance(message, RowsPart):
                    raise BadMessage("rows are what follows")
                await steps.take(message.rows)
            proofs = await worker.ask(WorkerProofs(ticket), timeout_s=STEP_S)
        if not isinstance(proofs, ProofsReply):
            raise RemoteError("worker_fault", "the worker has no proofs")
        await call.send(Recomputed(proofs.inputs, proofs.outputs, steps.wrong))


class _Steps:
    """Feeds rows to the worker, and collects the picks that it does not allow."""

    def __init__(self, worker: Worker, ticket: int, request: Recompute) -> None:
        self.position = 0
        self.wrong: list[int] = []
        self._worker, self._ticket, self._request = worker, ticket, request
        self._claimed = dict(request.picks) if request.gives == "picks" else {}

    async def take(self, rows: bytes) -> None:
        """Compute some rows. Raises BadMessage: not whole ones, none, or more than were said."""
        count, rest = divmod(len(rows), self._request.row_bytes)
        left = self._request.count - self.position
        if rest or not 0 < count <= min(left, PROOF_ROWS):
            raise BadMessage(f"{len(rows)} B of {left} rows of {self._request.row_bytes} B")
        step = Step(self.position + 1, self.position, rows, 0)
        self.position += count
        ends = range(step.position + 1, self.position + 1)
        claimed = [(at, self._claimed[at]) for at in ends if at in self._claimed]
        ask = (
            WorkerCheck(self._ticket, step, claimed) if claimed else WorkerStep(self._ticket, step)
        )
        answer = await self._worker.ask(ask, timeout_s=STEP_S)
        if isinstance(answer, Checked):
            self.wrong += answer.wrong
        elif not isinstance(answer, Output) or answer.position != self.position:
            raise BadMessage(f"rows are not of {self._request.row_bytes} B")


def _opening(request: Recompute, ticket: int) -> WorkerOpen:
    return WorkerOpen(
        session=ticket,
        start=request.start,
        end=request.end,
        max_tokens=request.count,
        sampling=request.sampling,
        takes=request.takes,
        gives=request.gives,
    )


async def _next(call: AuditCall) -> Recompute | RowsPart:
    with trio.move_on_after(STEP_S):
        try:
            return await call.receive()
        except trio.EndOfChannel:
            raise BadMessage("the call ended before its rows") from None
    raise DeadlineExceeded(f"nothing came for {STEP_S:g} s")
