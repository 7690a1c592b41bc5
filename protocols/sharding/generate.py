"""A generation, seen from the node that asked: interfaces (the body follows)."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from protocols.sharding.route import Candidate, RouteHop
from protocols.sharding.service import StageService
from protocols.sharding.wire import Pick, Receipt, Sampling
from wire.errors import Busy, PeerUnreachable
from wire.ports import Clock, Rpc


class HopLost(PeerUnreachable):
    """A stage broke in mid-answer and no other node has its layers."""

    code = "hop_lost"


class NoRoom(Busy):
    """Every node that has some of the blocks is full."""

    retry_after_s: float = 5.0


class Routes(Protocol):
    """Where candidates come from (`node.models.Models`)."""

    def candidates(self, name: str, /) -> Sequence[Candidate]:
        """Return the ready spans of a model."""
        ...


@dataclass(frozen=True)
class Shape:
    """What the driver must know of a model."""

    name: str
    model: str
    n_layers: int
    hidden_size: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Finished:
    """A session that has ended: for audits. `receipts` one per hop, None where none came."""

    session: bytes
    shape: Shape
    hops: list[RouteHop]
    receipts: list[Receipt | None]
    sampling: Sampling
    prompt: list[int]
    picks: list[int]


class PrefixKeys:
    """Names of prompts' prefixes that only this process can make: one per node process."""

    def __init__(self, key: bytes) -> None: ...

    def of(self, model: str, tokens: Sequence[int]) -> list[bytes]:
        """Return the keys of all prefixes, 16 tokens each more than the one before."""
        ...


@dataclass
class EntryServices:
    """What generations on one node share."""

    rpc: Rpc
    stages: StageService
    routes: Routes
    clock: Clock
    on_receipts: Callable[[Finished], None]


@dataclass
class HopTiming:
    """Of one stage in use: half the round trip to it, its compute as it was told, its tokens."""

    peer: str
    start: int
    end: int
    link_ms: float
    compute_ms: float
    tokens: int


class Generation:
    """One session over a whole route."""

    route: list[RouteHop]
    timings: list[HopTiming]
    replaced: int  # hops that were lost and replaced
    reused_tokens: int  # of the prompt, that the stages had from an earlier session
    drafted: int
    accepted: int

    def tokens(self) -> AsyncGenerator[list[Pick]]:
        """Yield the picks as they come, `max_tokens` in all; several where a draft was right."""
        ...


def open_generation(
    services: EntryServices,
    shape: Shape,
    prompt: list[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    keys: PrefixKeys,
    speculate: bool = True,
    codec: str = "auto",
) -> AbstractAsyncContextManager[Generation]:
    """Open a session on every stage of a route for the length of the block.

    max_tokens: of the answer. Raises NoRoute, NoRoom, HopLost or another ShoalError.
    """
    ...
