"""The DHT as a service: drives `dht.node.Node` over a `Transport`, on trio.

One machine, no lock: everything that touches it is synchronous. Requests fly as tasks of one
nursery; whoever waits for an operation and is cancelled ends it.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from dht.messages import Answer, Contact, Request, Stored, Trace, Value
from dht.ports import Book, Transport
from wire.ids import PeerId, Signer
from wire.ports import Clock, OffLoop


@dataclass(frozen=True)
class TableRow:
    """One contact of the table, for people. bucket: leading bits in common with us."""

    peer: PeerId
    bucket: int
    addrs: tuple[str, ...]
    address: str  # at which it answered
    seen_s: float  # ago
    useful_s: float | None  # ago; None: not yet
    failures: int


@dataclass(frozen=True)
class TableView:
    """What `shoal dht table` shows: nearest first."""

    peer: PeerId
    is_server: bool
    size: float  # of the network, estimated
    rows: tuple[TableRow, ...]
    provisions: int  # records that we hold for others, and our own
    values: int
    provided: int  # names that we provide
    published: int  # values of our own that we republish


class DhtService:
    """`node.finding` wires it to the host. Every call raises ShoalError at worst."""

    def __init__(
        self,
        transport: Transport,
        book: Book,
        signer: Signer,
        clock: Clock,
        *,
        peers: Callable[[], list[PeerId]],
        rng: random.Random | None = None,
        is_public: bool = False,
        snapshot: Path | None = None,
        off_loop: OffLoop | None = None,
    ) -> None:
        """`peers` lists who is connected now: where lookups start while the table is empty.

        is_public: other implementations take part, so unsigned records are taken as they mean them.
        snapshot: where table and own values are kept; None: nowhere. off_loop: for simulators.
        """
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the snapshot, then drive the machine until cancelled."""

    # --- what the transport and the host tell ----------------------------------------------------

    def answer(self, peer: PeerId, sender: Contact | None, request: Request) -> Answer:
        """Answer a peer's request. Never raises."""
        raise NotImplementedError

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: it is asked in, if the table wants it."""

    @property
    def is_server(self) -> bool:
        """Whether we answer others, and are in their tables."""
        raise NotImplementedError

    def set_mode(self, *, is_server: bool) -> None:
        """Become a server, or a client, which hands over what it holds."""

    # --- looking -----------------------------------------------------------------------------------

    async def bootstrap(self) -> int:
        """Look for ourselves, from who is connected and in the table; how many contacts we know."""
        raise NotImplementedError

    async def closest(
        self, name: bytes, *, paths: int = 1, trace: Trace | None = None
    ) -> list[Contact]:
        """Return the live servers nearest to a name (any bytes), nearest first."""
        raise NotImplementedError

    async def find_peer(self, peer: PeerId, *, trace: Trace | None = None) -> list[str]:
        """Return a peer's addresses, its newest word; [] if nobody knows it."""
        raise NotImplementedError

    async def providers(
        self, name: bytes, *, paths: int = 1, trace: Trace | None = None
    ) -> list[PeerId]:
        """Return who says to have what this names, as far as the servers nearest to it know."""
        raise NotImplementedError

    async def get(
        self, name: bytes, *, paths: int = 1, trace: Trace | None = None
    ) -> tuple[Value, ...]:
        """Return the newest value of a name, or of each author under `/shoal/multi`; () if none."""
        raise NotImplementedError

    # --- storing -----------------------------------------------------------------------------------

    async def provide(self, name: bytes, *, trace: Trace | None = None) -> int:
        """Say that we have `name`, now and again until `withdraw`; how many servers keep it.

        Raises UsageError if we provide too many already.
        """
        raise NotImplementedError

    async def provide_many(self, names: Iterable[bytes]) -> int:
        """Say that we have these, by regions of keys; how many records servers keep of it.

        Raises UsageError if we would provide too many.
        """
        raise NotImplementedError

    def withdraw(self, name: bytes) -> None:
        """Stop saying that we have `name`; what is out there dies within a day."""

    async def put(self, value: Value, *, trace: Trace | None = None) -> Stored:
        """Store a value once; how many servers keep it, and why one did not."""
        raise NotImplementedError

    async def put_head(self, name: str, data: bytes, *, trace: Trace | None = None) -> Stored:
        """Sign and store `/shoal/head/US/NAME`, and store it again at half-life until `forget`."""
        raise NotImplementedError

    async def put_multi(self, name: str, data: bytes, *, trace: Trace | None = None) -> Stored:
        """Sign and store our value of `/shoal/multi/NAME`, and again until `forget`."""
        raise NotImplementedError

    def forget(self, name: bytes) -> None:
        """Stop republishing our value of this (whole) name."""

    async def leave(self) -> None:
        """Hand over what we hold (1 s at most), and save the snapshot."""

    # --- for people ----------------------------------------------------------------------------------

    def view(self) -> TableView:
        """What we know of the network."""
        raise NotImplementedError
