"""The daemon's side of sessions: spans loaded here, the sessions on them, and all feeds that come.

Answers `sharding.session`, `sharding.feed` and `sharding.history`, to peers and, by the same code,
to this node itself. No torch.
"""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import trio

from protocols.sharding.admission import Admission
from protocols.sharding.calls import Calls
from protocols.sharding.history import Forgotten
from protocols.sharding.inlet import Inlet
from protocols.sharding.link import Worker, WorkerGone
from protocols.sharding.receipts import sign
from protocols.sharding.sessions import SAY_MAX, Say, StageSession
from protocols.sharding.shelf import Name, Shelf
from protocols.sharding.spans import LoadedSpan, StageInfo, Usage
from protocols.sharding.wire import (
    FEED,
    HISTORY,
    SESSION,
    Broken,
    End,
    Fed,
    Feed,
    History,
    Open,
    Opened,
    Picks,
    Ping,
    Pong,
    Receipt,
    Rewire,
    RowsPart,
    Step,
)
from wire.errors import (
    BadMessage,
    DeadlineExceeded,
    NotFound,
    PeerUnreachable,
    RemoteError,
    ShoalError,
)
from wire.ids import PeerId, Signer
from wire.ports import Call, Clock, Rpc

HISTORY_BYTES = 256 * 1024 * 1024  # of all histories together: 100,000 rows of SmolLM2 in float32
UNSENT_SHARE = 16  # of them, what one session may have that its next lacks
FIRST_S = 10.0  # seconds for the first message of a call
JOIN_S = 5.0  # seconds that a feed waits for its session, which the entry opens at the same time
SAY_S = 10.0  # seconds for the entry to read what it is told
READ_S = 60.0  # seconds for an auditor to read a history
TIDY_S = 5.0  # seconds between two looks for what was kept long enough

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

SessionCall = Call[Opened | Pong | Broken | Receipt, Open | Rewire | Ping | End]


