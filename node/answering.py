"""One answer being made: tokens come from the stages, text goes to who asked.

The stages never wait for the text: a task of its own takes what they pick, so the tokenizer works
while they are at the next tokens. What was computed beyond the answer's end is thrown away.
"""

from collections.abc import Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from node.answer_pace import Pace
from protocols.sharding.generate import Generation
from protocols.sharding.link import Link
from protocols.sharding.manifest import Manifest
from protocols.sharding.text import Stops, Tail
from protocols.sharding.wire import Pick
from protocols.sharding.worker_wire import Detokenise, FrontAnswer, Piece, Spell, Spelled
from shoal import models as shapes
from wire.errors import BadMessage, ShoalError
from wire.faults import open_helpers

UNSAID_MAX = 2  # round trips whose tokens are no text yet; when full the stages wait
READER_S = 60.0  # seconds that a reader may stand still before its answer is given up
TOKENISE_S = 30.0  # seconds for the tokenizer to do one thing
UNREADABLE_MAX = 24  # tokens without a whole character: they are nonsense, and shown as that
LOGPROB_MIN = -9999.0  # what OpenAI says for "never"; JSON knows no infinity


@dataclass(frozen=True)
class Options:
    """How to answer. Without `max_tokens` the answer may fill the context, up to a limit.

    logprobs: how many alternatives to tell beside each token; -1: no log-probabilities at all.
    count: how many answers, each with a seed of its own. codec, speculate: see `open_generation`.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list[str])
    logprobs: int = -1
    count: int = 1
    codec: str = "auto"
    speculate: bool = True


@dataclass(frozen=True)
class Served:
    """A served model, as far as answering needs it."""

    name: str
    model: str
    manifest: Manifest
    front_folder: Path


@dataclass
class Work:
    """One answer; `run` makes it, `send` takes it. Cancelling `scope` ends it early."""

    served: Served
    front: Link[FrontAnswer]
    ids: list[int]
    max_tokens: int
    options: Options
    seed: int
    index: int
    send: trio.MemorySendChannel[shapes.Answer | ShoalError]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self, generation: Generation, pace: Pace) -> None:
        """Generate until the model, a stop string or the limit ends it. Raises ShoalError,
        TooSlowError if nobody reads, BrokenResourceError if nobody will.
        """
        into, out = trio.open_memory_channel[list[Pick] | ShoalError](UNSAID_MAX)
        speech = _Speech(self)
        async with out, open_helpers() as nursery:
            nursery.start_soon(_listen, generation, pace, into)
            await speech.run(out)
        await self.tell(speech.last(pace.trace(self.served.name, generation)))

    async def tell(self, piece: shapes.Answer | ShoalError) -> None:
        """Hand a piece to the reader, who must not stand still for long."""
        with trio.fail_after(READER_S):
            await self.send.send(piece)

    async def fail(self, error: ShoalError) -> None:
        """Hand the reader an error, if there is still one."""
        with suppress(trio.BrokenResourceError, trio.TooSlowError):
            await self.tell(error)


async def _listen(
    generation: Generation, pace: Pace, into: trio.MemorySendChannel[list[Pick] | ShoalError]
) -> None:
    """Take what the stages pick, and note when."""
    with into:
        try:
            async with aclosing(generation.tokens()) as trips:
                async for picks in trips:
                    pace.arrived(len(picks), trio.current_time())
                    await into.send(picks)
        except ShoalError as error:
            await into.send(error)


class _Speech:
    """Turns tokens into what the reader sees."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tail, self._stops = Tail.of_prompt(work.ids), Stops(work.options.stop)
        self._count, self._reason = 0, ""
        self._read_chars = 0  # of all text so far
        self._shown_chars = 0  # of what the reader has
        self._unshown: list[shapes.Said] = []  # tokens whose text the reader has not yet

    async def run(self, heard: trio.MemoryReceiveChannel[list[Pick] | ShoalError]) -> None:
        """Say tokens as they come until the answer has ended."""
        async for picks in heard:
            if isinstance(picks, ShoalError):
                raise picks
            for some in self._portions(picks):
                await self._take(some)
                if self._reason:
                    return
        raise BadMessage(f"the stages ended after {self._count} tokens")

    def last(self, trace: shapes.Trace) -> shapes.Answer:
        """Return the last piece: text that was held back, and how it went."""
        prompt, count = len(self._work.ids), self._count
        cached = shapes.CachedTokens(trace.reused_tokens)
        usage = shapes.Usage(prompt, count, prompt + count, cached)
        rest = "" if self._stops.found else self._stops.finish()
        due = [] if self._stops.found else self._unshown
        return shapes.Answer(rest, self._reason, usage, trace, self._work.index, due)

    def _portions(self, picks: list[Pick]) -> Iterator[list[Pick]]:
        """Yield tokens together, or one by one where it matters which one a text belongs to."""
        if self._work.options.stop or self._work.options.logprobs >= 0:
            yield from ([pick] for pick in picks)
        else:
            yield picks

    async def _take(self, picks: list[Pick]) -> None:
        manifest = self._work.served.manifest
        for pick in picks:
            if pick.token >= manifest.vocab_size:
                raise BadMessage(f"a stage picked token {pick.token} of {manifest.vocab_size}")
            self._count += 1
            if pick.token in manifest.eos:
                self._reason = "stop"
                break
            self._tail.add(pick.token)
            if self._work.options.logprobs >= 0:
                self._unshown.append(await self._said(pick))
            if self._count == self._work.max_tokens:
                self._reason = "length"
                break
        await self._show()

    async def _show(self) -> None:
        text = await self._fresh_text()
        self._read_chars += len(text)
        shown = self._stops.feed(text) if text else ""
        if self._stops.found:
            self._reason = "stop"
        self._shown_chars += len(shown)
        due = [said for said in self._unshown if said.offset < self._shown_chars]
        self._unshown = self._unshown[len(due) :]
        if shown or due:
            await self._work.tell(shapes.Answer(shown, index=self._work.index, said=due))

    async def _fresh_text(self) -> str:
        if not self._tail.fresh:
            return ""
        final = bool(self._reason) or len(self._tail.fresh) > UNREADABLE_MAX
        question = Detokenise(self._tail.before, self._tail.fresh, final)
        piece = await self._work.front.ask(question, timeout_s=TOKENISE_S)
        if not isinstance(piece, Piece):
            raise BadMessage("the tokenizer did not answer with text")
        if piece.text:
            self._tail.shown()
        return piece.text

    async def _said(self, pick: Pick) -> shapes.Said:
        """Return a token in words, with those that could have come in its place."""
        top = pick.top[: self._work.options.logprobs]
        question = Spell([pick.token, *(token for token, _ in top)])
        spelled = await self._work.front.ask(question, timeout_s=TOKENISE_S)
        if not isinstance(spelled, Spelled) or len(spelled.tokens) != len(top) + 1:
            raise BadMessage("the tokenizer did not spell what it was asked")
        (text, data), *others = spelled.tokens
        return shapes.Said(
            text,
            _finite(pick.logprob),
            list(data),
            self._read_chars,
            [
                shapes.Candidate(each, _finite(logprob), list(its))
                for (each, its), (_, logprob) in zip(others, top, strict=True)
            ],
        )


def _finite(logprob: float) -> float:
    """Return what JSON can say; a peer may send anything, also NaN."""
    return logprob if LOGPROB_MIN < logprob <= 0.0 else (0.0 if logprob > 0.0 else LOGPROB_MIN)
