"""Gives states to joiners, from copies, so that no trainer ever waits for one."""

from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import trio

from protocols.modelsync.codecs import Vector
from protocols.modelsync.state import State, chunk_count, chunk_hashes, chunk_of, root_of
from protocols.modelsync.state_wire import (
    CHUNKS,
    HOLDING,
    PAGE_HASHES,
    PAST_MAX,
    Chunk,
    Holding,
    Opened,
    OpenState,
    Page,
    Past,
    StateAnswer,
    StateAsk,
    Want,
    Wants,
)
from protocols.modelsync.wire import Ask
from protocols.modelsync.work import Work
from wire.errors import BadMessage, Busy, DeadlineExceeded, NotFound
from wire.ids import PeerId
from wire.ports import Call, Rpc

COPIES_MAX = 2  # of one lane: the state that somebody still loads, and the one after it
KEPT_S = 10.0  # seconds that a copy is kept when nobody loads from it: a joiner may come back
DOWNLOADS_OF_PEER = 4  # at a time: its lanes; one peer alone does not keep out the others
DOWNLOADS_MAX = 8  # at a time: each holds one chunk in memory, and the training goes first
TAKE_WAIT_S = 60.0  # seconds for a joiner to take a chunk: it may be on a slow link
WANTS_WAIT_S = 90.0  # seconds for it to want another: it may wait for others with their chunks
GIVE_WAY = 19.0  # times what a chunk took: pause after it while a round moves data (5 % duty)
GIVE_WAY_MAX_S = 5.0  # of one pause: a joiner on a slow link must see that we live
POLL_S = 0.05  # seconds between two looks if the round still moves data

Lane = tuple[str, int]


@dataclass
class _Copy:
    """A state that does not change, and the hashes of its chunks."""

    vector: Vector
    hashes: list[bytes]
    users: int = 0
    used_at: float = 0.0


@dataclass
class _Lane:
    """What is given of one lane."""

    state: State
    past: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=PAST_MAX))
    copies: dict[bytes, _Copy] = field(default_factory=dict[bytes, _Copy])
    copying: trio.Lock = field(default_factory=trio.Lock)


