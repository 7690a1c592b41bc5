"""A worker that pretends: the messages of a real one, and arithmetic in place of a model.

Each block keeps a state that every earlier row has changed, and its output depends on the state. So
one row that is lost, sent twice, out of order or from another session changes all that follows. The
result does not depend on how the blocks are split, nor on the steps that rows come in.

    worker = PretendWorker(PretendSpan(0, 2, n_layers=4, hidden_size=8), step_s=0.01)
    nursery.start_soon(worker.run)
    service.attach(stage_info(worker.span), worker)
    ...
    assert found == reference(prompt, count, n_layers=4)

`python -m tests.sim.pretend_worker --fd 3 --start 0 --end 2 ...` is one as a process.
"""

import argparse
import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from protocols.sharding.link import WorkerGone
from protocols.sharding.rows import row_bytes, rows_to_ids
from protocols.sharding.spans import StageInfo
from protocols.sharding.wire import FRAME_MAX, PROOF_ROWS, Pick, Sampling, Step
from protocols.sharding.worker_wire import (
    Checked,
    Done,
    Failure,
    Load,
    Opened,
    Output,
    ProofsReply,
    Ready,
    WorkerAnswer,
    WorkerAsk,
    WorkerCheck,
    WorkerClose,
    WorkerOpen,
    WorkerPing,
    WorkerProofs,
    WorkerStep,
    worker_answer_decoder,
    worker_ask_decoder,
)
from wire.codec import decode, encode
from wire.errors import BadMessage, DeadlineExceeded, NotFound, RemoteError, ShoalError
from wire.frames import FrameParser, pack

MODEL = "ab" * 32
VOCABULARY = 97
TOKEN_BYTES = 16  # of each token's cache in a span, as the pretended `Ready` says
PRIME = (1 << 61) - 1


def embed(token: int) -> int:
    """Return what goes into block 0."""
    return (token + 1) * 2654435761 % PRIME


def block(number: int, state: int, value: int) -> tuple[int, int]:
    """Return a block's state after one row, and what it gives."""
    state = (state * 6364136223846793005 + value * (2 * number + 3) + number + 1) % PRIME
    return state, (value * 31 + state * 17 + number) % PRIME


def pick(value: int, sampling: Sampling, position: int) -> int:
    """Return the token after a row; a sampled one depends on seed and position only."""
    luck = sampling.seed * 7919 + position * 104729 if sampling.temperature else 0
    return (value + luck) % VOCABULARY


def reference(
    prompt: list[int], count: int, *, n_layers: int, sampling: Sampling | None = None
) -> list[int]:
    """Return what a whole model answers."""
    states, found = [0] * n_layers, list[int]()
    tokens = list(prompt)
    for position in range(len(prompt) + count - 1):
        value = embed(tokens[position])
        for number in range(n_layers):
            states[number], value = block(number, states[number], value)
        if position >= len(prompt) - 1:
            found.append(pick(value, sampling or Sampling(), position + 1))
            tokens.append(found[-1])
    return found


@dataclass
class _Cache:
    opened: WorkerOpen
    base: int
    states: list[list[int]]  # after each row, one per block
    inputs: list[int]
    outputs: list[int]
    picks: dict[int, int] = field(default_factory=dict[int, int])

    def cut(self, position: int) -> None:
        for kept in (self.states, self.inputs, self.outputs):
            del kept[position:]
        self.picks = {place: token for place, token in self.picks.items() if place <= position}


