"""OpenAI's routes on a real port, over generations that say what a test tells them to say.

The tokenizer is a real one, in this process. The server runs in a thread: clients may block.
"""

import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio

import node.control.models as model_routes
import node.control.openai as openai_routes
from node.answering import Options, Served
from node.control.api import Api, Request
from node.control.server import ControlServer
from node.control.web import keys_of
from node.model_answers import Answering, Answers, Prompt
from protocols.sharding.front import Front, load_front
from protocols.sharding.generate import EntryServices, HopTiming, Shape
from protocols.sharding.link import Link
from protocols.sharding.manifest import VERSION, Manifest
from protocols.sharding.route import RouteHop
from protocols.sharding.wire import Pick, Sampling
from protocols.sharding.worker_wire import FrontAnswer, FrontAsk
from shoal import models as shapes
from shoal.api import Member
from wire.errors import NotFound, ShoalError
from wire.ids import PeerId

TOKEN = "t" * 43
MODEL = "ab" * 32
EOS = 0
VOCABULARY = 512
HANGUP_S = 1.0  # seconds after which a session whose reader is gone has ended
ALICE, BOB = PeerId("alice"), PeerId("bob")


@dataclass
class Play:
    """What generations do: `text` token by token, `at_once` in each round trip, then `error`.

    `hold`: wait after so many round trips until nobody reads any more.
    """

    text: str = "to be or not to be, that is the question"
    at_once: int = 1
    ends: bool = False  # with the end-of-sequence token, before max_tokens
    refuse: ShoalError | None = None
    error: ShoalError | None = None
    hold: int | None = None
    rogue: bool = False  # the fourth token is of no vocabulary
    reused: int = 0
    opened: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    prompts: list[list[int]] = field(default_factory=list[list[int]])
    closed: int = 0


