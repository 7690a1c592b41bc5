"""What the parts of one node share: who it is, whom it knows, what it holds, what it counts."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from dht.holding import Holding
from dht.key import Key, key_of_peer
from dht.messages import Contact, Moment, Provision
from dht.operation import Operation
from dht.size import NetworkSize
from dht.table import Table
from wire.ids import PeerId

REASONS_MAX = 64  # different refusals that are counted apart: ours are some 20 fixed texts


class Author(Protocol):
    """Who we are, and what we sign; the simulator has one without cryptography."""

    @property
    def peer(self) -> PeerId:
        """Our ID."""
        ...

    def contact(self, wall_ms: int) -> Contact:
        """Our own record, fresh: asked with every message, so it must be at hand."""
        ...

    def provision(self, name: bytes, wall_ms: int) -> Provision:
        """Our provider record of a name, as long-lived as may be."""
        ...


def _counts() -> dict[str, int]:
    return {}


@dataclass(slots=True)
class NodeStats:
    """Counters since the beginning, for metrics."""

    requests: dict[str, int] = field(default_factory=_counts)  # of others, by kind
    refusals: dict[str, int] = field(default_factory=_counts)  # of requests and records, by reason
    asked: int = 0  # requests that we sent, all of them
    checks: int = 0  # of these: whether newcomers and doubted entries are there
    upkeep: int = 0  # of these: refreshing, publishing again, handing over
    answers: int = 0
    timeouts: int = 0
    failures: int = 0  # unanswered for other reasons
    lookups: int = 0  # of people, stores too, that have ended
    hops: int = 0  # of these: answers in a row that led to the nearest who answered
    seconds: float = 0.0  # of these: from beginning to end

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        if reason not in self.refusals and len(self.refusals) >= REASONS_MAX:
            reason = "other"
        self.refusals[reason] = self.refusals.get(reason, 0) + 1


@dataclass(slots=True)
class State:
    """One node. `rng` is the only source of chance."""

    author: Author
    rng: random.Random
    key: Key
    table: Table
    size: NetworkSize
    holding: Holding
    stats: NodeStats
    is_server: bool
    is_public: bool


def new_state(author: Author, rng: random.Random, *, is_server: bool, is_public: bool) -> State:
    """Return the state of a node that knows nobody."""
    key = key_of_peer(author.peer)
    return State(
        author=author,
        rng=rng,
        key=key,
        table=Table(key),
        size=NetworkSize(),
        holding=new_holding(rng),
        stats=NodeStats(),
        is_server=is_server,
        is_public=is_public,
    )


def new_holding(rng: random.Random) -> Holding:
    """Return an empty one, with a secret that nobody knows."""
    return Holding(rng.randbytes(16))


class Chore(NamedTuple):
    """An operation that a node runs for itself, and what to do with its result."""

    operation: Operation
    then: Callable[[Any, Moment], None]
