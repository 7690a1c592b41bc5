"""Answering: prompts in, text out, over the ready stages of a served model.

One task per answer. It sends what it makes into a small channel; who asked reads it, and ends the
task by closing the answer. Several answers to one question share the channel.
"""

import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from node.answer_pace import Pace
from node.answering import TOKENISE_S, Options, Served, Work
from node.model_workers import open_worker
from protocols.sharding.generate import (
    EntryServices,
    Generation,
    PrefixKeys,
    Shape,
    open_generation,
)
from protocols.sharding.link import Link
from protocols.sharding.manifest import Manifest
from protocols.sharding.wire import SESSION_TOKENS_MAX, Sampling
from protocols.sharding.worker_wire import (
    Chat,
    Detokenise,
    FrontAnswer,
    Piece,
    Text,
    TokenIds,
    front_answer_decoder,
)
from shoal import models as shapes
from wire.errors import BadMessage, Busy, DeadlineExceeded, ShoalError, UsageError

ANSWERS_MAX = 16  # at the same time from one node: as many sessions as a stage gives one peer
COUNT_MAX = 4  # answers to one question: each has a session of its own
UNREAD_MAX = 16  # pieces of text that wait for a slow reader; when full the answer waits too
UNASKED_MAX = 1024  # tokens of an answer whose length nobody named; stages reserve all of them
TRACES_MAX = 8  # of the last answers, by model: what `shoal map` shows
KEY_BYTES = 32  # of the secret that names prefixes: as long as the hash that it goes into

_log = structlog.get_logger("models")


@dataclass(frozen=True)
class Prompt:
    """What to answer: a text to go on with, token ids, or a conversation of (role, text)."""

    text: str = ""
    ids: list[int] = field(default_factory=list[int])
    messages: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass
class Answering:
    """Answers in progress."""

    served: Served
    front: Link[FrontAnswer]
    ids: list[int]  # of the prompt
    pieces: trio.MemoryReceiveChannel[shapes.Answer | ShoalError]
    works: list[Work] = field(default_factory=list[Work])

    async def read(self) -> AsyncGenerator[shapes.Answer]:
        """Yield the text as it comes; closing the iterator ends the work. Raises ShoalError."""
        try:
            async for piece in self.pieces:
                if isinstance(piece, ShoalError):
                    raise piece
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """End the work at once: nobody reads any more."""
        self.pieces.close()
        for work in self.works:
            work.scope.cancel()

    async def prompt_text(self) -> str:
        """Return the prompt as the model read it, without what marks its beginning."""
        piece = await self.front.ask(Detokenise([], self.ids, final=True), timeout_s=TOKENISE_S)
        if not isinstance(piece, Piece):
            raise BadMessage("the tokenizer did not answer with text")
        return piece.text


