"""What `Reach` tells the rest of the daemon and people: plain values, ready for JSON."""

from typing import Literal

import msgspec

from node.reach.family import State
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
    host: str  # the IP address of the relay
    rtt_ms: float | None  # to the relay; None before it was measured
    left_s: float  # until it ends, if it is not renewed
    addresses: list[str]  # multiaddrs of ours, through the relay


class RelayServing(msgspec.Struct, frozen=True):
    """What we relay for others."""

    is_on: bool
    reservations: int = 0
    circuits: int = 0
    bytes: int = 0  # relayed since the start, both directions
    refused: int = 0  # requests over a limit, since the start


class Punch(msgspec.Struct, frozen=True):
    """The last round of hole punching with one peer."""

    peer: PeerId
    outcome: Literal["direct", "failed", "trying"]
    tries: int
    took_s: float
    age_s: float  # since it began


class ReachView(msgspec.Struct, frozen=True):
    """How this node can be reached, and what is done about it."""

    verdict: State
    evidence: list[str]  # how we know, in sentences, IPv4 first
    announced: list[Announced]  # in the order of use
    mapping: str = ""  # how the routers in front of us choose ports, in words; "" unknown
    port_maps: list[PortMapView] = msgspec.field(default_factory=list[PortMapView])
    port_maps_tried: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    held: list[Held] = msgspec.field(default_factory=list[Held])
    relay: RelayServing = msgspec.field(default_factory=lambda: RelayServing(is_on=False))
    punches: list[Punch] = msgspec.field(default_factory=list[Punch])
    ip4: State = "unknown"  # the verdict over IPv4 alone
    ip6: State = "unknown"  # and over IPv6
    behaviour: str = ""  # the mapping's name (node.reach.behaviour.Mapping); "" unknown
    outside: int = 0  # connected peers outside of our network, who can be asked
    punched: dict[str, int] = msgspec.field(default_factory=dict[str, int])  # outcome -> how often
    dial_backs: dict[str, int] = msgspec.field(default_factory=dict[str, int])  # asked, served
