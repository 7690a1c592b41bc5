"""The daemon's side of sessions. (Signatures; the bodies follow.)"""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from protocols.sharding.calls import Calls
from protocols.sharding.wire import Picks
from protocols.sharding.worker_wire import Ready
from wire.ids import PeerId, Signer
from wire.ports import Clock, Rpc


@dataclass(frozen=True)
class StageInfo:
    """A span whose worker is ready."""

    model: str
    name: str
    start: int
    end: int
    n_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    ready: Ready
    cache_bytes: int


@dataclass(frozen=True)
class Usage:
    """How busy a span is, for its lease. `free_tokens` are of all blocks of the span."""

    free_tokens: int
    sessions: int
    busy: float
    decode_us: int
    prefill_us: int


class PicksEnd:
    """The entry's end of a session's ring: where the last stage feeds picks to.

    `previous`: who may feed it; set it anew when the last stage is replaced.
    """

    previous: str

    def close(self) -> None: ...


class StageService:
    """Answers `sharding.session`, `.feed` and `.history` for the spans attached here.

    `calls` opens streaming calls to any peer, this node included: `calls.stream(peer, SESSION, ...)`
    is how an entry reaches a stage, wherever it is, and what its `Feeder` is given.
    """

    calls: Calls

    def __init__(
        self, rpc: Rpc, signer: Signer, *, clock: Clock, history_bytes: int = 1 << 28
    ) -> None: ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep sessions until cancelled."""

    def attach(self, info: StageInfo, link: Any, *, on_stuck: Callable[[], None]) -> None:
        """Begin to answer for a span. `on_stuck`: its worker is there, but answers no pings."""

    def detach(self, model: str, start: int) -> None:
        """Stop answering for a span; sessions on it end with worker_gone."""

    def drain(self, model: str, start: int) -> None:
        """Take no new sessions on a span."""

    async def drained(self, model: str, start: int, timeout_s: float) -> bool:
        """Wait until a span has no sessions; False if it still has some."""
        ...

    def usage(self, model: str, start: int) -> Usage:
        """What the lease says. Raises NotFound."""
        ...

    @contextmanager
    def expect(
        self, session: bytes, start: int, previous: str, on_picks: Callable[[Picks], None]
    ) -> Generator[PicksEnd]:
        """Take the picks of a session for the length of the block. `start`: all blocks."""
        ...

    def worker_for(self, model: str, start: int, end: int) -> Any | None:
        """The link to the worker of a span that has these blocks."""

    @asynccontextmanager
    async def borrow(
        self, model: str, start: int, end: int, *, tokens: int, peer: PeerId
    ) -> AsyncGenerator[tuple[Any, int]]:
        """Reserve room for work beside the sessions (audits): (link, ticket), closed at the end.

        Raises NotFound, Busy.
        """
        yield