class Answers:
    """Makes answers; holds one tokenizer process per model that was asked."""

    def __init__(self, services: EntryServices, log_path: Callable[[str], Path]) -> None:
        self._services = services
        self._keys = PrefixKeys(secrets.token_bytes(KEY_BYTES))
        self._log_path = log_path
        self._fronts: dict[str, Link[FrontAnswer]] = {}
        self._holding: dict[str, trio.CancelScope] = {}
        self._opening = trio.Lock()
        self._slots = trio.CapacityLimiter(ANSWERS_MAX)
        self._traces: dict[str, deque[shapes.Trace]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of answers and tokenizers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def start(self, served: Served, prompt: Prompt, options: Options) -> Answering:
        """Begin an answer, or several; returns once a session is open on every stage.

        Raises UsageError if the prompt does not fit the model, NoRoute, Busy or another ShoalError.
        """
        asked = trio.current_time()
        front = await self._front(served)
        ids = await self._tokenise(served, front, prompt)
        max_tokens = answer_room(served.manifest, len(ids), options.max_tokens)
        if self._slots.available_tokens < options.count:
            raise Busy(f"{ANSWERS_MAX} answers at a time are made on this node")
        seed = secrets.randbits(62) if options.seed is None else abs(options.seed)
        send, receive = trio.open_memory_channel[shapes.Answer | ShoalError](UNREAD_MAX)
        answering = Answering(served, front, ids, receive)
        try:
            with send:
                for index in range(options.count):
                    its_seed = (seed + index) % (1 << 62)
                    mine = send.clone()
                    work = Work(served, front, ids, max_tokens, options, its_seed, index, mine)
                    await self._running.start(self._answer, work, asked)
                    answering.works.append(work)
        except BaseException:
            answering.close()
            raise
        return answering

    def traces(self, name: str) -> list[shapes.Trace]:
        """Return how the last answers of a model came about, the newest first."""
        return list(self._traces.get(name, ()))

    @property
    def _running(self) -> trio.Nursery:
        assert self._nursery is not None, "start `run` first"
        return self._nursery

    async def _answer(
        self, work: Work, asked: float, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Make one answer. Errors before it began are raised to `start`, later ones are sent."""
        async with self._slots, work.send:
            began = False
            try:
                async with self._session(work) as generation:
                    began = True
                    task_status.started()
                    with work.scope:  # who hangs up ends the work; the session still says good-bye
                        pace = Pace(asked)
                        await work.run(generation, pace)
                        self._remember(pace.trace(work.served.name, generation))
            except (trio.BrokenResourceError, trio.TooSlowError):
                _log.debug("answer.unread", model=work.served.name)
            except ShoalError as error:
                if not began:
                    raise
                await work.fail(error)
            except Exception as error:  # the boundary of one answer: a bug ends no other
                if not began:
                    raise
                _log.error("answer.bug", model=work.served.name, exc_info=error)
                await work.fail(ShoalError(f"a bug: {error!r}"[:500], hint="see `shoal logs`"))

    def _remember(self, trace: shapes.Trace) -> None:
        known = self._traces.setdefault(trace.model, deque(maxlen=TRACES_MAX))
        known.appendleft(trace)

    @asynccontextmanager
    async def _session(self, work: Work) -> AsyncGenerator[Generation]:
        served, options = work.served, work.options
        manifest = served.manifest
        async with open_generation(
            self._services,
            Shape(
                served.name,
                served.model,
                manifest.n_layers,
                manifest.hidden_size,
                manifest.vocab_size,
                manifest.dtype,
            ),
            work.ids,
            max_tokens=work.max_tokens,
            sampling=Sampling(options.temperature, options.top_p, work.seed, options.logprobs),
            speculate=options.speculate,
            codec=options.codec,
            keys=self._keys,
        ) as generation:
            yield generation

    def warm(self, served: Callable[[], Awaitable[Served]]) -> None:
        """Start a model's tokenizer before anybody asks: it takes seconds."""
        self._running.start_soon(self._warm, served)

    async def _warm(self, served: Callable[[], Awaitable[Served]]) -> None:
        try:
            await self._front(await served())
        except (ShoalError, OSError) as error:  # who asks first will see it
            _log.debug("front.cold", error=str(error))

    def keep(self, models: Collection[str]) -> None:
        """End the tokenizers of all other models."""
        for model in self._fronts.keys() - models:
            del self._fronts[model]
            self._holding.pop(model).cancel()

    async def _front(self, served: Served) -> Link[FrontAnswer]:
        """Return the model's tokenizer, started at first use."""
        async with self._opening:
            known = self._fronts.get(served.model)
            if known is not None and not known.gone.is_set():
                return known
            link: Link[FrontAnswer] = await self._running.start(self._hold_front, served)
            self._fronts[served.model] = link
            return link

    async def _hold_front(
        self, served: Served, *, task_status: trio.TaskStatus[Link[FrontAnswer]]
    ) -> None:
        with trio.CancelScope() as scope:
            async with open_worker(
                self._running,
                "protocols.sharding.front",
                [f"--folder={served.front_folder}"],
                front_answer_decoder,
                log_path=self._log_path(served.name),
            ) as link:
                self._holding[served.model] = scope
                task_status.started(link)
                await link.gone.wait()

    async def _tokenise(
        self, served: Served, front: Link[FrontAnswer], prompt: Prompt
    ) -> list[int]:
        if prompt.ids:
            most = served.manifest.vocab_size
            if max(prompt.ids) >= most:
                raise UsageError(f"prompt: token {max(prompt.ids)} of a vocabulary of {most}")
            return prompt.ids
        question = Chat(prompt.messages) if prompt.messages else Text(prompt.text)
        try:
            answer = await front.ask(question, timeout_s=TOKENISE_S)
        except DeadlineExceeded:  # a template that never ends: the next question gets a new process
            if self._fronts.get(served.model) is front:
                self._holding[served.model].cancel()
            raise
        if not isinstance(answer, TokenIds):
            raise BadMessage("the tokenizer did not answer with token ids")
        if not answer.ids:
            raise UsageError("the prompt is empty")
        return answer.ids


def answer_room(manifest: Manifest, prompt_tokens: int, max_tokens: int | None) -> int:
    """Return how many tokens the answer may have. Raises UsageError if there is no room."""
    context = min(manifest.context, SESSION_TOKENS_MAX)
    room = context - prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        wanted = f" and {max_tokens} are asked for" if max_tokens else ""
        raise UsageError(
            f"the model's context is {context} tokens; the prompt has {prompt_tokens}" + wanted,
            hint=f"ask for up to {room} tokens" if room > 0 else "shorten the prompt",
        )
    return min(room, UNASKED_MAX) if max_tokens is None else max_tokens
