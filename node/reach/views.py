"""What `Reach` tells the rest of the daemon and people: plain values, ready for JSON."""

from typing import Literal

import msgspec

from node.reach.offer import Verdict
from wire.ids import PeerId

Origin = Literal["mapped", "observed", "interface", "relay"]
RelayMode = Literal["auto", "on", "off"]


class Announced(msgspec.Struct, frozen=True):
    """One address that others are told, and where we have it from."""

    address: str
    origin: Origin


class PortMapView(msgspec.Struct, frozen=True):
    """One mapping that a router gave us: what is dialled at `address` comes to our port."""

    address: str
    via: str  # "upnp", "nat-pmp" or "pcp"
    gateway: str
    left_s: float  # until it ends, if it is not renewed


class Held(msgspec.Struct, frozen=True):
    """One reservation that we hold."""

    relay: PeerId
    network: str  # that the relay is in: /16 of IPv4, /32 of IPv6
    rtt_ms: float | None  # to the relay; None before it was measured
    left_s: float  # until it ends, if it is not renewed
    addresses: list[str]  # multiaddrs of ours, through the relay


class RelayServing(msgspec.Struct, frozen=True):
    """What we relay for others."""

    is_on: bool
    reservations: int = 0
    circuits: int = 0
    bytes: int = 0  # relayed since the start, both directions


class Punch(msgspec.Struct, frozen=True):
    """Hole punching with one peer, lately."""

    peer: PeerId
    attempts: int
    outcome: str  # in words: "direct after 0.4 s", "no answer at 5 addresses"
    next_s: float | None = None  # to the next attempt; None if none is planned


class ReachView(msgspec.Struct, frozen=True):
    """How this node can be reached, and what is done about it."""

    verdict: Verdict
    evidence: list[str]  # lines for people, the most telling first
    announced: list[Announced]  # in the order of use
    mapping: str = ""  # how the routers in front of us choose ports, in words; "" unknown
    port_maps: list[PortMapView] = msgspec.field(default_factory=list[PortMapView])
    port_maps_tried: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    held: list[Held] = msgspec.field(default_factory=list[Held])
    relay: RelayServing = msgspec.field(default_factory=lambda: RelayServing(is_on=False))
    punches: list[Punch] = msgspec.field(default_factory=list[Punch])
