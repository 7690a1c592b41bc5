"""How this node is reached: the JSON of `shoal netcheck --json` and of `/v1/netcheck`."""

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """One finding. `fix` says what to do about it; empty if nothing is wrong."""

    name: str
    level: Level
    text: str
    fix: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """What a peer outside said of one of our addresses, `age_s` ago."""

    address: str
    by: str
    reached: bool
    age_s: float


class Announced(msgspec.Struct, frozen=True):
    """An address that the swarm is told, and where it comes from: interface, observed, mapped or
    relay.
    """

    address: str
    origin: str


class PortMapping(msgspec.Struct, frozen=True):
    """A port that the router forwards to us; `via` is pcp, nat-pmp or upnp."""

    address: str
    via: str
    gateway: str
    left_s: float


class HeldRelay(msgspec.Struct, frozen=True):
    """A relay that takes connections for us. `rtt_ms` is null until it was measured."""

    peer: str
    name: str
    address: str
    rtt_ms: float | None
    left_s: float


class RelayService(msgspec.Struct, frozen=True):
    """What this node relays for others now, and has relayed since its start."""

    reservations: int
    circuits: int
    relayed_bytes: int
    refused: int


class Punch(msgspec.Struct, frozen=True):
    """The last attempt at a direct connection to a peer. `outcome`: direct, failed or trying."""

    peer: str
    name: str
    outcome: str
    tries: int
    took_s: float
    age_s: float


class NetCheck(msgspec.Struct, frozen=True):
    """Everything. `reachability`: unknown, public, mapped, punchable or relayed. `mapping`: how the
    router chooses ports: unknown, none, endpoint-independent, address-dependent, sequential or
    random.
    """

    reachability: str
    mapping: str
    interfaces: list[str]
    observed: list[str]
    announced: list[Announced]
    evidence: list[Evidence]
    port_mapping: PortMapping | None
    port_mapping_tried: dict[str, str]
    relays: list[HeldRelay]
    serving: RelayService | None
    punches: list[Punch]
    paths: dict[str, int]  # connected peers by path: direct, punched, relayed
    clock_skew_ms: int
    checks: list[Check]
