"""Messages of `sharding.session`: one streaming call per session and stage.

The caller opens with the span it counts on, then sends steps; each is answered by one output.
Positions are carried both ways, so a lost or repeated step is seen. The same messages go to the
worker process, behind a session's number.
"""

from typing import Annotated, cast

import msgspec
from msgspec import Meta

from protocols.sharding.manifest import Layer, ModelId
from wire.codec import Message
from wire.ports import Method

STEP_TOKENS_MAX = 512  # positions of one step; a longer prompt goes in several
HIDDEN_MAX = 8 * 1024 * 1024  # bytes; 512 positions of 4096 float32
FRAME_MAX = HIDDEN_MAX + 16 * 1024  # and the header with 512 token ids
SESSION_TOKENS_MAX = 1 << 17  # tokens one session may reserve, if the host has them

Position = Annotated[int, Meta(ge=0, le=SESSION_TOKENS_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 24)]
Number = Annotated[int, Meta(ge=0, le=1 << 62)]


class Sampling(Message, frozen=True):
    """How the last stage picks a token. Temperature 0 is greedy; the seed makes it repeatable."""

    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class Open(Message, frozen=True, tag="open"):
    """Reserve room for `max_tokens` of one session on the stage [start, end) of a model."""

    model: ModelId
    start: Layer
    end: Layer
    max_tokens: Annotated[int, Meta(ge=1, le=SESSION_TOKENS_MAX)]
    sampling: Sampling


class Step(Message, frozen=True, tag="step"):
    """Run one forward at `position`. The first stage gets tokens, the others float32 hidden.

    `sample` asks the last stage for a token; false for all but the last part of a long prompt.
    """

    position: Position
    tokens: Annotated[list[TokenId], Meta(max_length=STEP_TOKENS_MAX)]
    hidden: Annotated[bytes, Meta(max_length=HIDDEN_MAX)]
    sample: bool


class Opened(Message, frozen=True, tag="opened"):
    """The room is reserved."""


class Output(Message, frozen=True, tag="output"):
    """What a step gave; `position` is the next step's. The last stage has no hidden."""

    position: Position
    hidden: Annotated[bytes, Meta(max_length=HIDDEN_MAX)]
    token: TokenId | None


Request = Open | Step
Reply = Opened | Output
# (a union is no type[T] for the checkers, though it is for the decoder)
SESSION: Method[Request, Reply] = Method(
    "sharding.session", cast("type[Request]", Request), cast("type[Reply]", Reply), FRAME_MAX
)


class WorkerOpen(Message, frozen=True, tag="open"):
    """To the worker: make the cache of a session for a peer."""

    session: Number
    peer: Annotated[str, Meta(max_length=64)]
    max_tokens: Annotated[int, Meta(ge=1, le=SESSION_TOKENS_MAX)]
    sampling: Sampling


class WorkerStep(Message, frozen=True, tag="step"):
    """To the worker: one step of a session."""

    session: Number
    step: Step


class WorkerClose(Message, frozen=True, tag="close"):
    """To the worker: forget a session. Answered also if it is not known."""

    session: Number


class Ready(Message, frozen=True, tag="ready"):
    """From a worker, unasked (number 0): it is loaded."""

    resident_bytes: Number


class Done(Message, frozen=True, tag="done"):
    """From a worker: nothing to say."""


class Failure(Message, frozen=True, tag="failure"):
    """From a worker: the code and text of an error."""

    code: Annotated[str, Meta(max_length=32)]
    message: Annotated[str, Meta(max_length=2000)]


WorkerAsk = WorkerOpen | WorkerStep | WorkerClose
WorkerAnswer = Ready | Opened | Output | Done | Failure


class Chat(Message, frozen=True, tag="chat"):
    """To the tokenizer: token ids of a conversation of (role, text), ready for an answer."""

    messages: list[tuple[str, str]]


class Text(Message, frozen=True, tag="text"):
    """To the tokenizer: token ids of a text that is to be continued."""

    text: str


class Detokenise(Message, frozen=True, tag="detokenise"):
    """To the tokenizer: the text that `fresh` adds after `before`.

    Unless `final`, nothing is said while the text ends in the middle of a character.
    """

    before: list[int]
    fresh: list[int]
    final: bool


class TokenIds(Message, frozen=True, tag="ids"):
    """From the tokenizer."""

    ids: list[TokenId]


class Piece(Message, frozen=True, tag="piece"):
    """From the tokenizer: a piece of text."""

    text: str


FrontAsk = Chat | Text | Detokenise
FrontAnswer = Ready | TokenIds | Piece | Failure

worker_ask_decoder = msgspec.msgpack.Decoder(tuple[int, WorkerAsk])
worker_answer_decoder = msgspec.msgpack.Decoder(tuple[int, WorkerAnswer])
front_ask_decoder = msgspec.msgpack.Decoder(tuple[int, FrontAsk])
front_answer_decoder = msgspec.msgpack.Decoder(tuple[int, FrontAnswer])
session_request_decoder = msgspec.msgpack.Decoder(SESSION.request)
session_reply_decoder = msgspec.msgpack.Decoder(SESSION.reply)


def tokens_of_step(hidden_size: int) -> int:
    """Return how many positions of a model fit one step."""
    return max(1, min(STEP_TOKENS_MAX, HIDDEN_MAX // (4 * hidden_size)))
