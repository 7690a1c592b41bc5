"""Wire messages for states: who holds which, the hashes of its chunks, and chunks.

`modelsync.holding` (unary): which state do you hold? `modelsync.chunks` (a stream): the first
message names a state; if the donor has it, pages of its chunks' hashes follow if they are wanted;
then the joiner names chunks by number and hash, and the donor answers each with the chunk, or with
an empty one if it does not have that.
"""

from typing import Annotated

from msgspec import Meta

from protocols.modelsync.state import CHUNK_BYTES, chunk_count
from protocols.modelsync.wire import (
    ELEMENTS_MAX,
    Ask,
    Certificate,
    Elements,
    Hash,
    LaneNumber,
    Round,
    RunName,
)
from wire.codec import CHUNK_FRAME_MAX, Message
from wire.ports import Method

CHUNKS_MAX = chunk_count(ELEMENTS_MAX)  # of one state
PAGE_HASHES = 1024  # a page is 32 KiB: half a control frame
WANTS_MAX = 16  # chunks in one request, and as many on order at one donor
PAST_MAX = 8  # states before the present one that a holder still vouches for

ChunkIndex = Annotated[int, Meta(ge=0, lt=CHUNKS_MAX)]


class Past(Message, frozen=True):
    """A state that the holder had before. `is_kept`: it can still be had from there."""

    round: Round
    root: Hash
    is_kept: bool


class Holding(Message, frozen=True):
    """The state before `round` of a lane, and the certificate of the round that led to it.

    `next`: the round that the holder is to make next, later than `round` while its trainer still
    makes the state of a round that was committed. `past` are the states before it, latest first.
    """

    round: Round
    root: Hash
    elements: Elements
    certificate: Certificate | None = None
    next: Round = 0
    past: Annotated[tuple[Past, ...], Meta(max_length=PAST_MAX)] = ()


class OpenState(Message, frozen=True, tag="open"):
    """The first message of a stream: the state to load from."""

    run: RunName
    lane: LaneNumber
    root: Hash
    wants_hashes: bool = True


class Want(Message, frozen=True):
    """One chunk, by number and hash."""

    index: ChunkIndex
    hash: Hash


class Wants(Message, frozen=True, tag="wants"):
    """Chunks that the joiner wants next, in this order."""

    chunks: Annotated[list[Want], Meta(min_length=1, max_length=WANTS_MAX)]


class StateAsk(Message, frozen=True):
    """What the joiner says."""

    body: OpenState | Wants


class Page(Message, frozen=True, tag="page"):
    """The hashes of the chunks from `start` on."""

    start: ChunkIndex
    hashes: Annotated[list[Hash], Meta(min_length=1, max_length=PAGE_HASHES)]


class Opened(Message, frozen=True, tag="opened"):
    """The donor has the state, and room for one more who loads from it."""


class Chunk(Message, frozen=True, tag="chunk"):
    """One chunk: raw little-endian float32. Empty: the donor has no chunk with that hash."""

    index: ChunkIndex
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class StateAnswer(Message, frozen=True):
    """What the donor says."""

    body: Opened | Page | Chunk


HOLDING = Method("modelsync.holding", Ask, Holding)
CHUNKS = Method("modelsync.chunks", StateAsk, StateAnswer, CHUNK_FRAME_MAX, at_once=8)
