"""Messages of sharding between nodes; docs/protocols/sharding.md says how they play together.

`sharding.session`: the entry holds one streaming call to each stage of a session.
`sharding.feed`: who computes rows holds one to who needs them, around the ring and to the entry.
`sharding.history` and `sharding.recompute` serve audits.
"""

from typing import Annotated, cast

import msgspec
from msgspec import Meta

from protocols.sharding.manifest import Layer, ModelId
from wire.codec import Message
from wire.ports import Method

STEP_TOKENS = 128  # rows of one step, at most: stages overlap on the steps of a long prompt
DRAFT_MAX = 16  # rows of one step that are guesses
HIDDEN_MAX = 1 << 16  # elements of one row
ROWS_MAX = 8 * 1024 * 1024  # bytes of one step; wide models send fewer rows at a time
FRAME_MAX = ROWS_MAX + 16 * 1024
SESSION_TOKENS_MAX = 1 << 17  # tokens that one session may reserve, if the host has them
PREFIX_TOKENS = 16  # tokens from one key of a prefix to the next
PROOF_ROWS = 32  # rows of one commitment
PROOF_BYTES = 208  # of one commitment: a digest of 16 bytes, and 6 for each row (commitments.py)
LOGPROBS_MAX = 20  # alternatives told beside a picked token
CODECS = ("float32", "bfloat16", "float16", "int8")

PING_S = 0.5  # seconds between two pings of a stage
SILENCE_S = 2.5  # seconds without a word, though pinged, after which a stage is lost
ORPHAN_S = 20.0  # seconds that a stage keeps a session whose entry is out of reach
RECORD_S = 60.0  # seconds that a stage keeps the rows of a session that has ended, for audits

_KEYS_MAX = SESSION_TOKENS_MAX // PREFIX_TOKENS
_PROOFS_MAX = SESSION_TOKENS_MAX // PROOF_ROWS + 1

Position = Annotated[int, Meta(ge=0, le=SESSION_TOKENS_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 24)]
Number = Annotated[int, Meta(ge=0, le=1 << 53)]
SessionId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Peer = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+\Z")]
Codec = Annotated[str, Meta(pattern=r"^(ids|float32|bfloat16|float16|int8|picks)\Z")]
Rows = Annotated[bytes, Meta(max_length=ROWS_MAX)]
Keys = Annotated[
    list[SessionId], Meta(max_length=_KEYS_MAX)
]  # 16 bytes each, shortest prefix first
Proofs = Annotated[
    list[Annotated[bytes, Meta(max_length=PROOF_BYTES)]], Meta(max_length=_PROOFS_MAX)
]


class Sampling(Message, frozen=True):
    """How the last stage picks a token. Temperature 0 is greedy; the seed makes it repeatable."""

    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    logprobs: Annotated[int, Meta(ge=-1, le=LOGPROBS_MAX)] = -1  # alternatives; -1: no logprobs


class Place(Message, frozen=True):
    """One end of a feed: a stage, by the first block it computes, or the entry, by all blocks."""

    peer: Peer
    start: Layer


class Open(Message, frozen=True, tag="open"):
    """Entry to stage, first: be blocks [start, end) of this session, or be them again.

    `takes` is the codec of the rows that come from `previous`, `gives` of those to `next`. `reuse`
    are the keys of the prompt's prefixes.
    """

    session: SessionId
    model: ModelId
    start: Layer
    end: Layer
    max_tokens: Annotated[int, Meta(ge=1, le=SESSION_TOKENS_MAX)]
    sampling: Sampling
    previous: Peer
    next: Place
    takes: Codec
    gives: Codec
    reuse: Keys = msgspec.field(default_factory=list[SessionId])


class Rewire(Message, frozen=True, tag="rewire"):
    """Entry to stage: your neighbours are these now. The same ones: open the feed again."""

    previous: Peer
    next: Place


class Ping(Message, frozen=True, tag="ping"):
    """Entry to stage: is the process there that computes?"""


class End(Message, frozen=True, tag="end"):
    """Entry to stage, last: sign what you did. With keys, keep the cache for a later session."""

    keys: Keys = msgspec.field(default_factory=list[SessionId])


class Opened(Message, frozen=True, tag="opened"):
    """The stage has room; it has the rows before `position`, and has seen step `number`.

    One whose cache cannot be truncated (`truncates`) offers no reused prefix and gets no drafts.
    """

    position: Position
    number: Number
    truncates: bool = True


class Pong(Message, frozen=True, tag="pong"):
    """It is there."""


class Broken(Message, frozen=True, tag="broken"):
    """The stage cannot feed its next any more: the feed ended, or could not be opened.

    `forgot`: the rows that the next one lacks are not in its history any more; the entry opens it
    anew, so that it computes them again.
    """

    next: Place
    why: Annotated[str, Meta(max_length=500)]
    forgot: bool = False


