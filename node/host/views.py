"""What the host tells the rest of the daemon about its peers: plain values, no libp2p in them."""

from collections import deque
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


RATE_S = 4.0  # over which rates are taken, at least


class Rates:
    """Bytes a second of one connection, since the last but one note that was RATE_S later."""

    def __init__(self, now: float) -> None:
        self._notes = deque([(now, 0, 0)], maxlen=2)

    def note(self, now: float, total: Traffic) -> None:
        """Remember the totals, if the last ones are old enough."""
        if now >= self._notes[-1][0] + RATE_S:
            self._notes.append((now, total.bytes_in, total.bytes_out))

    def since(self, now: float, total: Traffic) -> tuple[float, float]:
        """Return what came in and what went out, a second."""
        at, bytes_in, bytes_out = self._notes[0]
        for_s = max(RATE_S, now - at)
        return (total.bytes_in - bytes_in) / for_s, (total.bytes_out - bytes_out) / for_s


@dataclass(frozen=True)
class PeerView:
    """One admitted peer, as seen now. Of several connections to it the best one is shown."""

    peer: PeerId
    address: str  # the other end of the connection, as a multiaddr without the peer
    direction: Direction  # "out" if we dialled
    path: Path
    rtt_ms: float | None  # of the last keep-alive ping; None before the first answer
    bytes_in: int  # what crossed the sockets to and from this peer, over all its connections
    bytes_out: int
    since: float  # wall clock, seconds since the Unix epoch
    connections: int
    relay: PeerId | None = None  # whom the path runs through
    is_punched: bool = False  # through a hole of two routers
    bytes_in_s: float = 0.0  # bytes a second, over the last few of them
    bytes_out_s: float = 0.0


@dataclass(frozen=True)
class Pong:
    """An answer to a ping, and how both went."""

    rtt_s: float
    path: Path
    address: str  # the other end of the connection, as a multiaddr without the peer
    relay: PeerId | None = None
    is_punched: bool = False


@dataclass(frozen=True)
class PeerUp:
    """A peer was admitted; it had no other connection before."""

    peer: PeerId

    @property
    def is_move(self) -> bool:
        """No."""
        return False


@dataclass(frozen=True)
class PeerDown:
    """The last connection to a peer is gone."""

    peer: PeerId

    @property
    def is_move(self) -> bool:
        """No."""
        return False


@dataclass(frozen=True)
class PeerMoved:
    """The best connection to a peer runs another way than before: direct, or through a relay."""

    peer: PeerId

    @property
    def is_move(self) -> bool:
        """Yes: streams of a retired connection should go on with one of the best."""
        return True


PeerEvent = PeerUp | PeerDown | PeerMoved


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
