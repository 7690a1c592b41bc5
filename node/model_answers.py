"""Answering: prompts in, text out, over the ready stages of a served model.

One task per answer. It sends what it makes into a small channel; who asked reads it, and ends the
task by closing the channel.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from node.model_workers import open_worker
from protocols.sharding.generate import Generation, Shape, open_generation
from protocols.sharding.hop import Connector
from protocols.sharding.link import Link
from protocols.sharding.manifest import Manifest
from protocols.sharding.placement import Span
from protocols.sharding.route import find_replacement, find_route
from protocols.sharding.service import StageService
from protocols.sharding.text import Stops, Tail
from protocols.sharding.wire import (
    Chat,
    Detokenise,
    FrontAnswer,
    Piece,
    Sampling,
    Text,
    TokenIds,
    front_answer_decoder,
)
from shoal import models as shapes
from wire.errors import BadMessage, Busy, ShoalError, UsageError
from wire.ids import PeerId
from wire.ports import Rpc

ANSWERS_MAX = 16  # at the same time from one node: as many sessions as a stage gives one peer
UNREAD_MAX = 16  # pieces of text that wait for a slow reader; when full the answer waits too
READER_S = 60.0  # seconds that a reader may stand still before its answer is given up
UNASKED_MAX = 4096  # tokens of an answer whose length nobody named; stages reserve all of them
TOKENISE_S = 30.0  # seconds for the tokenizer to do one thing

_log = structlog.get_logger("models")


@dataclass(frozen=True)
class Prompt:
    """What to answer: a text to go on with, token ids, or a conversation of (role, text)."""

    text: str = ""
    ids: list[int] = field(default_factory=list[int])
    messages: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass(frozen=True)
class Options:
    """How to answer. Without `max_tokens` the answer may fill the context, up to `UNASKED_MAX`."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Served:
    """A served model, as far as answering needs it."""

    name: str
    model: str
    manifest: Manifest
    front_folder: Path
    ready: Callable[[], list[Span]]  # spans that are ready now


@dataclass
class Answering:
    """An answer in progress."""

    served: Served
    prompt_tokens: int
    pieces: trio.MemoryReceiveChannel[shapes.Answer | ShoalError]

    async def read(self) -> AsyncGenerator[shapes.Answer]:
        """Yield the text as it comes; closing the iterator ends the work. Raises ShoalError."""
        async with self.pieces:
            async for piece in self.pieces:
                if isinstance(piece, ShoalError):
                    raise piece
                yield piece