class StageService:
    """Spans, sessions and feeds of this node.

    `calls` opens streaming calls to any peer, this node included: so an entry reaches a stage
    wherever it is, and so does its `Feeder`.
    """

    def __init__(
        self, rpc: Rpc, signer: Signer, *, clock: Clock, history_bytes: int = HISTORY_BYTES
    ) -> None:
        self.peer = rpc.peer
        self.calls = Calls(rpc)
        self.sessions: dict[Name, StageSession] = {}
        self._signer, self._clock = signer, clock
        self._shelf = Shelf(history_bytes)
        self._admission = Admission(self._shelf, clock.now)
        self._ends: dict[Name, Inlet] = {}  # of our own sessions, where their picks come
        self._joined = trio.lowlevel.ParkingLot()  # feeds that wait for their session
        self._nursery: trio.Nursery | None = None
        self.calls.serve_stream(SESSION, self._serve_session)
        self.calls.serve_stream(FEED, self._serve_feed)
        self.calls.serve_stream(HISTORY, self._serve_history)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep sessions until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(self.calls.run)
                task_status.started()
                while True:
                    await trio.sleep(TIDY_S)
                    self._shelf.expire(self._clock.now())
                    self._admission.expire()
            finally:
                self._nursery = None

    # spans, for who hosts them

    def attach(
        self, info: StageInfo, worker: Worker, *, on_stuck: Callable[[], None] = lambda: None
    ) -> None:
        """Begin to answer for a span. `on_stuck`: its worker is there, but answers no pings."""
        assert self._nursery is not None, "attached before run"
        span = LoadedSpan(info, worker, self.peer, on_stuck=on_stuck)
        self._admission.spans.append(span)
        self._nursery.start_soon(self._look_after, span)

    def detach(self, model: str, start: int) -> None:
        """Stop answering for a span; sessions on it end with worker_gone."""
        self._admission.span(model, start).scope.cancel()

    def drain(self, model: str, start: int) -> None:
        """Take no new sessions on a span."""
        self._admission.span(model, start).is_draining = True

    async def drained(self, model: str, start: int, timeout_s: float) -> bool:
        """Wait until a span has no sessions; False if it still has some."""
        span = self._admission.span(model, start)
        with trio.move_on_after(timeout_s):
            while span.room.sessions:
                await span.emptied.park()
        return not span.room.sessions

    def usage(self, model: str, start: int) -> Usage:
        """What the lease says of a span. Raises NotFound."""
        return self._admission.span(model, start).usage()

    def worker_for(self, model: str, start: int, end: int) -> Worker | None:
        """The link to the worker of a span that has these blocks."""
        spans = self._admission.spans
        return next((span.worker for span in spans if span.has(model, start, end)), None)

    @asynccontextmanager
    async def borrow(
        self, model: str, start: int, end: int, *, tokens: int, peer: PeerId
    ) -> AsyncGenerator[tuple[Worker, int]]:
        """Reserve room for work beside the sessions (audits): a worker, and a ticket to open there.

        It is closed at the end of the block. Raises NotFound, Busy.
        """
        span, size_bytes, gone = self._admission.reserve(
            model, start, end, tokens=tokens, peer=peer
        )
        self._admission.forget(span, gone)
        ticket, began_at = self._admission.ticket(), self._clock.now()
        try:
            yield span.worker, ticket
        finally:
            span.close(ticket)
            span.release(peer, size_bytes, after_s=self._clock.now() - began_at)

    async def _look_after(self, span: LoadedSpan) -> None:
        await span.run()
        self._admission.spans.remove(span)
        self._admission.forget(span, span.room.clear())
        for session in list(self.sessions.values()):
            if session.span is span:
                session.fail(WorkerGone("the worker process ended"))

    # the entry's own end of the ring

    @contextmanager
    def expect(
        self, session: bytes, start: int, previous: str, on_picks: Callable[[Picks], None]
    ) -> Generator[Inlet]:
        """Take the picks of a session for the length of the block. `start`: all blocks.

        `previous` may feed them; call the inlet's `expect` when another does. Picks for which
        `on_picks` raises BadMessage have not come, and end their feed.
        """
        last = Fed(0, 0)

        async def take(message: Step | Picks) -> None:
            nonlocal last
            if not isinstance(message, Picks):
                raise BadMessage("an entry is fed with picks")
            if message.number > last.number:
                on_picks(message)
                last = Fed(message.number, message.position)

        inlet = Inlet(previous, has=lambda: last, take=take, on_expect=self._look_again)
        self._ends[session, start] = inlet
        self._joined.unpark_all()
        try:
            yield inlet
        finally:
            del self._ends[session, start]
            inlet.close(RemoteError("ended", "the session has ended"))

    # sessions

    async def _serve_session(self, call: SessionCall) -> None:
        session = self._open(call.peer, await _first(call, Open))
        control, said = trio.open_memory_channel[Say](SAY_MAX)  # full: the entry is gone
        session.take_control(control)
        try:
            with said:
                await call.send(session.opened())
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_say, call, said, nursery.cancel_scope)
                    await self._obey(call, session, control)
                    nursery.cancel_scope.cancel()
        finally:
            session.leave(control)
        if session.failure is not None:
            raise session.failure

    async def _obey(
        self, call: SessionCall, session: StageSession, control: trio.MemorySendChannel[Say]
    ) -> None:
        """Do what the entry asks for, until it ends the session or its stream, or has another."""
        async for message in call:
            if not session.is_held_by(control):
                return
            match message:
                case Ping():
                    session.ping()
                case Rewire():
                    session.rewire(message)
                case End(keys):
                    await self._finish(call, session, keys)
                    return
                case Open():
                    raise BadMessage("a session is opened once")

    async def _finish(self, call: SessionCall, session: StageSession, keys: list[bytes]) -> None:
        """Sign what was done, and park or close the session."""
        try:
            # First: a step behind the proofs would change what is parked.
            session.inlet.close(RemoteError("ended", "the session has ended"))
            work = await session.work()
            receipt = sign(self._signer, work)
            self._settle(session, keys, work.position)
            with trio.move_on_after(SAY_S):
                await call.send(receipt)
        except ShoalError as error:
            session.fail(error)
        finally:
            session.close()

    def _open(self, peer: PeerId, opening: Open) -> StageSession:
        """Return the session that an entry opens, or opens again. Raises ShoalError."""
        name = opening.session, opening.start
        session = self.sessions.get(name)
        if session is not None and not session.is_over:
            session.resume(peer, opening)
            return session
        if self._nursery is None:
            raise PeerUnreachable("this node is stopping")
        session = StageSession(
            opening,
            peer,
            self._admission.admit(peer, opening),
            self.calls,
            on_expect=self._look_again,
            on_grown=self._shelf.grow,
            unsent_max=self._unsent_max,
        )
        self.sessions[name] = session
        history, feeder = session.history, session.feeder
        self._shelf.add(history, lambda: history.lacking(feeder.number, feeder.sent))
        self._nursery.start_soon(self._keep, session)
        session.begin()
        self._joined.unpark_all()
        return session

    async def _keep(self, session: StageSession) -> None:
        """Let a session live, and clear up after it."""
        name = session.opening.session, session.opening.start
        try:
            await session.run()
        finally:
            if self.sessions.get(name) is session:  # and not the next one of that name
                del self.sessions[name]
            self._settle(session, [], 0)
            if not session.is_last and session.failure is None:
                self._shelf.record(name, session.entry, session.history, self._clock.now())
            self._shelf.remove(session.history)

    def _settle(self, session: StageSession, keys: list[bytes], position: int) -> None:
        """Give the session's room back, and its cache if it is not to be parked; once."""
        if session.has_room:
            session.has_room = False
            lasted_s = trio.current_time() - session.opened_at
            session.span.release(session.entry, session.admitted.size_bytes, after_s=lasted_s)
            history = None if session.is_last else session.history
            self._admission.settle(
                session.admitted, session.entry, session.opening, keys, position, history
            )

    def _unsent_max(self) -> int:
        return self._shelf.budget_bytes // max(UNSENT_SHARE, len(self.sessions))

    # feeds and histories

    async def _serve_feed(self, call: Call[Fed, Feed | Step | Picks]) -> None:
        feed = await _first(call, Feed)
        inlet = await self._join((feed.session, feed.start), call.peer)
        with inlet.feeding(call.peer):
            await call.send(inlet.has())
            async for message in call:
                if isinstance(message, Feed):
                    raise BadMessage("a feed is opened once")
                await inlet.take(message)

    async def _join(self, name: Name, peer: PeerId) -> Inlet:
        """Wait for the session, and until this peer may feed it. Raises NotFound."""
        with trio.move_on_after(JOIN_S):
            while (inlet := self._inlet(name)) is None or inlet.previous != peer:
                await self._joined.park()
            return inlet
        raise NotFound("no session here is to be fed by you")

    def _inlet(self, name: Name) -> Inlet | None:
        """Our own end goes first: who knows the session could open one of that name here."""
        if (end := self._ends.get(name)) is not None:
            return end
        session = self.sessions.get(name)
        return None if session is None else session.inlet

    def _look_again(self) -> None:
        self._joined.unpark_all()

    async def _serve_history(self, call: Call[RowsPart, History]) -> None:
        asked = await _first(call, History)
        name = asked.session, asked.start
        history = self._shelf.recorded(name, call.peer, self._clock.now())
        if history is None:
            raise NotFound("no session of yours by that name has ended here lately")
        with _patience(READ_S):
            for start in range(0, history.position, history.rows_max):
                if history.base > start:  # it may be forgotten while it is read
                    raise Forgotten(f"rows before {history.base} are not kept any more")
                stop = min(start + history.rows_max, history.position)
                await call.send(RowsPart(history.rows(start, stop)))


async def _say(
    call: SessionCall, said: trio.MemoryReceiveChannel[Say], scope: trio.CancelScope
) -> None:
    """Tell the entry what there is to tell, until the session has no more to say to this stream."""
    try:
        async for message in said:
            with _patience(SAY_S):
                await call.send(message)
    except ShoalError:
        pass  # it is gone
    scope.cancel()


async def _first(call: Call[T, Q], kind: type[R]) -> R:
    """Return the message that a call begins with. Raises BadMessage, DeadlineExceeded."""
    try:
        with _patience(FIRST_S):
            message = await call.receive()
    except trio.EndOfChannel:
        raise BadMessage("the call has no message") from None
    if not isinstance(message, kind):
        raise BadMessage(f"it begins with {kind.__name__.lower()}")
    return message


@contextmanager
def _patience(seconds: float) -> Generator[None]:
    """Bound a wait for a peer. Raises DeadlineExceeded."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"waited {seconds:g} s for the other side") from error
