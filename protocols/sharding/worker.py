"""The process that computes a span: `python -m protocols.sharding.worker`.

Holds the weights of layers [start, end) and the KV caches of its sessions. It talks to its daemon
only, over an inherited socket, and ends with it. Steps of one session are computed in order; in one
turn all waiting single rows and drafts of different sessions together, each other short one, and
one long one, so that prompts and answers do not wait for each other. Needs torch.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from protocols.sharding import lean

if __name__ == "__main__":  # before transformers is imported, below
    lean.install()

import msgspec
import torch

from protocols.sharding import child
from protocols.sharding.batch import can_batch, forward_together, random_rows
from protocols.sharding.caches import StageCache
from protocols.sharding.meter import Meter
from protocols.sharding.stage import Stage, load_stage
from protocols.sharding.wire import DRAFT_MAX
from protocols.sharding.work import Session
from protocols.sharding.worker_wire import (
    Done,
    Load,
    Opened,
    Ready,
    WorkerAsk,
    WorkerClose,
    WorkerOpen,
    WorkerPing,
    WorkerProofs,
    WorkerStep,
    worker_ask_decoder,
)
from wire.errors import BadMessage, Busy, NotFound

SESSIONS_MAX = 1024  # each is some Python objects per layer; the daemon admits by memory, below
CACHE_SLACK = 1.25  # of what the daemon was told: buffers are longer than what is in them
BATCH_MAX = 64  # rows in one forward: those behind them wait no longer than for a few
GAP_SHARE, LINGER_SHARE = 1 / 16, 1 / 6  # of a step's time, that a forward waits for one more row,
# and in all: rows that left a stage together arrive one by one, and would stay apart
PLAYING_STEPS = 8  # steps of that time, in which a session's next row may be on its way round
SHORT_ROWS = DRAFT_MAX + 1  # a step of so many rows is part of an answer, a longer one of a prompt
MEASURED_ROWS = 32  # of the prompt that is measured at load
MEASURED_STEPS = 5  # of one row; the median of their times counts

Answer = tuple[int, object]  # with the number of its request


class Worker:
    """Takes requests, answers them in turns. One session's errors leave the others untouched."""

    def __init__(
        self,
        stage: Stage,
        *,
        batches: bool = False,
        token_bytes: int = 0,
        cache_bytes: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._batches = batches
        self._token_bytes = token_bytes
        self._cache_bytes = cache_bytes  # 0: no limit
        self._sessions: dict[int, Session] = {}
        self._now = now
        self._meter = Meter(now)

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not any(session.waiting for session in self._sessions.values())

    @property
    def gap_s(self) -> float:
        """How long one more row is worth waiting for; 0 if none can be on its way."""
        step_s, now = self._meter.decode_s, self._now()
        if not self._batches or self.idle:
            return 0.0
        playing = any(
            not session.waiting and now < session.stepped_at + PLAYING_STEPS * step_s
            for session in self._sessions.values()
        )
        return GAP_SHARE * step_s if playing else 0.0

    def take(self, number: int, request: WorkerAsk) -> list[Answer]:
        """Take a request; return what can be answered at once."""
        try:
            match request:
                case WorkerOpen():
                    return [(number, self._open(request))]
                case WorkerClose(ticket):
                    gone = self._sessions.get(ticket)
                    return [(number, Done()), *(self._drop(gone) if gone else [])]
                case WorkerPing():
                    return [(number, self.answer_at_once(request))]
                case _:
                    session = self._sessions.get(request.session)
                    if session is None:
                        raise NotFound(f"session {request.session} is not known here (any more)")
                    session.waiting.append((number, request))
                    return []
        except Exception as error:  # one request never ends the process
            return [(number, child.failure(error))]

    def answer_at_once(self, request: WorkerAsk) -> Load | None:
        """Answer a ping; of the rest, say nothing. For any thread."""
        if not isinstance(request, WorkerPing):
            return None
        return self._meter.load(child.resident_bytes())

    def turn(self) -> Iterator[Answer]:
        """Do what waits first in each session, but of the long steps one; yield the answers."""
        heads = [session for session in self._sessions.values() if session.waiting]
        long = [session for session in heads if session.next_rows > SHORT_ROWS]
        decoding = [s for s in heads if s.next_decodes] if self._batches else []
        for group in _groups(decoding):
            yield from self._together(group)
        for session in heads:
            if session not in decoding and session not in long:
                yield from self._alone(session)
        if long:
            yield from self._alone(min(long, key=lambda session: session.waiting[0][0]))

    def _open(self, request: WorkerOpen) -> Opened:
        stage = self._stage
        start, end = request.start, request.end
        if not stage.start <= start < end <= stage.end:
            raise BadMessage(f"layers {start}-{end} of the span {stage.start}-{stage.end}")
        if 0 < stage.context < request.max_tokens:
            raise BadMessage(f"{request.max_tokens} tokens of a context of {stage.context}")
        if (request.takes == "ids") != (start == 0) or request.takes == "picks":
            raise BadMessage(f"block {start} does not take {request.takes}")
        if (request.gives == "picks") != (end == stage.n_layers) or request.gives == "ids":
            raise BadMessage(f"block {end - 1} does not give {request.gives}")
        if request.session in self._sessions:
            raise BadMessage("a session is opened once")
        self._admit(request)
        cache = self._cache_for(request)
        self._sessions[request.session] = Session(request, stage, cache)
        return Opened(cache.position)

    def _admit(self, request: WorkerOpen) -> None:
        """A second lock, by what is held: of what is reserved the daemon knows which is parked."""
        used_up = request.fork if request.take else 0
        others = [s.cache for ticket, s in self._sessions.items() if ticket != used_up]
        if len(others) >= SESSIONS_MAX:
            raise Busy(f"all {SESSIONS_MAX} sessions of this worker are in use")
        rows = request.max_tokens * (request.end - request.start)
        rows += sum(cache.position * (cache.end - cache.start) for cache in others)
        needed = rows * self._token_bytes / (self._stage.end - self._stage.start)
        if self._cache_bytes and needed > CACHE_SLACK * self._cache_bytes:
            raise Busy(f"caches of {needed:.0f} B, and there is room for {self._cache_bytes} B")

    def _cache_for(self, request: WorkerOpen) -> StageCache:
        """Return an empty cache, or one with the first rows of another session."""
        if not request.fork:
            return self._stage.new_cache(request.start, request.end)
        source = self._sessions.get(request.fork)
        if source is None:
            raise NotFound(f"session {request.fork}, to begin with, is not known here (any more)")
        cache = source.cache
        if (cache.start, cache.end) != (request.start, request.end) or source.waiting:
            raise BadMessage("the session to begin with is of other layers, or not at rest")
        if request.position > cache.position:
            raise BadMessage(f"{request.position} rows of {cache.position}")
        if not request.take:
            return cache.fork(request.position)
        cache.truncate(request.position)
        del self._sessions[request.fork]
        return cache

    def _alone(self, session: Session) -> list[Answer]:
        number, ask = session.waiting.popleft()
        if isinstance(ask, WorkerProofs):
            return [(number, session.proofs())]
        step = ask.step
        try:
            inputs = session.prepare(step)
        except Exception as error:  # then the session is as it was
            return [(number, child.failure(error))]
        try:
            started = self._now()
            with self._meter.computing():
                wanted = step.picks if isinstance(ask, WorkerStep) else len(inputs)
                logits = wanted if session.picks_tokens else 0
                exact = step.picks < 2  # else it is a draft: no forward of single rows is the same
                result = self._stage.forward(
                    inputs.unsqueeze(0), session.cache, logits=logits, exact=exact
                )
                hidden = result.hidden[0]
                found = None if result.logits is None else result.logits[0].cpu()
                if isinstance(ask, WorkerStep):
                    answer: object = session.finish(step, inputs, hidden, found)
                else:
                    answer = session.check(step, inputs, hidden, found, ask.claimed)
            self._count([session], len(inputs), started)
            return [(number, answer)]
        except Exception as error:  # some layers have seen the rows, and some have not
            return [(number, child.failure(_told(error))), *self._drop(session)]

    def _together(self, group: list[Session]) -> Iterator[Answer]:
        """All their rows; if that fails, one after the other: to see whose fault it is."""
        ready: list[tuple[Session, int, WorkerStep, torch.Tensor]] = []
        for session in group:
            if len(group) == 1:
                yield from self._alone(session)
                return
            number, ask = session.waiting[0]
            assert isinstance(ask, WorkerStep)
            try:
                ready.append((session, number, ask, session.prepare(ask.step)))
            except Exception:  # then it is as it was, and says so below
                yield from self._alone(session)
        if not ready:
            return
        caches = [session.cache for session, *_ in ready]
        places = [cache.position for cache in caches]
        counts = [len(inputs) for *_, inputs in ready]
        of_rows = [cache for cache, count in zip(caches, counts, strict=True) for _ in range(count)]
        started = self._now()
        try:
            with self._meter.computing():
                rows = torch.cat([inputs for *_, inputs in ready]).unsqueeze(1)
                picks = any(ask.step.picks for _, _, ask, _ in ready)
                result = forward_together(
                    self._stage, rows, of_rows, logits=picks and ready[0][0].picks_tokens
                )
                hidden = torch.split(result.hidden.squeeze(1).cpu(), counts)
                logits = None if result.logits is None else result.logits.squeeze(1).cpu()
                found = None if logits is None else torch.split(logits, counts)
        except Exception as error:
            child.failure(error)  # for the log
            for cache, place in zip(caches, places, strict=True):
                cache.truncate(place)
            for session, *_ in ready:
                yield from self._alone(session)
            return
        self._count([session for session, *_ in ready], 1, started)
        for index, (session, number, ask, inputs) in enumerate(ready):
            session.waiting.popleft()
            scores = None if found is None else found[index]
            try:
                yield number, session.finish(ask.step, inputs, hidden[index], scores)
            except Exception as error:
                yield number, child.failure(_told(error))
                yield from self._drop(session)

    def _count(self, sessions: list[Session], rows: int, started: float) -> None:
        """Measure a step as if it had gone through the whole span."""
        cache, now = sessions[0].cache, self._now()
        for session in sessions:
            session.stepped_at = now
        share = (cache.end - cache.start) / (self._stage.end - self._stage.start)
        self._meter.step(rows, (now - started) / share)

    def _drop(self, session: Session) -> list[Answer]:
        """Forget a session; what waits for it is told."""
        del self._sessions[session.opened.session]
        error = child.failure(NotFound("the session was closed, or failed before"))
        return [(number, error) for number, _ in session.waiting]


def measure(stage: Stage, *, batches: bool) -> Ready:
    """Run a prompt and a few steps through the span, and say what they took."""
    draw = torch.Generator().manual_seed(0)
    logits = int(stage.end == stage.n_layers)
    cache = stage.new_cache()

    def timed(rows: int, logits: int) -> float:
        inputs, started = random_rows(stage, rows, draw), time.perf_counter()
        stage.forward(inputs, cache, logits=logits).hidden.cpu()  # a GPU is done only then
        return time.perf_counter() - started

    timed(2, 0)  # the first call allocates
    prompt_s = timed(MEASURED_ROWS, 0)
    step_s = sorted(timed(1, logits) for _ in range(MEASURED_STEPS))[MEASURED_STEPS // 2]
    row_s = max(0.0, prompt_s - step_s) / (MEASURED_ROWS - 1)
    return Ready(
        child.resident_bytes(),
        token_bytes=-(-cache.size_bytes // cache.position),
        decode_us=round(step_s * 1e6),
        prefill_us=round(row_s * 1e6),
        batches=batches,
        truncates=cache.truncates,
    )


def _groups(sessions: list[Session]) -> list[list[Session]]:
    """Those that use the same layers, with at most `BATCH_MAX` rows each."""
    groups: list[list[Session]] = []
    last: dict[tuple[int, int], list[Session]] = {}  # that of some layers which may have room
    for session in sessions:
        span = session.cache.start, session.cache.end
        group = last.get(span)
        if group is None or sum(s.next_rows for s in (*group, session)) > BATCH_MAX:
            group = last[span] = []
            groups.append(group)
        group.append(session)
    return groups


def _told(error: Exception) -> Exception:
    """Return what the other end shall know: that memory is short is no fault of its own."""
    short = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if short or "DefaultCPUAllocator" in str(error):
        return Busy("there is no memory for this step")
    return error


def main() -> None:
    """Load the span, then serve the daemon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="socket to the daemon")
    parser.add_argument("--folder", type=Path, required=True, help="where the parts are")
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--end", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="more are slower on small machines")
    parser.add_argument("--cache-bytes", type=int, default=0, help="0: no limit")
    options = parser.parse_args()
    daemon = child.Daemon(options.fd)
    torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    span = options.start, options.end
    stage = load_stage(options.folder, *span, dtype=options.dtype, device=device)
    stage.tune()
    ready = measure(stage, batches=can_batch(stage))
    worker = Worker(
        stage,
        batches=ready.batches,
        token_bytes=ready.token_bytes,
        cache_bytes=options.cache_bytes,
    )
    lean.trim()
    daemon.answer_at_once(worker_ask_decoder, worker.answer_at_once)
    daemon.send(0, msgspec.structs.replace(ready, resident_bytes=child.resident_bytes()))
    while True:
        for number, ask in _gather(daemon, worker):
            for answer in worker.take(number, ask):
                daemon.send(*answer)
        for answer in worker.turn():
            daemon.send(*answer)


def _gather(daemon: child.Daemon, worker: Worker) -> Iterator[tuple[int, WorkerAsk]]:
    """Yield what has come; where sessions take turns, also what comes right behind it."""
    yield from daemon.waiting(worker_ask_decoder, timeout_s=None if worker.idle else 0.0)
    lingered_s, gap_s = 0.0, worker.gap_s
    most_s = gap_s * LINGER_SHARE / GAP_SHARE
    while gap_s > 0 and lingered_s < most_s:
        began = time.monotonic()
        more = daemon.waiting(worker_ask_decoder, timeout_s=gap_s)
        if not more:
            return
        yield from more
        lingered_s += time.monotonic() - began
        gap_s = worker.gap_s


if __name__ == "__main__":
    main()
