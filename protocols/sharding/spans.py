"""A span of a model that is loaded here, seen from the daemon: its worker, and the room in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from protocols.sharding.link import Worker, WorkerGone
from protocols.sharding.room import Room
from protocols.sharding.worker_wire import Load, Ready, WorkerAnswer, WorkerClose, WorkerPing
from wire.ids import PeerId

PULSE_S = 2.0  # seconds between two looks at a worker: its load for the lease, and whether it lives
STUCK_S = 20.0  # seconds without an answer of its reader thread, after which it is to be killed


@dataclass(frozen=True)
class StageInfo:
    """A span whose worker is ready."""

    model: str
    name: str
    start: int
    end: int
    n_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    ready: Ready
    cache_bytes: int


@dataclass(frozen=True)
class Usage:
    """How busy a span is, for its lease. `free_tokens` are of all blocks of the span."""

    free_tokens: int
    sessions: int
    busy: float
    decode_us: int
    prefill_us: int


class LoadedSpan:
    """A span with its worker. `run` looks after it."""

    def __init__(
        self, info: StageInfo, worker: Worker, own: PeerId, *, on_stuck: Callable[[], None]
    ) -> None:
        self.info, self.worker = info, worker
        self.room = Room(info.cache_bytes, own=own)
        self.is_draining = False
        self.emptied = trio.lowlevel.ParkingLot()  # unparked when a session has gone
        self.scope = trio.CancelScope()
        ready = info.ready
        self._load = Load(ready.decode_us, ready.prefill_us, 0.0, ready.resident_bytes)
        self._on_stuck = on_stuck
        self._pinging = list[Callable[[], None]]()

    async def run(self) -> None:
        """Ping the worker until it is gone, or the span is detached."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self.worker.gone.wait()
                nursery.cancel_scope.cancel()

    def bytes_of(self, start: int, end: int, tokens: int) -> int:
        """Return what so many tokens of some blocks of the span take in its cache."""
        info = self.info
        return math.ceil(tokens * info.ready.token_bytes * (end - start) / (info.end - info.start))

    def has(self, model: str, start: int, end: int) -> bool:
        """Whether these blocks are among those of the span."""
        info = self.info
        return info.model == model and info.start <= start < end <= info.end

    def usage(self) -> Usage:
        """What the lease says."""
        free_tokens = max(0, self.room.free_bytes) // max(1, self.info.ready.token_bytes)
        load, ready = self._load, self.info.ready
        # A worker that has not worked yet tells no times: those from when it was loaded hold.
        times = load.decode_us or ready.decode_us, load.prefill_us or ready.prefill_us
        return Usage(free_tokens, self.room.sessions, load.busy, *times)

    def ping(self, on_answer: Callable[[], None]) -> None:
        """Ask the process if it is there; whoever asks meanwhile shares the answer.

        Nothing is called if it does not answer. Raises WorkerGone.
        """
        self._pinging.append(on_answer)
        if len(self._pinging) == 1:
            self.worker.post(WorkerPing(), self._hear)

    def release(self, peer: PeerId, size_bytes: int, *, after_s: float) -> None:
        """Give the room of a session back, `after_s` seconds after it was reserved."""
        self.room.release(peer, size_bytes, after_s=after_s)
        self.emptied.unpark_all()

    def close(self, ticket: int) -> None:
        """Have the worker forget a session."""
        try:
            self.worker.post(WorkerClose(ticket), _ignore)
        except WorkerGone:
            return  # and the session with it

    def _hear(self, answer: WorkerAnswer | None) -> None:
        waiting, self._pinging = self._pinging, []
        if isinstance(answer, Load):
            self._load = answer
            for on_answer in waiting:
                on_answer()

    async def _watch(self) -> None:
        while not self.worker.gone.is_set():
            answered = trio.Event()
            self.ping(answered.set)
            with trio.move_on_after(STUCK_S) as patience:
                await answered.wait()
            if patience.cancelled_caught:
                self._on_stuck()
                await trio.sleep_forever()  # until it is killed
            await trio.sleep(PULSE_S)


def _ignore(_: WorkerAnswer | None) -> None:
    """Nobody waits for this answer."""
