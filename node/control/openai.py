"""OpenAI's routes: /v1/models, /v1/chat/completions and /v1/completions, streaming or whole.

The last chunk of an answer has one field of our own, `shoal`: the route and its speed.
"""

import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec

from node.answering import Options
from node.control.api import (
    Api,
    ErrorReply,
    Event,
    Events,
    Raw,
    Request,
    error_reply,
    status_of,
)
from node.control.openai_asks import Asked, ChatRequest, CompletionRequest
from node.control.openai_shapes import ChatShape, Shape, TextShape, Whole, usage_of
from node.model_answers import Answering, Prompt
from shoal import models as shapes
from wire.errors import Busy, NotFound, ShoalError

RETRY_S = {429: 1.0, 503: 5.0}  # by status: an answer ends, or a lost stage is replaced, by then
RETRY_MAX_S = 60.0  # OpenAI's clients take no longer advice

_PLACE = re.compile(r"at `\$\.([A-Za-z_]+)")  # where msgspec found something wrong


class Models(Protocol):
    """What answers: `node.models.Models`."""

    def views(self) -> list[shapes.Model]:
        """Return every known model."""
        ...

    def view(self, name: str, /) -> shapes.Model:
        """Return one. Raises NotFound."""
        ...

    async def answer(self, name: str, prompt: Prompt, options: Options, /) -> Answering:
        """Begin to answer a prompt. Raises ShoalError."""
        ...


class ModelEntry(msgspec.Struct, frozen=True):
    """One model of the list."""

    id: str
    created: int
    owned_by: str = "shoal"
    object: str = "model"


class ModelList(msgspec.Struct, frozen=True):
    """The answer of /v1/models."""

    data: list[ModelEntry]
    object: str = "list"


class OpenAIRoutes:
    """The handlers; each is one route."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def index(self, _: Request) -> ModelList:
        """List the models that can answer now."""
        ready = (model for model in self._models.views() if model.ready)
        return ModelList([ModelEntry(model.name, model.created_ms // 1000) for model in ready])

    async def show(self, request: Request) -> ModelEntry | Raw:
        """Show one model."""
        try:
            model = self._models.view(request.params["model"])
        except NotFound as error:
            return _refusal(error)
        return ModelEntry(model.name, model.created_ms // 1000)

    async def chat(self, request: Request) -> Events | Raw:
        """Answer a conversation."""
        try:
            asked = request.read(ChatRequest)
            answering = await self._models.answer(asked.model, asked.to_prompt(), asked.options())
        except ShoalError as error:
            return _refusal(error)
        served = answering.served
        shape = ChatShape(served.name, served.model, logprobs=bool(asked.logprobs))
        return await _reply(asked, shape, answering)

    async def complete(self, request: Request) -> Events | Raw:
        """Continue a text."""
        try:
            asked = request.read(CompletionRequest)
            prompt = asked.to_prompt()
            answering = await self._models.answer(asked.model, prompt, asked.options())
        except ShoalError as error:
            return _refusal(error)
        served = answering.served
        shape = TextShape(served.name, served.model, logprobs=asked.logprobs is not None)
        if asked.echo:
            try:
                shape.echo = prompt.text or await answering.prompt_text()
            except BaseException:
                answering.close()
                raise
        return await _reply(asked, shape, answering)


async def _reply(asked: Asked, shape: Shape, answering: Answering) -> Events | Raw:
    count = asked.n or 1
    if asked.stream:
        return Events(_stream(shape, answering, count, include_usage=asked.tells_usage))
    wholes = [Whole() for _ in range(count)]
    try:
        async with aclosing(answering.read()) as pieces:
            async for piece in pieces:
                wholes[piece.index].add(piece)
    except ShoalError as error:
        return _refusal(error)
    choices = [shape.whole(index, whole) for index, whole in enumerate(wholes)]
    ends = [whole.end for whole in wholes]
    more = {"usage": usage_of(ends), "shoal": ends[0].trace}
    return _json(shape.document(shape.whole_kind, choices, **more))


async def _stream(
    shape: Shape, answering: Answering, count: int, *, include_usage: bool
) -> AsyncGenerator[Event]:
    ends = list[shapes.Answer]()
    try:
        async with aclosing(answering.read()) as pieces:
            for index in range(count):
                first = shape.first(index)
                if first is not None:
                    yield Event(shape.document(shape.kind, [first]))
            async for piece in pieces:
                more = {} if piece.trace is None else {"shoal": piece.trace}
                yield Event(shape.document(shape.kind, [shape.piece(piece)], **more))
                if piece.usage is not None:
                    ends.append(piece)
    except ShoalError as error:
        yield Event(_error_document(error))  # clients of OpenAI look for "error" in the data
        return
    if include_usage:
        yield Event(shape.document(shape.kind, [], usage=usage_of(ends)))
    yield Event("[DONE]")


def _error_document(error: ShoalError) -> dict[str, object]:
    """Say an error in our shape, with the fields `type` and `param` that OpenAI's has besides."""
    said: ErrorReply = error_reply(error)
    status = status_of(error.code)
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    place = _PLACE.search(str(error))
    param = None if place is None else place[1]
    return {"error": {**msgspec.to_builtins(said.error), "type": kind, "param": param}}


def _refusal(error: ShoalError) -> Raw:
    status = status_of(error.code)
    headers: dict[str, str] = {}
    if status in RETRY_S:
        told_s = (isinstance(error, Busy) and error.retry_after_s) or RETRY_S[status]
        headers["Retry-After"] = str(math.ceil(min(max(told_s, 1.0), RETRY_MAX_S)))
    return _json(_error_document(error), status=status, headers=headers)


def _json(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Raw:
    return Raw(msgspec.json.encode(document), "application/json", status, headers or {})


def routes(api: Api, models: Models) -> None:
    """Declare the routes."""
    handlers = OpenAIRoutes(models)
    add: Callable[..., None] = api.add
    add(
        "GET",
        "/v1/models",
        handlers.index,
        summary="OpenAI: models that can answer now.",
        reply=ModelList,
    )
    add("GET", "/v1/models/{model}", handlers.show, summary="OpenAI: one model.", reply=ModelEntry)
    add(
        "POST",
        "/v1/chat/completions",
        handlers.chat,
        summary="OpenAI: answer a conversation, with `stream` as server-sent events.",
        body=ChatRequest,
    )
    add(
        "POST",
        "/v1/completions",
        handlers.complete,
        summary="OpenAI: continue a text, with `stream` as server-sent events.",
        body=CompletionRequest,
    )