class Work(Message, frozen=True):
    """What a stage says it did. `picks` are those of the last stage, by position.

    One commitment per 32 rows, the last one of the rest; a reused prefix has none: they begin at
    `base`.
    """

    session: SessionId
    model: ModelId
    entry: Peer
    start: Layer
    end: Layer
    dtype: Annotated[str, Meta(max_length=16)]
    takes: Codec
    gives: Codec
    base: Position
    position: Position
    inputs: Proofs
    outputs: Proofs
    picks: Annotated[list[tuple[Position, TokenId]], Meta(max_length=SESSION_TOKENS_MAX)]


class Receipt(Message, frozen=True, tag="receipt"):
    """`work` (an encoded `Work`), signed by the stage's node. After it the session has ended."""

    work: Annotated[bytes, Meta(max_length=ROWS_MAX)]
    signature: Annotated[bytes, Meta(max_length=128)]


class Feed(Message, frozen=True, tag="feed"):
    """Opens a feed: to the stage that begins at `start`, or to the entry (`start`: all blocks)."""

    session: SessionId
    start: Layer


class Step(Message, frozen=True, tag="step"):
    """Rows of the positions from `position` on; tokens are picked for the last `picks` of them.

    `number` rises from step to step. A replayed step may stand for several.
    """

    number: Number
    position: Position
    rows: Rows
    picks: Annotated[int, Meta(ge=0, le=DRAFT_MAX)]


class Pick(Message, frozen=True):
    """A token that the last stage picked for the position after a row; with its log-probability
    and the likeliest ones, (token, log-probability) each, where logprobs were asked for.
    """

    token: TokenId
    logprob: float = 0.0
    top: Annotated[list[tuple[TokenId, float]], Meta(max_length=LOGPROBS_MAX)] = msgspec.field(
        default_factory=list[tuple[TokenId, float]]
    )


class Picks(Message, frozen=True, tag="picks"):
    """What the last stage feeds to the entry after a step that asked for picks.

    `position` is that of the row after the last one: where the last pick belongs.
    """

    number: Number
    position: Position
    picks: Annotated[list[Pick], Meta(max_length=DRAFT_MAX)]


class Fed(Message, frozen=True, tag="fed"):
    """The receiver's answer to `Feed`, once: what it has of the session."""

    number: Number
    position: Position


class History(Message, frozen=True):
    """Entry to a stage whose session has just ended: give me what you fed to `next`, again."""

    session: SessionId
    start: Layer


class Recompute(Message, frozen=True, tag="recompute"):
    """Do the work of a stage again, from the rows that follow (`RowsPart`, up to 32 in each):
    `count` of them, of so many bytes each, from position 0 on. `picks` are those that the last
    stage claims.
    """

    model: ModelId
    start: Layer
    end: Layer
    count: Annotated[int, Meta(ge=1, le=SESSION_TOKENS_MAX)]
    row_bytes: Annotated[int, Meta(ge=1, le=ROWS_MAX)]
    sampling: Sampling
    takes: Codec
    gives: Codec
    picks: Annotated[list[tuple[Position, TokenId]], Meta(max_length=SESSION_TOKENS_MAX)] = (
        msgspec.field(default_factory=list[tuple[Position, TokenId]])
    )


class RowsPart(Message, frozen=True, tag="rows"):
    """Some rows, one part after the other."""

    rows: Rows


class Recomputed(Message, frozen=True, tag="recomputed"):
    """What came out: commitments, and the claimed picks that the logits do not allow."""

    inputs: Proofs
    outputs: Proofs
    wrong_picks: Annotated[list[Position], Meta(max_length=SESSION_TOKENS_MAX)]


# (a union is no type[T] for the checkers, though it is for the decoder)
SESSION: Method[Open | Rewire | Ping | End, Opened | Pong | Broken | Receipt] = Method(
    "sharding.session",
    cast("type[Open | Rewire | Ping | End]", Open | Rewire | Ping | End),
    cast("type[Opened | Pong | Broken | Receipt]", Opened | Pong | Broken | Receipt),
    FRAME_MAX,
)
FEED: Method[Feed | Step | Picks, Fed] = Method(
    "sharding.feed", cast("type[Feed | Step | Picks]", Feed | Step | Picks), Fed, FRAME_MAX
)
HISTORY: Method[History, RowsPart] = Method("sharding.history", History, RowsPart, FRAME_MAX)
RECOMPUTE: Method[Recompute | RowsPart, Recomputed] = Method(
    "sharding.recompute",
    cast("type[Recompute | RowsPart]", Recompute | RowsPart),
    Recomputed,
    FRAME_MAX,
)


def rows_of_step(row_bytes: int) -> int:
    """Return how many rows of so many bytes one step has at most."""
    return max(1, min(STEP_TOKENS, ROWS_MAX // row_bytes))
