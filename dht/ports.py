"""What the DHT needs of the world: somebody who carries requests, and what we know of addresses.

`node/kad.py` carries them over the host's streams; tests carry them in memory.
"""

from dataclasses import dataclass
from typing import Protocol

from dht.messages import Answer, Contact, Request
from wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what came with it.

    sender: the peer's own signed record, checked to be its own; None from clients.
    address: a multiaddr that the peer claims and at which it answered: we dialled it there, or it
    is private or loopback and the peer made the connection. None: not known to be reachable there.
    """

    answer: Answer
    sender: Contact | None = None
    address: str | None = None


class Transport(Protocol):
    """Carries one request to a peer, and its answer back."""

    async def ask(
        self,
        contact: Contact,
        request: Request,
        sender: Contact | None,
        *,
        timeout_s: float,
        is_check: bool,
    ) -> Reply:
        """Ask a peer, dialling it at the contact's addresses (or others that are known) if needed.

        sender: our own record; None while we are a client. timeout_s: for all of it, dialling too.
        is_check: what counts is that it answers at an address that it claims; dialled there if the
        connection that is there was made by the peer.
        Raises DeadlineExceeded, PeerUnreachable, BadMessage, or another ShoalError; nothing else.
        """
        ...


class Book(Protocol):
    """Addresses; `node.reach.service.Reach` has these methods."""

    def addresses(self) -> list[str]:
        """Our own dialable multiaddrs, each with our peer ID or without."""
        ...

    def addresses_of(self, peer: PeerId, /) -> list[str]:
        """What we know of a peer's addresses."""
        ...

    def hear(self, peer: PeerId, addrs: list[str], /) -> object:
        """Remember where others say that a peer is, behind what is known."""
        ...
