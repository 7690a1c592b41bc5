"""Finding peers and providers: the trio driver over table, lookup and records."""

from collections.abc import Callable
from typing import Protocol

import trio

from dht.table import Contact
from wire.ids import PeerId, Signer
from wire.ports import Clock, Network


class AddressBook(Protocol):
    """What the DHT needs of the host; `node.host.service.LibP2pHost` has these methods."""

    def addresses(self) -> list[str]:
        """Our own dialable multiaddrs."""
        ...

    def addresses_of(self, peer: PeerId) -> list[str]:
        """What we know of a peer's addresses."""
        ...

    def learn(self, peer: PeerId, addrs: list[str], /) -> object:
        """Remember addresses of a peer, so that a request to it can be dialled."""
        ...


class DhtService:
    """`node` wires `rpc.answer("dht", dht.answer)`."""

    def __init__(
        self,
        network: Network,
        addresses: AddressBook,
        signer: Signer,
        clock: Clock,
        *,
        peers: Callable[[], list[PeerId]],
    ) -> None:
        raise NotImplementedError

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the table fresh and our records published until cancelled."""

    async def answer(self, peer: PeerId, message: bytes) -> bytes:
        """Answer one request of a peer."""
        raise NotImplementedError

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: ask it in, if the table has room."""

    async def bootstrap(self) -> int:
        """Look for ourselves through the connected peers; returns how many contacts we know."""
        raise NotImplementedError

    async def find_peer(self, peer: PeerId) -> list[str]:
        """Return a peer's own signed addresses; [] if nobody knows it."""
        raise NotImplementedError

    async def provide(self, key: bytes) -> int:
        """Say that we have `key`, again and again; returns how many peers took the record."""
        raise NotImplementedError

    async def withdraw(self, key: bytes) -> None:
        """Stop saying so; what is out there dies by its expiry."""

    async def providers(self, key: bytes) -> list[PeerId]:
        """Return who says to have `key`."""
        raise NotImplementedError

    def table(self) -> list[Contact]:
        """Return the contacts in the routing table, nearest first."""
        raise NotImplementedError
