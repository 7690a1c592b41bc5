"""What the host tells the rest of the daemon about its peers: plain values, no libp2p in them."""

from dataclasses import dataclass
from typing import Literal

from wire.ids import PeerId

Direction = Literal["in", "out"]
Path = Literal["direct", "relayed"]


class Traffic:
    """Bytes that crossed sockets, in and out. One per connection, one for the whole host."""

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0


@dataclass(frozen=True)
class PeerView:
    """One admitted peer, as seen now. Several connections to it are shown as the newest one."""

    peer: PeerId
    address: str  # the other end of the connection, as a multiaddr without /p2p
    direction: Direction  # "out" if we dialled
    path: Path
    rtt_ms: float | None  # of the last keep-alive ping; None before the first answer
    bytes_in: int  # what crossed the sockets to and from this peer, over all its connections
    bytes_out: int
    since: float  # wall clock, seconds since the Unix epoch
    connections: int


@dataclass(frozen=True)
class PeerUp:
    """A peer was admitted; it had no other connection before."""

    peer: PeerId


@dataclass(frozen=True)
class PeerDown:
    """The last connection to a peer is gone."""

    peer: PeerId


PeerEvent = PeerUp | PeerDown


@dataclass(frozen=True)
class Counters:
    """Totals since start. Bytes are what really crosses the sockets, handshakes included."""

    bytes_in: int
    bytes_out: int
    connections: int  # open now, admitted or not
    accepted: int  # inbound TCP connections taken
    refused: int  # inbound TCP connections over a limit
    failed_handshakes: int  # inbound: garbage, time-outs, wrong protocol
    failed_admissions: int  # either direction: no or another swarm key
    server_errors: int  # exceptions that a stream server raised and the fence caught
