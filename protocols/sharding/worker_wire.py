"""Messages between the daemon and the processes that it starts for a model: workers, tokenizers."""

from typing import Annotated

import msgspec
from msgspec import Meta

from protocols.sharding.manifest import Layer
from protocols.sharding.wire import (
    Codec,
    Pick,
    Position,
    Proofs,
    Rows,
    Sampling,
    Step,
    TokenId,
)
from wire.codec import Message

Ticket = Annotated[int, Meta(ge=0, le=1 << 62)]  # a session as the worker knows it


class WorkerOpen(Message, frozen=True, tag="open"):
    """Make the cache of a session, for blocks [start, end) of the span.

    `fork`: begin with the first `position` rows of that session's cache, which stays as it is; with
    `take` it is used up instead (no copy).
    """

    session: Ticket
    start: Layer
    end: Layer
    max_tokens: Annotated[int, Meta(ge=1)]
    sampling: Sampling
    takes: Codec
    gives: Codec
    fork: Ticket = 0
    position: Position = 0
    take: bool = False


class WorkerStep(Message, frozen=True, tag="step"):
    """One step of a session; see `wire.Step`. Steps of a session are computed in order."""

    session: Ticket
    step: Step


class WorkerClose(Message, frozen=True, tag="close"):
    """Forget a session. Answered also if it is not known."""

    session: Ticket


class WorkerProofs(Message, frozen=True, tag="proofs"):
    """Say what a session's receipt needs."""

    session: Ticket


class WorkerCheck(Message, frozen=True, tag="check"):
    """Of picks that another claims, from `position` on: which do the logits of a session's rows
    not allow? `rows` are the stage's input; the session is one opened for an audit.
    """

    session: Ticket
    step: Step
    claimed: list[tuple[Position, TokenId]]


class WorkerPing(Message, frozen=True, tag="ping"):
    """Answered by the reader thread, at once, with `Load`."""


class Ready(Message, frozen=True, tag="ready"):
    """From a child, unasked (number 0): it is loaded. Of a worker: what it measured just then."""

    resident_bytes: int
    token_bytes: int = 0  # of one token's cache, all blocks of the span together
    decode_us: int = 0  # one row through the whole span
    prefill_us: int = 0  # each further row of a prompt
    batches: bool = False  # whether one-row steps of several sessions are computed together
    truncates: bool = True  # whether a cache goes back to an earlier position, not to 0 alone


class Opened(Message, frozen=True, tag="opened"):
    """The cache is there, with so many rows in it."""

    position: Position


class Output(Message, frozen=True, tag="output"):
    """What a step gave; `position` is the row after it. The last stage gives picks, no rows."""

    number: int
    position: Position
    rows: Rows
    picks: list[Pick]


class ProofsReply(Message, frozen=True, tag="proofs"):
    """The commitments to a session's inputs and outputs from row `base` on, and its picks."""

    base: Position
    position: Position
    inputs: Proofs
    outputs: Proofs
    picks: list[tuple[Position, TokenId]]


class Checked(Message, frozen=True, tag="checked"):
    """Positions of claimed picks that the logits do not allow."""

    wrong: list[Position]


class Load(Message, frozen=True, tag="load"):
    """What a worker measured of itself lately."""

    decode_us: int
    prefill_us: int
    busy: float  # share of the last seconds that it computed
    resident_bytes: int


class Done(Message, frozen=True, tag="done"):
    """Nothing to say."""


class Failure(Message, frozen=True, tag="failure"):
    """The code and text of an error."""

    code: Annotated[str, Meta(max_length=32)]
    message: Annotated[str, Meta(max_length=2000)]


WorkerAsk = WorkerOpen | WorkerStep | WorkerClose | WorkerProofs | WorkerCheck | WorkerPing
WorkerAnswer = Ready | Opened | Output | ProofsReply | Checked | Load | Done | Failure


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


class Spell(Message, frozen=True, tag="spell"):
    """To the tokenizer: how each of these tokens reads by itself."""

    ids: list[TokenId]


class TokenIds(Message, frozen=True, tag="ids"):
    """From the tokenizer."""

    ids: list[TokenId]


class Piece(Message, frozen=True, tag="piece"):
    """From the tokenizer: a piece of text."""

    text: str


class Spelled(Message, frozen=True, tag="spelled"):
    """From the tokenizer: (text, bytes) of each token; half a character reads as U+FFFD."""

    tokens: list[tuple[str, bytes]]


FrontAsk = Chat | Text | Detokenise | Spell
FrontAnswer = Ready | TokenIds | Piece | Spelled | Failure

worker_ask_decoder = msgspec.msgpack.Decoder(tuple[int, WorkerAsk])
worker_answer_decoder = msgspec.msgpack.Decoder(tuple[int, WorkerAnswer])
front_ask_decoder = msgspec.msgpack.Decoder(tuple[int, FrontAsk])
front_answer_decoder = msgspec.msgpack.Decoder(tuple[int, FrontAnswer])
