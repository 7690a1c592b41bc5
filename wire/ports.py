"""Ports: what the parts need of the world and of each other, as small protocols.

`dht` and `crdt` stand on `Network` and `Clock`; the protocols on `Rpc`. The real ones come from
`node/` and `protocols/rpc`; the simulator in tests/sim provides others.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from wire.codec import CONTROL_FRAME_MAX
from wire.errors import PeerUnreachable
from wire.ids import PeerId

T = TypeVar("T")
Q = TypeVar("Q")  # request
R = TypeVar("R")  # reply
Out = TypeVar("Out", contravariant=True)
In = TypeVar("In", covariant=True)


class Clock(Protocol):
    """Time, so that a simulator can own it."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch, as this machine believes."""
        ...


class OffLoop(Protocol):
    """Runs blocking or heavy work away from the event loop (wire.threads); a simulator, whose
    clock must not run meanwhile, runs it in place.
    """

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return what `work` returns."""
        ...


class Sink(Protocol):
    """Takes what an attached stream brings, on the reader's own turn: no task, no queue, no wait.

    What it raises resets the stream (BadMessage) or is a bug. It may push to its stream.
    """

    def on_data(self, data: bytes | memoryview) -> None:
        """Take bytes. A view stays valid for as long as somebody holds it."""
        ...

    def on_room(self) -> None:
        """`push` may be called again, after `has_room` was false."""
        ...

    def on_end(self, error: PeerUnreachable | None) -> None:
        """Nothing more comes: the last call. None if the other side finished in good order."""
        ...


PUSH_MAX = 65_000  # bytes of one push: it fits one record of the connection, with its headers


class Stream(Protocol):
    """One libp2p stream, fenced (facts: network, section 2). Errors are PeerUnreachable.

    Either read and write it, or `attach` a sink to it and push: for protocols that carry many
    small messages, for which a task switch per message would be most of the cost.
    """

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def protocol(self) -> str:
        """What it was opened for."""
        ...

    async def read(self, max_bytes: int) -> bytes:
        """Return between 1 and `max_bytes` bytes, or b"" at the end of the stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Cancelling it resets the stream, never the connection."""
        ...

    async def finish(self) -> None:
        """Close our direction; the other end reads to its end."""
        ...

    async def reset(self) -> None:
        """Throw the stream away, both directions. Safe at any time, also twice."""
        ...

    def attach(self, sink: Sink) -> None:
        """Give everything that arrives from now on to `sink`, what is buffered at once.

        The window is returned as bytes arrive, so the sink must bound what it keeps. Attached
        again, the last sink gets the rest, and the end.
        """
        ...

    @property
    def has_room(self) -> bool:
        """True if `push` may be called now; false also once the stream is over."""
        ...

    def push(self, data: bytes, *, now: bool) -> None:
        """Queue up to `PUSH_MAX` bytes; only while there is room. Safe on a stream that is over.

        now: hand them to the socket at once, if it takes them; otherwise what is pushed in this
        turn of the event loop goes out together.
        """
        ...

    def drop(self) -> None:
        """Reset without waiting."""
        ...

    @property
    def is_retired(self) -> bool:
        """True once a better connection to the peer is there: go on with a stream on that one."""
        ...

    def expect(self, *, waits: bool) -> None:
        """Tell whether somebody waits for what the other side has to say: meanwhile it is noticed
        sooner that nobody is there.
        """
        ...


StreamServer = Callable[[Stream], Awaitable[None]]


class Host(Protocol):
    """The libp2p host, as the protocols see it: streams to admitted peers only."""

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    def connected(self) -> list[PeerId]:
        """Admitted peers that we hold a connection to now."""
        ...

    def serve(self, protocol: str, server: StreamServer) -> None:
        """Answer streams of a protocol. The server's errors end its stream only."""
        ...

    async def open(
        self, peer: PeerId, protocol: str | Sequence[str], *, timeout_s: float
    ) -> Stream:
        """Open a stream for a protocol, or for the first of several that the peer speaks,
        connecting first if need be. Raises PeerUnreachable, DeadlineExceeded.

        In a closed swarm the answer to a single one is not waited for: a peer that does not speak
        it ends the stream (PeerUnreachable). Several are asked one after the other.
        """
        ...


class PeerEvent(Protocol):
    """A peer came or went (which of it, `connected` tells), or is reached in another way."""

    @property
    def peer(self) -> PeerId:
        """Whose connection it is."""
        ...

    @property
    def is_move(self) -> bool:
        """True if there is a better connection now: streams that are retired should move."""
        ...


class WatchedHost(Host, Protocol):
    """The host, and who comes, goes and moves on it (`node.host`)."""

    def watch(self) -> AsyncIterator[PeerEvent]:
        """Yield events, beginning with those who are here."""
        ...


class Network(Protocol):
    """Request and answer by bytes: all that `dht` and `crdt` see of the network."""

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        """Ask a peer. Raises PeerUnreachable, DeadlineExceeded, RemoteError or BadMessage."""
        ...


