"""The DHT's machine: serves requests, runs operations, admits newcomers, keeps itself fresh.

Sans-IO: no clock, no chance but the `rng` that is passed in. After every call that takes a moment the
driver drains `effects()`, and calls `tick` at `wake_at`.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dht.messages import Answer, Contact, Effect, Moment, Provision, Request, Trace, Value
from dht.operation import Operation
from wire.ids import PeerId


class Author(Protocol):
    """Who we are, and what we sign; the simulator has one without cryptography."""

    peer: PeerId

    def contact(self, wall_ms: int) -> Contact:
        """Our own record, fresh: asked with every message."""
        ...

    def provision(self, name: bytes, wall_ms: int) -> Provision:
        """Our provider record of a name, living as long as may be."""
        ...


Then = Callable[[Any, Moment], None]  # what to do with the result of an operation that is done


class Node:
    """One member of the DHT."""

    def __init__(
        self, author: Author, rng: random.Random, *, is_server: bool = True, is_public: bool = False
    ) -> None: ...

    # --- events ----------------------------------------------------------------------------------

    def received(self, peer: PeerId, sender: Contact | None, request: Request, moment: Moment) -> Answer:
        """Answer a request. Never raises. Over the limit, or as a client: Stored(0, why)."""

    def answered(
        self, number: int, answer: Answer, sender: Contact | None, address: str | None, moment: Moment
    ) -> None:
        """An Ask was answered; `sender` and `address` as in `dht.ports.Reply`."""

    def failed(self, number: int, why: str, moment: Moment) -> None:
        """An Ask was not answered: "timeout", "unreachable", or what the peer says."""

    def peer_up(self, contact: Contact, moment: Moment) -> None:
        """A connection to a peer is there: it is asked in, if the table wants it."""

    def tick(self, moment: Moment) -> None:
        """The time of `wake_at` has come."""

    @property
    def wake_at(self) -> float:
        """When the next `tick` is due (Moment.s); infinity if never."""

    def effects(self) -> list[Effect]:
        """What has to be done now, in order; each is returned once."""

    # --- operations ------------------------------------------------------------------------------

    def start(self, operation: Operation, moment: Moment) -> int:
        """Run an operation; returns its number. When it has ended comes Done(number)."""

    def end(self, number: int) -> Operation | None:
        """Take an operation out: one that has ended, with its result, or one that is given up."""

    def find_closest(self, name: bytes, moment: Moment, *, paths: int = 1, trace: Trace | None = None) -> int: ...
    def find_peer(self, peer: PeerId, moment: Moment, *, trace: Trace | None = None) -> int: ...
    def providers(self, name: bytes, moment: Moment, *, paths: int = 1, trace: Trace | None = None) -> int: ...
    def get(self, name: bytes, moment: Moment, *, paths: int = 1, trace: Trace | None = None) -> int: ...
    def put(self, value: Value, moment: Moment, *, trace: Trace | None = None) -> int: ...

    def provide(self, name: bytes, moment: Moment, *, trace: Trace | None = None) -> int:
        """Say that we have it, and again at half-life until `withdraw`."""

    def provide_many(self, names: Iterable[bytes], moment: Moment) -> int: ...
    def withdraw(self, name: bytes) -> None: ...

    def bootstrap(self, seeds: Iterable[Contact], moment: Moment) -> int:
        """Look for ourselves from these and our table; then fill far buckets that lack entries."""

    def leave(self, moment: Moment) -> int:
        """Hand over what we hold, within 1 s; the node answers nothing any more."""

    # --- what it is --------------------------------------------------------------------------------

    def sender(self, moment: Moment) -> Contact | None:
        """What goes along with every message: our own record, as a server; None as a client."""

    def set_mode(self, *, is_server: bool, moment: Moment) -> None:
        """Become a server, or a client: that one hands over what it holds."""

    def snapshot(self) -> tuple[Contact, ...]:
        """The table's contacts, nearest first: `bootstrap` with them after a restart."""
