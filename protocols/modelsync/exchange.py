"""The data of one attempt: how contributions become the result that its members sign.

Three kinds, opened by `open_exchange`: a butterfly all-reduce (butterfly.py), a mix with neighbours
(mixing.py), and the spread of a result that members are bound to (adoption.py). Nothing is applied
here: results lie in buffers of their own until COMMIT.

A fault of another member becomes a `Fault` and stops only the task that met it: the streams stay
open until the proposer has decided, or a healthy member's retreat would look like a second fault.
"""

from collections.abc import Mapping
from typing import Protocol

from protocols.modelsync.adoption import Adoption
from protocols.modelsync.aggregate import Aggregator
from protocols.modelsync.butterfly import Butterfly
from protocols.modelsync.codecs import Vector
from protocols.modelsync.memory import Memory
from protocols.modelsync.mixing import Mix
from protocols.modelsync.news import Held, News
from protocols.modelsync.side import Terms
from protocols.modelsync.wire import Piece, Prepare
from protocols.modelsync.work import Work
from wire.ids import PeerId
from wire.ports import Bulk, Call, Rpc


class Exchange(Protocol):
    """One member's side of the data of one attempt. Its news are one Complete, or Faults.

    In sealed rounds: `await seal()` before ACK, `go` when all commitments are known; `run` may
    begin before, and waits for it.
    """

    prepare: Prepare
    shards: list[bytes]  # as in Complete; empty before

    @property
    def bytes_in(self) -> int:
        """Payload that came, without frames and encryption."""
        ...

    @property
    def bytes_out(self) -> int:
        """Payload that went."""
        ...

    @property
    def bytes_by_peer(self) -> Mapping[PeerId, tuple[int, int]]:
        """In and out, by peer."""
        ...

    @property
    def rate(self) -> int:
        """Bytes/s that we were able to send; 0 if there were too few to measure."""
        ...

    @property
    def held(self) -> Held:
        """The complete result. It shares memory with this exchange."""
        ...

    @property
    def brought(self) -> list[memoryview]:
        """Of a sealed sum: the chunks that we have committed to, without the head; empty if we
        brought nothing. They share memory with this exchange, until `take`.
        """
        ...

    @property
    def lengths(self) -> Mapping[PeerId, float]:
        """Of a sealed sum: the norm of each contribution to our own shard."""
        ...

    async def seal(self) -> bytes:
        """Encode all of our contribution; return its hash: SHA-256 over the shards' hashes."""
        ...

    def go(self, commitments: Mapping[PeerId, bytes]) -> None:
        """Let data flow; what members bring must match these."""
        ...

    async def run(self) -> None:
        """Move the data until done. Cancel it to abort."""
        ...

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """Answer a stream that another member opened for this attempt."""
        ...

    def close(self) -> None:
        """End the streams that others opened to us."""
        ...

    def take(self, into: Vector, sent: Vector | None = None) -> None:
        """After COMMIT, in a worker thread: put the result into `into`, which may be the buffer
        that held our contribution, and what has arrived of our contribution into `sent`.
        """
        ...


def open_exchange(
    prepare: Prepare,
    *,
    rpc: Rpc,
    bulk: Bulk | None,
    contribution: Vector,
    work: Work,
    news: News,
    aggregator: Aggregator,
    memory: Memory | None = None,
    held: Held | None = None,
    wants_sent: bool = False,
) -> Exchange:
    """Return what moves the data of an attempt: by its `topology`, and by what it adopts.

    contribution: float32 [elements], not to change until `take`, or until the round is given up.
    bulk None: everything goes over calls. memory: of the lane, kept from round to round. held: the
    result that we are bound to. wants_sent: `take` will be asked for it, for error feedback.
    Raises BadMessage if the attempt cannot be.
    """
    memory = memory or Memory()
    terms = Terms(
        prepare, rpc, bulk, contribution, work, news, aggregator, memory, held, wants_sent
    )
    if prepare.adopt is not None:
        return Adoption(terms, prepare.adopt)
    return Butterfly(terms) if prepare.topology == "all" else Mix(terms)
