"""One session on a stage of this node: rows in, to the worker, and out to the next.

A step takes this way without a queue of its own: the task of the feed that brought it posts it to
the worker, the reader of the worker's socket puts what comes out into the history and wakes the
feeder. Rows are never decoded here.
"""

import math
from collections import deque
from collections.abc import Callable

import msgspec
import trio

from protocols.sharding.admission import Admitted
from protocols.sharding.feeder import Feeder, Streams
from protocols.sharding.history import Forgotten, History, PicksKept, step_rows_max
from protocols.sharding.inlet import Inlet
from protocols.sharding.intake import Intake
from protocols.sharding.link import WorkerGone
from protocols.sharding.rows import row_bytes
from protocols.sharding.wire import (
    ORPHAN_S,
    Broken,
    Fed,
    Open,
    Opened,
    Picks,
    Place,
    Pong,
    Rewire,
    Step,
    Work,
)
from protocols.sharding.worker_wire import (
    Failure,
    Output,
    ProofsReply,
    WorkerAnswer,
    WorkerProofs,
    WorkerStep,
)
from protocols.sharding.worker_wire import Opened as WorkerOpened
from wire.errors import BadMessage, DeadlineExceeded, RemoteError, ShoalError
from wire.ids import PeerId

AHEAD_MAX = 4  # steps of one session in the worker; the next ones wait with who sends them
IDLE_S = 300.0  # seconds without a step, after which a session's room goes to others
PROOFS_S = 30.0  # seconds for the worker to tell its proofs; it may be in a long step
PONG_S = 0.1  # seconds from one pong to the next, at least; an entry pings twice in a second
SAY_MAX = 16  # messages that wait for the entry to read; if it does not, it is as good as gone
WHY_MAX = 500  # characters of why a feed broke

Say = Pong | Broken