class FakeGeneration:
    """One generation: a route of two hops."""

    def __init__(self, play: Play, front: Front, max_tokens: int, sampling: Sampling) -> None:
        self._play = play
        ids = front._ids(play.text, special=False).ids
        turn = sampling.seed % len(ids) if sampling.temperature > 0 else 0
        ids = ids[turn:] + ids[:turn]
        self._ids = (ids * (1 + max_tokens // len(ids)))[:max_tokens]
        if play.rogue:
            self._ids = [*ids[:3], VOCABULARY]
        if play.ends or play.error is not None:
            self._ids = [*ids, EOS] if play.ends else ids
        self._logprobs = sampling.logprobs
        self.route = [RouteHop(ALICE, 0, 2, "float32"), RouteHop(BOB, 2, 4, "ids")]
        self.timings = [HopTiming(ALICE, 0, 2, 0.1, 0.2, 9), HopTiming(BOB, 2, 4, 0.3, 0.4, 9)]
        self.replaced, self.reused_tokens = 1, play.reused
        self.drafted, self.accepted = 7, 5

    async def tokens(self) -> AsyncGenerator[list[Pick]]:
        """Say it."""
        size = self._play.at_once
        for trip, at in enumerate(range(0, len(self._ids), size)):
            if trip == self._play.hold:
                await trio.sleep_forever()
            yield [self._pick(token) for token in self._ids[at : at + size]]
            await trio.lowlevel.checkpoint()
        if self._play.error is not None:
            raise self._play.error

    def _pick(self, token: int) -> Pick:
        others = [(token, -0.5), (token + 1, -1.5), (EOS, float("-inf"))]
        return Pick(token, -0.5, others[: max(0, self._logprobs)])


class FakeFront:
    """A link to a tokenizer that is in this process."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def ask(self, message: FrontAsk, *, timeout_s: float) -> FrontAnswer:
        """Answer at once."""
        assert timeout_s > 0
        await trio.lowlevel.checkpoint()
        return self._front.answer(message)


class FakeModels:
    """One model, "tiny", of four blocks; `full`: its last two are nowhere."""

    def __init__(self, answers: Answers, vocabulary: int) -> None:
        manifest = Manifest(
            VERSION, "tiny", "llama", "float32", 4, 8, vocabulary, 128, 0, [EOS], []
        )
        self._served = Served("tiny", MODEL, manifest, Path("/nowhere"))
        self.answers = answers
        stages = [shapes.Stage(ALICE, 0, 2, "ready"), shapes.Stage(BOB, 2, 4, "ready")]
        self.seen = shapes.Model("tiny", MODEL, 4, True, 1000, stages)

    def views(self) -> list[shapes.Model]:
        """Return the one."""
        return [self.seen]

    def view(self, name: str) -> shapes.Model:
        """Return it by name."""
        if name != "tiny":
            raise NotFound(f"no model {name!r}")
        return self.seen

    def traces(self, name: str) -> list[shapes.Trace]:
        """Return its last answers' routes."""
        return self.answers.traces(name)

    async def serve(self, request: shapes.ServeRequest) -> AsyncGenerator[shapes.ServeProgress]:
        """Serve nothing else."""
        raise NotFound(request.path)
        yield

    async def unserve(self, name: str) -> None:
        """Keep it."""
        raise NotFound(name)

    async def answer(self, name: str, prompt: Prompt, options: Options) -> Answering:
        """Answer."""
        self.view(name or "tiny")
        return await self.answers.start(self._served, prompt, options)


async def members(_: Request) -> list[Member]:
    """Say who is called what."""
    return [Member(ALICE, "alices-box", [], "", 0, alive=True, connected=True, me=True)]


@dataclass
class Endpoint:
    """A running endpoint."""

    url: str
    socket: Path
    play: Play
    models: FakeModels

    def wait_closed(self, count: int) -> None:
        """Wait until so many sessions have ended."""
        end = time.monotonic() + HANGUP_S
        while self.play.closed < count:
            assert time.monotonic() < end, "a session goes on though nobody reads"
            time.sleep(0.01)


def patched(folder: Path, patch: pytest.MonkeyPatch) -> Play:
    """Let answers be made by fake generations and a folder's tokenizer; return their script."""
    play, front = Play(), load_front(folder)

    @asynccontextmanager
    async def open_generation(
        _: EntryServices,
        shape: Shape,
        prompt: list[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        **more: object,
    ) -> AsyncGenerator[FakeGeneration]:
        play.opened.append({"shape": shape, "sampling": sampling, **more})
        play.prompts.append(prompt)
        if play.refuse is not None:
            raise play.refuse
        try:
            yield FakeGeneration(play, front, max_tokens, sampling)
        finally:
            play.closed += 1

    async def its_front(*_: object) -> Link[FrontAnswer]:
        await trio.lowlevel.checkpoint()
        return cast("Link[FrontAnswer]", FakeFront(front))

    patch.setattr("node.model_answers.open_generation", open_generation)
    patch.setattr(Answers, "_front", its_front)
    return play


def answers_of(folder: Path) -> tuple[Answers, FakeModels]:
    """Make the part that answers, and one model for it."""
    answers = Answers(cast("EntryServices", None), lambda _: folder)
    return answers, FakeModels(answers, VOCABULARY)


@contextmanager
def endpoint(folder: Path, patch: pytest.MonkeyPatch) -> Generator[Endpoint]:
    """Serve for the length of the block. `folder` has a tokenizer."""
    play, socket = patched(folder, patch), folder / "control.sock"
    started = threading.Event()
    running: list[tuple[int, FakeModels, trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        answers, models = answers_of(folder)
        api = Api()
        api.add("GET", "/v1/members", members, summary="")
        openai_routes.routes(api, models)
        model_routes.routes(api, models)
        async with trio.open_nursery() as nursery:
            await nursery.start(answers.run)
            server = ControlServer(api)
            port = await nursery.start(server.serve_tcp, "127.0.0.1", 0, keys_of(TOKEN))
            await nursery.start(server.serve_unix, socket)
            token = trio.lowlevel.current_trio_token()
            running.append((port, models, token, nursery.cancel_scope))
            started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert started.wait(10)
        port, models, _, _ = running[0]
        yield Endpoint(f"http://127.0.0.1:{port}/v1", socket, play, models)
    finally:
        _, _, token, scope = running[0]
        token.run_sync_soon(scope.cancel)
        thread.join(10)