class PretendSpan:
    """Blocks [start, end), and the sessions on them: what is asked in, answers out."""

    def __init__(self, start: int, end: int, *, n_layers: int, hidden_size: int = 8) -> None:
        self.start, self.end = start, end
        self.n_layers, self.hidden_size = n_layers, hidden_size
        self.sessions: dict[int, _Cache] = {}
        self.rows = 0  # computed in all

    def answer(self, ask: WorkerAsk) -> WorkerAnswer:
        """Do what is asked; an error is a Failure, as a real worker answers."""
        try:
            return self._answer(ask)
        except ShoalError as error:
            return Failure(error.code, str(error))

    def rows_of(self, ask: WorkerStep) -> int:
        """Return how many rows a step has; 0 if its session is not known."""
        cache = self.sessions.get(ask.session)
        return len(ask.step.rows) // row_bytes(cache.opened.takes, self.hidden_size) if cache else 0

    def _answer(self, ask: WorkerAsk) -> WorkerAnswer:
        match ask:
            case WorkerOpen():
                return self._open(ask)
            case WorkerStep(ticket, step):
                return self._step(self._cache(ticket), step)
            case WorkerClose(ticket):
                self.sessions.pop(ticket, None)
                return Done()
            case WorkerProofs(ticket):
                cache = self._cache(ticket)
                rows = [digests(rows[cache.base :]) for rows in (cache.inputs, cache.outputs)]
                picks = sorted(cache.picks.items())
                return ProofsReply(cache.base, len(cache.inputs), rows[0], rows[1], picks)
            case WorkerCheck(ticket, step, claimed):
                cache = self._cache(ticket)
                self._step(cache, step)
                sampling, outputs = cache.opened.sampling, cache.outputs
                return Checked(
                    [p for p, token in claimed if pick(outputs[p - 1], sampling, p) != token]
                )
            case WorkerPing():
                return Load(100, 10, 0.5, 1 << 20)

    def _cache(self, ticket: int) -> _Cache:
        if ticket not in self.sessions:
            raise NotFound("the session is not known here (any more)")
        return self.sessions[ticket]

    def _open(self, ask: WorkerOpen) -> WorkerAnswer:
        assert ask.session not in self.sessions
        assert self.start <= ask.start < ask.end <= self.end
        if not ask.fork:
            self.sessions[ask.session] = _Cache(ask, 0, [], [], [])
            return Opened(0)
        old = self._cache(ask.fork)
        assert (old.opened.start, old.opened.end) == (ask.start, ask.end)
        assert len(old.inputs) >= ask.position
        end = ask.position
        self.sessions[ask.session] = _Cache(
            ask, end, old.states[:end], old.inputs[:end], old.outputs[:end]
        )
        if ask.take:
            del self.sessions[ask.fork]
        return Opened(end)

    def _step(self, cache: _Cache, step: Step) -> Output:
        opened = cache.opened
        if step.position > len(cache.inputs):
            raise BadMessage(f"step at {step.position}, the session is at {len(cache.inputs)}")
        cache.cut(step.position)
        values = (
            [embed(token) for token in rows_to_ids(step.rows)]
            if opened.takes == "ids"
            else decode_rows(step.rows, row_bytes(opened.takes, self.hidden_size))
        )
        if len(cache.inputs) + len(values) > opened.max_tokens:
            raise BadMessage(f"more than {opened.max_tokens} tokens")
        for value in values:
            states = list(cache.states[-1]) if cache.states else [0] * (opened.end - opened.start)
            cache.inputs.append(value)
            for index, number in enumerate(range(opened.start, opened.end)):
                states[index], value = block(number, states[index], value)
            cache.states.append(states)
            cache.outputs.append(value)
        self.rows += len(values)
        end = len(cache.outputs)
        if opened.end < self.n_layers:
            size = row_bytes(opened.gives, self.hidden_size)
            rows = b"".join(encode_row(value, size) for value in cache.outputs[step.position :])
            return Output(step.number, end, rows, [])
        places = range(end - step.picks, end)
        picks = [pick(cache.outputs[place], opened.sampling, place + 1) for place in places]
        cache.picks.update((place + 1, token) for place, token in zip(places, picks, strict=True))
        return Output(step.number, end, b"", [Pick(token) for token in picks])