class Answers:
    """Makes answers; holds one tokenizer process per model that was asked."""

    def __init__(self, rpc: Rpc, stages: StageService, log_path: Callable[[str], Path]) -> None:
        self._rpc = rpc
        self._stages = stages
        self._log_path = log_path
        self._fronts: dict[str, Link[FrontAnswer]] = {}
        self._holding: dict[str, trio.CancelScope] = {}
        self._opening = trio.Lock()
        self._slots = trio.CapacityLimiter(ANSWERS_MAX)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of answers and tokenizers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def start(self, served: Served, prompt: Prompt, options: Options) -> Answering:
        """Begin an answer; returns once a session is open on every stage.

        Raises UsageError if the prompt does not fit the model, NoRoute, Busy or another ShoalError.
        """
        front = await self._front(served)
        ids = await _tokenise(front, prompt)
        max_tokens = _answer_room(served.manifest, len(ids), options.max_tokens)
        if self._slots.available_tokens < 1:
            raise Busy(f"{ANSWERS_MAX} answers are in progress on this node")
        send, receive = trio.open_memory_channel[shapes.Answer | ShoalError](UNREAD_MAX)
        work = _Work(served, front, ids, max_tokens, options, send)
        await self._running.start(self._answer, work)
        return Answering(served, len(ids), receive)

    @property
    def _running(self) -> trio.Nursery:
        assert self._nursery is not None, "start `run` first"
        return self._nursery

    async def _answer(self, work: "_Work", *, task_status: trio.TaskStatus[None]) -> None:
        """Make one answer. Errors before it began are raised to `start`, later ones are sent."""
        async with self._slots, work.send:
            began = False
            try:
                async with self._session(work) as generation:
                    began = True
                    task_status.started()
                    await work.run(generation)
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

    @asynccontextmanager
    async def _session(self, work: "_Work") -> AsyncGenerator[Generation]:
        manifest, ready = work.served.manifest, work.served.ready
        route = find_route(manifest.n_layers, ready())
        connector = Connector(self._rpc, self._stages, row_bytes=4 * manifest.hidden_size)

        def replace(lost: Span, without: Collection[PeerId]) -> Span | None:
            return find_replacement(lost, ready(), without=without)

        seed = work.options.seed
        async with open_generation(
            connector,
            Shape(work.served.model, manifest.n_layers, manifest.hidden_size),
            route,
            max_tokens=len(work.ids) + work.max_tokens,
            sampling=Sampling(
                work.options.temperature,
                work.options.top_p,
                secrets.randbits(62) if seed is None else abs(seed) % (1 << 62),
            ),
            replace=replace,
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


@dataclass
class _Work:
    """One answer being made."""

    served: Served
    front: Link[FrontAnswer]
    ids: list[int]
    max_tokens: int
    options: Options
    send: trio.MemorySendChannel[shapes.Answer | ShoalError]

    async def run(self, generation: Generation) -> None:
        """Generate until the model, a stop string or the limit ends it."""
        tail, stops = Tail.of_prompt(self.ids), Stops(self.options.stop)
        began = trio.current_time()
        token = await generation.advance(self.ids)
        first_token_s = trio.current_time() - began
        count, reason = 0, "length"
        while True:
            count += 1
            if token in self.served.manifest.eos:
                reason = "stop"
                break
            tail.add(token)
            await self._show(await self._text(tail, final=False), stops)
            if stops.found or count == self.max_tokens:
                break
            token = await generation.advance([token])
        if not stops.found:
            await self._show(await self._text(tail, final=True), stops)
        rest = "" if stops.found else stops.finish()
        seconds = trio.current_time() - began - first_token_s
        rate = (count - 1) / seconds if count > 1 and seconds > 0 else 0.0
        trace = self._trace(generation, first_token_s, rate)
        usage = shapes.Usage(len(self.ids), count, len(self.ids) + count)
        reason = "stop" if stops.found else reason
        await self.tell(shapes.Answer(rest, reason, usage, trace))

    async def tell(self, piece: shapes.Answer | ShoalError) -> None:
        """Hand a piece to the reader, who must not stand still for long."""
        with trio.fail_after(READER_S):
            await self.send.send(piece)

    async def fail(self, error: ShoalError) -> None:
        """Hand the reader an error, if there is still one."""
        with suppress(trio.BrokenResourceError, trio.TooSlowError):
            await self.tell(error)

    async def _show(self, text: str, stops: Stops) -> None:
        shown = stops.feed(text) if text else ""
        if shown:
            await self.tell(shapes.Answer(shown))

    async def _text(self, tail: Tail, *, final: bool) -> str:
        if not tail.fresh:
            return ""
        question = Detokenise(tail.before, tail.fresh, final)
        piece = await self.front.ask(question, timeout_s=TOKENISE_S)
        if not isinstance(piece, Piece):
            raise BadMessage("the tokenizer did not answer with text")
        if piece.text:
            tail.shown()
        return piece.text

    def _trace(
        self, generation: Generation, first_token_s: float, tokens_per_s: float
    ) -> shapes.Trace:
        return shapes.Trace(
            model=self.served.name,
            route=[shapes.Hop(span.peer, span.start, span.end) for span in generation.route],
            replaced_hops=generation.replaced,
            first_token_s=round(first_token_s, 4),
            tokens_per_s=round(tokens_per_s, 2),
        )


async def _tokenise(front: Link[FrontAnswer], prompt: Prompt) -> list[int]:
    if prompt.ids:
        return prompt.ids
    question = Chat(prompt.messages) if prompt.messages else Text(prompt.text)
    answer = await front.ask(question, timeout_s=TOKENISE_S)
    if not isinstance(answer, TokenIds):
        raise BadMessage("the tokenizer did not answer with token ids")
    if not answer.ids:
        raise UsageError("the prompt is empty")
    return answer.ids


def _answer_room(manifest: Manifest, prompt_tokens: int, max_tokens: int | None) -> int:
    """Return how many tokens the answer may have. Raises UsageError if there is no room."""
    room = manifest.context - prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        wanted = f" and {max_tokens} are asked for" if max_tokens else ""
        raise UsageError(
            f"the model's context is {manifest.context} tokens; the prompt has {prompt_tokens}"
            + wanted,
            hint=f"ask for up to {room} tokens" if room > 0 else "shorten the prompt",
        )
    return min(room, UNASKED_MAX) if max_tokens is None else max_tokens
