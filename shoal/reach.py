"""How this node is reached: the JSON of `shoal netcheck --json`, `shoal doctor --json` and of
`/v1/netcheck`. Fields may be added; none is renamed or changes its meaning within /v1.
"""

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """One finding. `fix` says what to do about it; empty if nothing is wrong."""

    name: str
    level: Level
    text: str
    fix: str = ""


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
    host: str
    rtt_ms: float | None
    left_s: float


class RelayService(msgspec.Struct, frozen=True):
    """What this node relays for others now, and has relayed since its start."""

    is_on: bool
    reservations: int
    circuits: int
    relayed_bytes: int
    refused: int


class Path(msgspec.Struct, frozen=True):
    """How the connection to one peer runs: direct, punched, or relayed through `via`."""

    peer: str
    name: str
    path: str
    rtt_ms: float | None
    via: str = ""


class Punch(msgspec.Struct, frozen=True):
    """The last round of hole punching with one peer. `outcome`: direct, failed or trying; it began
    `age_s` ago and took `took_s`.
    """

    peer: str
    name: str
    outcome: str
    tries: int
    took_s: float
    age_s: float


class NetCheck(msgspec.Struct, frozen=True):
    """Everything. `reachability` and, by address family, `ip4` and `ip6`: unknown, public, mapped,
    punchable or relayed. `mapping`: how the router chooses ports: none, endpoint-independent,
    address-dependent, sequential or random, "" if not known. `outside`: connected peers that are
    outside of this network, who see what a router does.
    """

    reachability: str
    ip4: str
    ip6: str
    mapping: str
    outside: int
    addresses: list[str]  # that the daemon listens on
    announced: list[Announced]
    evidence: list[str]
    port_mappings: list[PortMapping]
    port_mapping_tried: dict[str, str]
    relays: list[HeldRelay]
    relay_service: RelayService
    paths: list[Path]
    punches: list[Punch]
    clock_skew_ms: int
    checks: list[Check]


class Doctor(msgspec.Struct, frozen=True):
    """What `shoal doctor --json` prints. `state`: the daemon's, "" if none answers; `checks` has
    those of `net` too, which is null without a daemon.
    """

    state: str
    checks: list[Check]
    net: NetCheck | None = None
