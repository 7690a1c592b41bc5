"""What OpenAI's clients ask for: the bodies of /v1/chat/completions and /v1/completions. No I/O.

What we do not know in a request is ignored, as those clients expect; what we know and cannot do is
refused, for an answer that silently is another one would be worse.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from node.answering import Options
from node.model_answers import COUNT_MAX, Prompt
from protocols.sharding.wire import LOGPROBS_MAX
from wire.errors import UsageError

STOPS_MAX = 16  # stop strings of one request; OpenAI allows 4
STOP_CHARACTERS_MAX = 256
MESSAGES_MAX = 1024  # messages of one conversation
COMPLETION_TOKENS = 16  # of /v1/completions when the request names no number: OpenAI's default

_Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]
_Token = Annotated[int, Meta(ge=0, le=1 << 24)]
_Tokens = Annotated[int, Meta(ge=1)]


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream shall tell besides the text."""

    include_usage: bool = False


class OwnOptions(msgspec.Struct, frozen=True):
    """The field `shoal` of a request: what OpenAI's has no word for.

    codec: how activations are encoded between stages ("auto": by what each link is worth).
    speculate: guess tokens that the text suggests; the answer is the same without.
    """

    codec: Annotated[str, Meta(pattern=r"^(auto|float32|bfloat16|float16|int8)\Z")] = "auto"
    speculate: bool = True


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of completion can be asked."""

    model: str = ""
    max_tokens: _Tokens | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=STOPS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    shoal: OwnOptions = OwnOptions()

    @property
    def tells_usage(self) -> bool:
        """Whether a stream shall end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def to_options(self, max_tokens: int | None, logprobs: int) -> Options:
        """Return how to answer. As with OpenAI, the default is to sample at temperature 1.

        Raises UsageError for what cannot be done.
        """
        if (self.n or 1) > COUNT_MAX:
            raise UsageError(f"n={self.n}: at most {COUNT_MAX} answers to one question")
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise UsageError(f"{name} is not supported: stages pick by the model's own logits")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return Options(
            max_tokens,
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            self.seed,
            stop or [],
            logprobs,
            self.n or 1,
            self.shoal.codec,
            self.shoal.speculate,
        )


class TextPart(msgspec.Struct, frozen=True):
    """A part of a message's content; only text is understood."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Annotated[str, Meta(max_length=32)]
    content: str | list[TextPart] | None = None

    def said(self) -> tuple[str, str]:
        """Return its role and text. Raises UsageError for pictures, tools and the like."""
        if self.role not in ("system", "developer", "user", "assistant"):
            raise UsageError(f"role {self.role!r}: system, user and assistant can speak here")
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str) or self.content is None:
            return role, self.content or ""
        if any(part.type != "text" for part in self.content):
            raise UsageError("only text can be in a message's content")
        return role, "".join(part.text for part in self.content)


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer shall be; only plain text is possible."""

    type: str = "text"


class ChatRequest(Asked, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=LOGPROBS_MAX)] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None

    def to_prompt(self) -> Prompt:
        """Return the conversation. Raises UsageError."""
        return Prompt(messages=[message.said() for message in self.messages])

    def options(self) -> Options:
        """Return how to answer. Raises UsageError for what cannot be done."""
        if (self.tools or self.functions) and self.tool_choice != "none":
            raise UsageError("tools are not supported: models answer with text")
        if self.response_format is not None and self.response_format.type != "text":
            kind = self.response_format.type[:32]
            raise UsageError(f'response_format {kind!r} is not supported; "text" is')
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs=true")
        alternatives = (self.top_logprobs or 0) if self.logprobs else -1
        return self.to_options(self.max_completion_tokens or self.max_tokens, alternatives)


class CompletionRequest(Asked, frozen=True, kw_only=True):
    """The body of /v1/completions. A prompt is text, or token ids."""

    prompt: str | list[_Token | str | list[_Token]] = ""
    logprobs: Annotated[int, Meta(ge=0, le=LOGPROBS_MAX)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def to_prompt(self) -> Prompt:
        """Return the one prompt. Raises UsageError if there are several, or none."""
        if isinstance(self.prompt, str):
            return Prompt(text=self.prompt)
        ids = [part for part in self.prompt if isinstance(part, int)]
        if ids and len(ids) == len(self.prompt):
            return Prompt(ids=ids)
        if len(self.prompt) == 1 and isinstance(self.prompt[0], str):
            return Prompt(text=self.prompt[0])
        if len(self.prompt) == 1 and isinstance(self.prompt[0], list) and self.prompt[0]:
            return Prompt(ids=self.prompt[0])
        raise UsageError("prompt: one text, or one list of token ids")

    def options(self) -> Options:
        """Return how to answer. Raises UsageError for what cannot be done."""
        if self.echo and self.logprobs is not None:
            raise UsageError("echo with logprobs is not supported: the prompt's are not computed")
        if self.suffix:
            raise UsageError("suffix is not supported: models go on from the end of a text")
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise UsageError("best_of is not supported; n is")
        limit = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self.to_options(limit, -1 if self.logprobs is None else self.logprobs)
