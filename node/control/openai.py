"""OpenAI's routes: /v1/models, /v1/chat/completions and /v1/completions, streaming or whole.

What we do not know in a request is ignored, as OpenAI's own clients expect; what we know and cannot
do is refused. The last chunk has one field of our own, `shoal`: the route and its speed.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated

import msgspec
from msgspec import Meta

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
from node.model_answers import Answering, Options, Prompt
from node.models import Models
from shoal import models as shapes
from wire.errors import NotFound, ShoalError, UsageError

STOPS_MAX = 16  # stop strings of one request; OpenAI allows 4
STOP_CHARACTERS_MAX = 256
MESSAGES_MAX = 1024  # messages of one conversation

_Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream shall tell besides the text."""

    include_usage: bool = False


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of completion can be asked."""

    model: str = ""
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=STOPS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None

    def options(self, max_tokens: int | None) -> Options:
        """Return how to answer. As with OpenAI, the default is to sample at temperature 1."""
        if self.n not in (None, 1):
            raise UsageError(f"n={self.n}: one answer at a time")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return Options(
            max_tokens,
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            self.seed,
            stop or [],
        )


class TextPart(msgspec.Struct, frozen=True):
    """A part of a message's content; only text is understood."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Annotated[str, Meta(max_length=32)]
    content: str | list[TextPart] | None = None

    def text(self) -> str:
        """Return its text. Raises UsageError for pictures and the like."""
        if isinstance(self.content, str) or self.content is None:
            return self.content or ""
        if any(part.type != "text" for part in self.content):
            raise UsageError("only text can be in a message's content")
        return "".join(part.text for part in self.content)


class ChatRequest(_Request, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None


class CompletionRequest(_Request, frozen=True, kw_only=True):
    """The body of /v1/completions. A prompt is text, or token ids."""

    prompt: str | list[Annotated[int, Meta(ge=0, le=1 << 24)] | str] = ""

    def to_prompt(self) -> Prompt:
        """Return the one prompt."""
        if isinstance(self.prompt, str):
            return Prompt(text=self.prompt)
        texts = [part for part in self.prompt if isinstance(part, str)]
        ids = [part for part in self.prompt if isinstance(part, int)]
        if len(texts) == 1 and not ids:
            return Prompt(text=texts[0])
        if texts or not ids:
            raise UsageError("prompt: one text, or one list of token ids")
        return Prompt(ids=ids)


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
            prompt = Prompt(messages=[(m.role, m.text()) for m in asked.messages])
            limit = asked.max_completion_tokens or asked.max_tokens
            answering = await self._models.answer(asked.model, prompt, asked.options(limit))
        except ShoalError as error:
            return _refusal(error)
        return await _reply(asked, _ChatShape(answering.served.name), answering)

    async def complete(self, request: Request) -> Events | Raw:
        """Continue a text."""
        try:
            asked = request.read(CompletionRequest)
            limit = 16 if asked.max_tokens is None else asked.max_tokens  # OpenAI's default
            options = asked.options(limit)
            answering = await self._models.answer(asked.model, asked.to_prompt(), options)
        except ShoalError as error:
            return _refusal(error)
        return await _reply(asked, _TextShape(answering.served.name), answering)


class _Shape:
    """The JSON around a piece of answer; chats and texts differ in little."""

    prefix = ""
    kind = ""
    whole_kind = ""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def document(self, kind: str, choices: list[object], **more: object) -> dict[str, object]:
        """Return one JSON document."""
        return {**self._head, "object": kind, "choices": choices, **more}

    def first(self) -> dict[str, object] | None:
        """Return what comes before any text."""
        return None

    def piece(self, text: str, reason: str | None) -> object:
        """Return the choice of a chunk."""
        raise NotImplementedError

    def whole(self, text: str, reason: str | None) -> object:
        """Return the choice of an answer in one piece."""
        raise NotImplementedError


class _ChatShape(_Shape):
    prefix = "chatcmpl"
    kind = "chat.completion.chunk"
    whole_kind = "chat.completion"

    def first(self) -> dict[str, object] | None:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return self.document(self.kind, [choice])

    def piece(self, text: str, reason: str | None) -> object:
        delta = {"content": text} if text else {}
        return {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}

    def whole(self, text: str, reason: str | None) -> object:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}


class _TextShape(_Shape):
    prefix = "cmpl"
    kind = whole_kind = "text_completion"

    def piece(self, text: str, reason: str | None) -> object:
        return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}

    whole = piece


async def _reply(asked: _Request, shape: _Shape, answering: Answering) -> Events | Raw:
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return Events(_stream(shape, answering, include_usage=usage))
    text, end = "", shapes.Answer("")
    try:
        async with aclosing(answering.read()) as pieces:
            async for piece in pieces:
                text += piece.text
                end = piece
    except ShoalError as error:
        return _refusal(error)
    choice = shape.whole(text, end.finish_reason)
    return _json(shape.document(shape.whole_kind, [choice], usage=end.usage, shoal=end.trace))


async def _stream(
    shape: _Shape, answering: Answering, *, include_usage: bool
) -> AsyncGenerator[Event]:
    first = shape.first()
    if first is not None:
        yield Event(first)
    try:
        async with aclosing(answering.read()) as pieces:
            async for piece in pieces:
                choice = shape.piece(piece.text, piece.finish_reason)
                more = {} if piece.trace is None else {"shoal": piece.trace}
                yield Event(shape.document(shape.kind, [choice], **more))
                if piece.usage is not None and include_usage:
                    yield Event(shape.document(shape.kind, [], usage=piece.usage))
    except ShoalError as error:
        yield Event(_error_document(error))  # clients of OpenAI look for "error" in the data
        return
    yield Event("[DONE]")


def _error_document(error: ShoalError) -> dict[str, object]:
    """Say an error in our shape, with the field `type` that OpenAI's has besides."""
    said: ErrorReply = error_reply(error)
    status = status_of(error.code)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {**msgspec.to_builtins(said.error), "type": kind, "param": None}}


def _refusal(error: ShoalError) -> Raw:
    return _json(_error_document(error), status=status_of(error.code))


def _json(document: object, *, status: int = 200) -> Raw:
    return Raw(msgspec.json.encode(document), "application/json", status)


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