class StageSession:
    """What the daemon keeps of a session while it is open. `run` it in a nursery of the service."""

    def __init__(
        self,
        opening: Open,
        entry: PeerId,
        admitted: Admitted,
        streams: Streams,
        *,
        on_expect: Callable[[], None],
        on_grown: Callable[[int], None],
        unsent_max: Callable[[], int],
    ) -> None:
        """`on_grown` is told by how many bytes the history grew; `unsent_max` says how many may
        wait for the next stage; `on_expect`: another peer may feed now.
        """
        self.opening = msgspec.structs.replace(opening, reuse=[])  # they have done their part
        self.entry, self.admitted = entry, admitted
        self.span, self.ticket = admitted.span, admitted.first.session
        self.failure: ShoalError | None = None
        self.is_over = False
        self.has_room = True  # reserved, and a cache in the worker; until it is settled
        hidden_size = self.span.info.hidden_size
        self.is_last = opening.end == self.span.info.n_layers
        self._gives_bytes = 0 if self.is_last else row_bytes(opening.gives, hidden_size)
        rows_max = step_rows_max(hidden_size)
        self.history = admitted.prefix or History(max(1, self._gives_bytes), rows_max)
        takes_bytes, base = row_bytes(opening.takes, hidden_size), self.history.position
        self.intake = Intake(takes_bytes, rows_max, opening.max_tokens, position=base)
        self._picks = PicksKept()
        self.feeder = Feeder(
            streams,
            opening.session,
            self._picks if self.is_last else self.history,
            on_broken=self._tell_broken,
            on_sent=self._look_for_room,
        )
        self.inlet = Inlet(opening.previous, has=self._has, take=self._take, on_expect=on_expect)
        self.opened_at = self._stepped_at = self._orphaned_at = trio.current_time()
        self._on_grown, self._unsent_max = on_grown, unsent_max
        self._in_worker = deque[tuple[Step, int]]()  # with the number of their rows
        self._room = trio.lowlevel.ParkingLot()  # feeds that wait until a step may go on
        self._changed = trio.lowlevel.ParkingLot()  # `run`, which waits for the end
        self._control: trio.MemorySendChannel[Say] | None = None  # to the entry, if it is there
        self._ponged_at = -math.inf
        self._is_pinging = False

    def begin(self) -> None:
        """Have the worker make the cache. It may say no later: it is behind other work now."""
        self.span.worker.post(self.admitted.first, self._begun)

    async def run(self) -> None:
        """Feed the next until the end: asked for, failed, orphaned for too long, or idle."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.feeder.run)
            self.feeder.point(self.opening.next)
            while not self.is_over:
                with trio.move_on_at(self._deadline):
                    await self._changed.park()
                if trio.current_time() >= self._deadline:
                    self.fail(DeadlineExceeded("nobody has asked for anything for too long"))
            nursery.cancel_scope.cancel()

    @property
    def _deadline(self) -> float:
        return min(self._orphaned_at + ORPHAN_S, self._stepped_at + IDLE_S)

    @property
    def unsent_bytes(self) -> int:
        """What waits for the next stage."""
        if self.feeder.number >= self.history.number:
            return 0  # rows of a reused prefix go, if they are lacked, with the first step
        lacking = self.history.lacking(self.feeder.number, self.feeder.sent)
        return (self.history.position - lacking) * self._gives_bytes

    def close(self) -> None:
        """End in good order."""
        self._end(RemoteError("ended", "the session has ended"))

    def fail(self, error: ShoalError) -> None:
        """End, and let the entry know why."""
        if not self.is_over:
            self.failure = error
            self._end(error)

    def _end(self, error: ShoalError) -> None:
        self.is_over = True
        self.inlet.close(error)
        if self._control is not None:
            self._control.close()
        self._changed.unpark_all()

    # what the entry asks for

    def take_control(self, control: trio.MemorySendChannel[Say]) -> None:
        """Whoever holds the other end is the entry now; who was so before is not any more."""
        if self._control is not None:
            self._control.close()
        self._control, self._orphaned_at = control, math.inf

    def is_held_by(self, control: trio.MemorySendChannel[Say]) -> bool:
        """Whether it is still the entry who holds the other end."""
        return self._control is control

    def leave(self, control: trio.MemorySendChannel[Say]) -> None:
        """The entry is out of reach: it has `ORPHAN_S` to come back."""
        if self._control is control:
            self._control, self._orphaned_at = None, trio.current_time()
            self._changed.unpark_all()

    def resume(self, entry: PeerId, opening: Open) -> None:
        """The entry comes back. Raises BadMessage if it is not the same session.

        If it wants other layers of it now, this one ends, so that the next try finds room.
        """
        ours, theirs = (
            msgspec.structs.replace(one, previous="-", next=Place("-", 0), reuse=[])
            for one in (self.opening, opening)
        )
        if entry != self.entry:
            raise BadMessage("there is another session of that name")
        if ours != theirs:
            self.close()
            raise BadMessage("another part of the session was here; it has ended")
        self.rewire(Rewire(opening.previous, opening.next))

    def rewire(self, neighbours: Rewire) -> None:
        """Be fed by, and feed, these."""
        self.inlet.expect(neighbours.previous)
        self.feeder.point(neighbours.next)

    def ping(self) -> None:
        """Say pong if the worker's process is there; a flood is answered now and then."""
        if not self._is_pinging and trio.current_time() >= self._ponged_at + PONG_S:
            self._is_pinging = True
            self.span.ping(self._pong)

    def opened(self) -> Opened:
        """What the entry is told: what we have."""
        truncates = self.span.info.ready.truncates
        return Opened(self.intake.position, self.intake.number, truncates)

    async def work(self) -> Work:
        """Return what we say we did. Raises ShoalError if the worker does not tell."""
        proofs = await self.span.worker.ask(WorkerProofs(self.ticket), timeout_s=PROOFS_S)
        if not isinstance(proofs, ProofsReply):
            raise RemoteError("worker_fault", "the worker has no proofs")
        opening = self.opening
        return Work(
            session=opening.session,
            model=opening.model,
            entry=self.entry,
            start=opening.start,
            end=opening.end,
            dtype=self.span.info.dtype,
            takes=opening.takes,
            gives=opening.gives,
            base=proofs.base,
            position=proofs.position,
            inputs=proofs.inputs,
            outputs=proofs.outputs,
            picks=proofs.picks,
        )

    def _pong(self) -> None:
        self._is_pinging, self._ponged_at = False, trio.current_time()
        self._say(Pong())

    def _tell_broken(self, target: Place, error: ShoalError) -> None:
        self._say(Broken(target, str(error)[:WHY_MAX], isinstance(error, Forgotten)))

    def _say(self, message: Say) -> None:
        if self._control is None or self.is_over:
            return
        try:
            self._control.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._control.close()  # its stream ends, and it may open another
            self.leave(self._control)

    # the way of a step

    def _has(self) -> Fed:
        return Fed(self.intake.number, self.intake.position)

    async def _take(self, message: Step | Picks) -> None:
        """Hand a step to the worker, once there is room for what it gives."""
        worker = self.span.worker
        while len(self._in_worker) >= AHEAD_MAX or self.unsent_bytes > self._unsent_max():
            await self._room.park()
        await worker.room()
        self.inlet.check()
        try:
            if not isinstance(message, Step):
                raise BadMessage("a stage is fed with steps")
            if count := self.intake.take(message):
                worker.post(WorkerStep(self.ticket, message), self._give)
                self._in_worker.append((message, count))
        except (BadMessage, WorkerGone) as error:
            self.fail(error)
            raise

    def _begun(self, answer: WorkerAnswer | None) -> None:
        if not isinstance(answer, WorkerOpened):
            self.fail(_fault(answer))

    def _give(self, answer: WorkerAnswer | None) -> None:
        """Take what the worker made of the oldest step."""
        if self.is_over:
            return
        if not isinstance(answer, Output):
            self.fail(_fault(answer))
            return
        step, count = self._in_worker.popleft()
        end, rows = step.position + count, answer.rows
        picks = step.picks if self.is_last else 0
        shape = (answer.number, answer.position, len(rows), len(answer.picks))
        if shape != (step.number, end, count * self._gives_bytes, picks):
            self.fail(RemoteError("worker_fault", "the worker answered another step"))
            return
        if not self.is_last:
            size_bytes = self.history.size_bytes
            self.history.add(Step(step.number, step.position, rows, step.picks))
            self._on_grown(self.history.size_bytes - size_bytes)
        elif picks:
            self._picks.add(Picks(step.number, end, answer.picks))
        self._stepped_at = trio.current_time()
        self.feeder.wake()
        self._look_for_room()

    def _look_for_room(self) -> None:
        self._room.unpark_all()


def _fault(answer: WorkerAnswer | None) -> ShoalError:
    """Return why a worker has no output for a step."""
    if answer is None:
        return WorkerGone("the worker process ended")
    if isinstance(answer, Failure):
        return RemoteError(answer.code, answer.message)
    return RemoteError("worker_fault", f"the worker answered with {type(answer).__name__}")