def encode_row(value: int, size: int) -> bytes:
    """Return a row that carries a value, again and again."""
    return (value.to_bytes(8, "little") * (size // 8 + 1))[:size]


def decode_rows(rows: bytes, size: int) -> list[int]:
    """Return the values of rows. Raises BadMessage if a byte is not as it was written."""
    if len(rows) % size:
        raise BadMessage(f"{len(rows)} B are no rows of {size} B")
    values = [int.from_bytes(rows[at : at + 8], "little") for at in range(0, len(rows), size)]
    if b"".join(encode_row(value, size) for value in values) != rows:
        raise BadMessage("a row is spoilt")
    return values


def digests(values: list[int]) -> list[bytes]:
    """Return commitments: equal for equal rows."""
    groups = [values[at : at + PROOF_ROWS] for at in range(0, len(values), PROOF_ROWS)]
    return [hashlib.sha256(repr(group).encode()).digest() for group in groups]


def stage_info(span: PretendSpan, *, tokens: int = 4096) -> StageInfo:
    """Return what a service is told of a span with room for so many tokens."""
    ready = Ready(1 << 20, token_bytes=TOKEN_BYTES, decode_us=100, prefill_us=10)
    return StageInfo(
        model=MODEL,
        name="pretend",
        start=span.start,
        end=span.end,
        n_layers=span.n_layers,
        hidden_size=span.hidden_size,
        vocab_size=VOCABULARY,
        dtype="float32",
        ready=ready,
        cache_bytes=tokens * TOKEN_BYTES,
    )


class PretendWorker:
    """A link to a worker without a process, on any clock. Implements `link.Worker`."""

    def __init__(self, span: PretendSpan, *, step_s: float = 0.01, row_s: float = 0.0) -> None:
        self.span = span
        self.step_s, self.row_s = step_s, row_s
        self.gone = trio.Event()
        self.frozen = False  # answers nothing more, pings neither
        self.tamper: Callable[[WorkerAnswer], WorkerAnswer] = lambda answer: answer
        self.asked = list[WorkerAsk]()
        self._pending: dict[int, Callable[[WorkerAnswer | None], None]] = {}
        self._next = 1
        self._send, self._work = trio.open_memory_channel[tuple[int, WorkerAsk]](10_000)
        self._send_ping, self._pings = trio.open_memory_channel[tuple[int, WorkerAsk]](10_000)

    async def run(self) -> None:
        """Work until cancelled; requests one after the other, pings beside them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, self._work)
            nursery.start_soon(self._run, self._pings)

    def crash(self) -> None:
        """End as a process does, whatever it does."""
        self.gone.set()
        pending, self._pending = self._pending, {}
        for on_answer in pending.values():
            on_answer(None)

    def post(self, message: object, on_answer: Callable[[WorkerAnswer | None], None]) -> int:
        """Ask without waiting."""
        if self.gone.is_set():
            raise WorkerGone("the worker process ended")
        number, self._next = self._next, self._next + 1
        self._pending[number] = on_answer
        asked = decode(encode((number, message)), worker_ask_decoder, FRAME_MAX)
        self.asked.append(asked[1])
        channel = self._send_ping if isinstance(message, WorkerPing) else self._send
        channel.send_nowait(asked)
        return number

    async def ask(self, message: object, *, timeout_s: float) -> WorkerAnswer:
        """Ask and wait."""
        answered, answers = trio.Event(), list[WorkerAnswer | None]()

        def on_answer(answer: WorkerAnswer | None) -> None:
            answers.append(answer)
            answered.set()

        self.post(message, on_answer)
        with trio.move_on_after(timeout_s):
            await answered.wait()
        if not answers:
            raise DeadlineExceeded(f"the worker did not answer in {timeout_s:g} s")
        answer = answers[0]
        if answer is None:
            raise WorkerGone("the worker process ended")
        if isinstance(answer, Failure):
            raise RemoteError(answer.code, answer.message)
        return answer

    async def room(self) -> None:
        """There is room."""

    async def _run(self, channel: trio.MemoryReceiveChannel[tuple[int, WorkerAsk]]) -> None:
        async for number, ask in channel:
            if isinstance(ask, WorkerStep):
                await trio.sleep(self.step_s + self.row_s * self.span.rows_of(ask))
            if self.frozen:
                await trio.sleep_forever()
            answer = self.tamper(self.span.answer(ask))
            _, answer = decode(encode((number, answer)), worker_answer_decoder, FRAME_MAX)
            on_answer = self._pending.pop(number, None)
            if on_answer is not None:
                on_answer(answer)


def main() -> None:
    """Answer a daemon over a socket until it is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--fd", "--start", "--end", "--n-layers", "--hidden-size"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    link = socket.socket(fileno=options.fd)
    span = PretendSpan(
        options.start, options.end, n_layers=options.n_layers, hidden_size=options.hidden_size
    )
    link.sendall(pack(encode((0, stage_info(span).ready))))
    frames = FrameParser(FRAME_MAX)
    while data := link.recv(1 << 18):
        for frame in frames.feed(data):
            number, ask = decode(frame, worker_ask_decoder, FRAME_MAX)
            link.sendall(pack(encode((number, span.answer(ask)))))


if __name__ == "__main__":
    main()