@dataclass(frozen=True)
class Method(Generic[Q, R]):
    """One RPC method as both sides know it: `Method("modelsync.prepare", Prepare, Ack)`.

    In a streaming call `request` is the type of every message towards the server and `reply` of
    every message back. `frame_max` bounds one encoded message, either way, in bytes; `at_once`
    the calls of one peer that are answered at a time. A call that `is_repeatable` may run twice
    without harm, so it is made again if the connection breaks before its answer.
    """

    name: str
    request: type[Q]
    reply: type[R]
    frame_max: int = CONTROL_FRAME_MAX
    at_once: int = 256  # as many as are answered of one peer in all
    is_repeatable: bool = False


class Call(Protocol[Out, In]):
    """A both-way streaming call in progress, as one side of it sees it."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    async def send(self, message: Out) -> None:
        """Send one message; waits while the other side is not reading."""
        ...

    async def receive(self) -> In:
        """Return the next message. Raises trio.EndOfChannel at the end, RemoteError on failure."""
        ...

    async def finish(self) -> None:
        """Say that no more messages come from this side. At the server this ends the call."""
        ...

    def __aiter__(self) -> AsyncIterator[In]:
        """Iterate over messages until the end."""
        ...


class Rpc(Protocol):
    """Typed calls to peers, `/shoal/rpc/1`. Raises PeerUnreachable, DeadlineExceeded,
    RemoteError (the server's own error, with its code) or BadMessage (scores the peer).
    """

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, R],
        message: Q,
        *,
        timeout_s: float,
        key: bytes = b"",
    ) -> R:
        """One request, one answer. Cancelling it, or the deadline, cancels the server's task.

        key: names this call, so that it can be made again, and is not done twice, if the
        connection breaks before its answer.
        """
        ...

    def stream(
        self, peer: PeerId, method: Method[Q, R], *, timeout_s: float
    ) -> AbstractAsyncContextManager[Call[Q, R]]:
        """Open a streaming call; `timeout_s` bounds the opening. Leaving the block ends the call:
        normally by finishing our side, on an exception by cancelling the server's task.
        """
        ...

    def serve(self, method: Method[Q, R], handler: Callable[[PeerId, Q], Awaitable[R]]) -> None:
        """Answer a unary method. A ShoalError raised by the handler reaches the caller typed."""
        ...

    def serve_stream(
        self, method: Method[Q, R], handler: Callable[[Call[R, Q]], Awaitable[None]]
    ) -> None:
        """Answer a streaming method; returning from the handler ends the call."""
        ...


class Bulk(Protocol):
    """Large buffers between two peers: `send` here meets `receive_into` there, by a key of up to
    64 bytes that both know. Both end when all is there. They raise DeadlineExceeded, BadMessage,
    PeerUnreachable, RemoteError or another ShoalError; a cancelled one has let go of its buffer.
    """

    async def send(
        self,
        peer: PeerId,
        key: bytes,
        source: tuple[memoryview, ...],
        *,
        ready: Callable[[int], Awaitable[int]] | None = None,
        progress: Callable[[int, int], None] | None = None,
        wait_s: float,
    ) -> int:
        """Send one buffer or two; returns their bytes once they are there.

        The second may depend on what the first brings about.

        ready: given how many bytes, from the front, may go already, it waits for more and returns
        how many; without it all may go. progress: told what has arrived, of how much. wait_s: for
        the peer to call `receive_into`.
        """
        ...

    async def receive_into(
        self,
        peer: PeerId,
        key: bytes,
        buffer: tuple[memoryview, ...],
        *,
        prefix: Callable[[int], None] | None = None,
        step_bytes: int,
        wait_s: float,
    ) -> int:
        """Receive into as many buffers, each of the size of the sender's; returns their size.

        prefix: told, on the event loop, how many bytes from the front are here, whenever it is
        `step_bytes` more, or all of the first buffer, or some time has passed. They stay as they
        are. wait_s: for the peer to call `send`.
        """
        ...


@dataclass(frozen=True)
class Item:
    """One live value of the store, as readers see it. `value` is what the writer put."""

    key: str
    value: object
    author: PeerId
    hlc: int
    expires_ms: int  # wall clock; 0 is never


class Store(Protocol):
    """The replicated store. Values are what MessagePack holds, up to 2 KiB encoded."""

    async def put(
        self, namespace: str, key: str, value: object, *, ttl_s: float | None = None
    ) -> Item:
        """Write; durable when it returns, then spread. `ttl_s` makes it a lease that dies."""
        ...

    async def delete(self, namespace: str, key: str) -> None:
        """Write a tombstone."""
        ...

    def get(self, namespace: str, key: str) -> Item | None:
        """Read from memory; None if absent, deleted or expired."""
        ...

    def scan(self, namespace: str, prefix: str = "") -> list[Item]:
        """Read all live items whose key starts with `prefix`, in key order."""
        ...

    def watch(
        self, namespace: str, prefix: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Yield the keys that changed (written, deleted), from now on. Slow readers get each
        changed key once, not once per change: read the value with `get`.
        """
        ...
