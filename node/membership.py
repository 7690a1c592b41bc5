"""Who is in the swarm: each member's lease in the store, and connections to the others."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from wire.ids import PeerId
from wire.ports import Clock, Store


@dataclass(frozen=True)
class MemberInfo:
    """What a node says about itself."""

    name: str
    addrs: list[str]
    version: str
    started_ms: int
    offers: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Member:
    """One member of the swarm, as we see it. `alive`: connected to us, or its lease is live."""

    peer: PeerId
    name: str
    addrs: list[str]
    version: str
    offers: dict[str, object]
    started_ms: int
    alive: bool
    connected: bool


class Connector(Protocol):
    """What membership needs of the host."""

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    def connected(self) -> list[PeerId]:
        """Peers that we hold a connection to now."""
        ...

    def learn(self, peer: PeerId, addrs: list[str], /) -> object:
        """Remember addresses of a peer."""
        ...

    def keep(self, peer: PeerId, addrs: list[str], /) -> object:
        """Stay connected to a peer, reconnecting with back-off."""
        ...


class Finder(Protocol):
    """What membership needs of the DHT."""

    async def find_peer(self, peer: PeerId) -> list[str]:
        """Return a peer's addresses."""
        ...


class Membership:
    """Keeps our own lease alive and connections to the others."""

    def __init__(
        self,
        store: Store,
        host: Connector,
        info: Callable[[], MemberInfo],
        clock: Clock,
        *,
        finder: Finder | None = None,
    ) -> None:
        raise NotImplementedError

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Write and renew our lease; follow the others'. `started` once the lease is durable."""

    async def leave(self, *, timeout_s: float = 2.0) -> None:
        """Withdraw our lease on a clean shutdown (while store and host still run)."""

    async def refresh(self) -> None:
        """Write our lease again now: what we offer has changed."""

    def members(self) -> list[Member]:
        """Return every member with a live lease or connection, ourselves first, then by name."""
        raise NotImplementedError

    def resolve(self, name: str) -> PeerId:
        """Find a member by name, peer ID or unique prefix of it. Raises UsageError, NotFound."""
        raise NotImplementedError