class Donor:
    """The states of this node's runs, and the copies that joiners load them from.

    Serves HOLDING and CHUNKS. `is_busy`: a round of this node moves data now; giving then takes
    at most a twentieth of the time. `next_round` of a run's lane: the one to be made next (0 if
    that is not known). Call `tidy` every few seconds: it drops copies nobody loads.
    """

    def __init__(
        self,
        rpc: Rpc,
        work: Work,
        *,
        is_busy: Callable[[], bool],
        next_round: Callable[[str, int], int] = lambda run, lane: 0,
    ) -> None:
        self._work, self._is_busy, self._next_round = work, is_busy, next_round
        self._lanes: dict[Lane, _Lane] = {}
        self._downloads = Counter[PeerId]()
        self._turn = trio.Lock()  # of giving a chunk while a round moves data
        rpc.serve(HOLDING, self._on_holding)
        rpc.serve_stream(CHUNKS, self._on_chunks)

    def announce(self, run: str, lane: int, state: State) -> None:
        """Offer a state. Its vector must not change until the announce after next."""
        known = self._lanes.get((run, lane))
        if known is None:
            self._lanes[run, lane] = _Lane(state)
            return
        if (known.state.round, known.state.root) != (state.round, state.root):
            known.past.appendleft((known.state.round, known.state.root))
        known.state = state
        self.tidy()

    def keep(self, run: str, vectors: list[Vector]) -> None:
        """Go on giving the announced states from these vectors (lane by lane), never to change:
        the trainer's own buffers go away.
        """
        for lane, vector in enumerate(vectors):
            known = self._lanes.get((run, lane))
            if known is not None:
                old = known.state
                known.state = State(old.round, old.root, vector, old.certificate)

    def forget(self, run: str) -> None:
        """Offer nothing of a run any more. Who loads a copy now may finish."""
        for key in [key for key in self._lanes if key[0] == run]:
            del self._lanes[key]

    def state_of(self, run: str, lane: int) -> State | None:
        """The state that was announced last."""
        known = self._lanes.get((run, lane))
        return known.state if known is not None else None

    def tidy(self) -> None:
        """Drop the copies that nobody has loaded from for a while."""
        before = trio.current_time() - KEPT_S
        for known in self._lanes.values():
            for root, copy in list(known.copies.items()):
                if not copy.users and copy.used_at < before:
                    del known.copies[root]

    # -- for peers ---------------------------------------------------------------------------

    async def _on_holding(self, peer: PeerId, ask: Ask) -> Holding:
        known = self._lane(ask.run, ask.lane)
        state = known.state
        past = tuple(Past(round_, root, root in known.copies) for round_, root in known.past)
        next_ = max(state.round, self._next_round(ask.run, ask.lane))
        return Holding(state.round, state.root, len(state.vector), state.certificate, next_, past)

    async def _on_chunks(self, call: Call[StateAnswer, StateAsk]) -> None:
        asked = await _next(call)
        if asked is None or not isinstance(asked.body, OpenState):
            raise BadMessage("a stream of chunks begins with the state that they are of")
        if self._downloads[call.peer] >= DOWNLOADS_OF_PEER:
            raise Busy("you load states from here already")
        if self._downloads.total() >= DOWNLOADS_MAX:
            raise Busy(f"{DOWNLOADS_MAX} nodes load a state from here already")
        self._downloads[call.peer] += 1
        try:
            async with self._copy(asked.body) as copy:
                await _send(call, StateAnswer(Opened()))
                await self._give(call, asked.body, copy)
        finally:
            self._downloads[call.peer] -= 1
            self._downloads += Counter()  # forgets who loads nothing

    async def _give(self, call: Call[StateAnswer, StateAsk], asked: OpenState, copy: _Copy) -> None:
        """Send the hashes, if they are wanted, and then chunks until the joiner has enough."""
        if asked.wants_hashes:
            for start in range(0, len(copy.hashes), PAGE_HASHES):
                page = Page(start, copy.hashes[start : start + PAGE_HASHES])
                await _send(call, StateAnswer(page))
        while (message := await _next(call)) is not None:
            if not isinstance(message.body, Wants):
                raise BadMessage("a state is opened once a stream")
            for want in message.body.chunks:
                await self._give_chunk(call, StateAnswer(_chunk(copy, want)))

    async def _give_chunk(self, call: Call[StateAnswer, StateAsk], answer: StateAnswer) -> None:
        """Send one chunk; while a round moves data one at a time, and with long pauses."""
        if not self._is_busy():
            await _send(call, answer)
            return
        async with self._turn:
            began = trio.current_time()
            await _send(call, answer)
            pause_s = min(GIVE_WAY * (trio.current_time() - began), GIVE_WAY_MAX_S)
            for _ in range(round(pause_s / POLL_S)):
                if not self._is_busy():
                    break
                await trio.sleep(POLL_S)

    @asynccontextmanager
    async def _copy(self, asked: OpenState) -> AsyncGenerator[_Copy]:
        """Return the copy of a state, made now if it is the first time that one is wanted."""
        known = self._lane(asked.run, asked.lane)
        async with known.copying:
            copy = known.copies.get(asked.root) or await self._make_copy(known, asked.root)
            copy.users += 1
        try:
            yield copy
        finally:
            copy.users -= 1
            copy.used_at = trio.current_time()

    async def _make_copy(self, known: _Lane, root: bytes) -> _Copy:
        state = known.state
        if state.root != root:
            raise NotFound(f"here is the state before round {state.round} by now")
        while len(known.copies) >= COPIES_MAX:
            idle = [(copy.used_at, root) for root, copy in known.copies.items() if not copy.users]
            if not idle:
                raise Busy(f"{COPIES_MAX} states of this lane are loaded from here already")
            del known.copies[min(idle)[1]]
        copy = await self._work(partial(_copied, state.vector))
        if root_of(copy.hashes) != root:
            raise NotFound(f"the state before round {state.round} was left while it was copied")
        copy.used_at = trio.current_time()
        known.copies[root] = copy
        return copy

    def _lane(self, run: str, lane: int) -> _Lane:
        known = self._lanes.get((run, lane))
        if known is None:
            raise NotFound(f"no state of lane {lane} of run {run} here")
        return known


def _copied(vector: Vector) -> _Copy:
    """Copy a state and hash its chunks, on one thread: the rounds go first."""
    copy = np.array(vector, dtype="<f4")
    return _Copy(copy, chunk_hashes(copy, threads=1))


def _chunk(copy: _Copy, want: Want) -> Chunk:
    """Return a chunk as it goes out; empty if there is none with that hash."""
    if want.index >= chunk_count(len(copy.vector)) or copy.hashes[want.index] != want.hash:
        return Chunk(want.index, b"")
    return Chunk(want.index, bytes(chunk_of(copy.vector, want.index)))


async def _send(call: Call[StateAnswer, StateAsk], answer: StateAnswer) -> None:
    try:
        with trio.fail_after(TAKE_WAIT_S):
            await call.send(answer)
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{call.peer} does not take the state") from error


async def _next(call: Call[StateAnswer, StateAsk]) -> StateAsk | None:
    """Return what the joiner says next; None if it has all that it wants."""
    try:
        with trio.fail_after(WANTS_WAIT_S):
            return await call.receive()
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{call.peer} wants nothing any more") from error
    except trio.EndOfChannel:
        return None
