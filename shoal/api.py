"""What the daemon's core routes answer: the JSON of every `--json`. Fields stay stable.

Fields may be added; none is renamed or changes its meaning within /v1.
"""

from dataclasses import dataclass

import msgspec


class _Reply(msgspec.Struct, frozen=True):
    """Common options of replies: immutable; unknown fields of newer daemons are ignored."""


class Status(_Reply, frozen=True):
    """The daemon at a glance. `state`: starting, joining, ready, draining or stopped.
    `clock_skew_ms`: how far its clock is ahead of its peers', as far as it knows.
    """

    state: str
    peer: str
    name: str
    swarm: str
    version: str
    pid: int
    uptime_s: float
    home: str
    addresses: list[str]
    peers: int
    members: int
    runs: list[str]
    models: list[str]
    clock_skew_ms: int = 0  # `shoal down` after an upgrade asks a daemon that does not say


class Identity(_Reply, frozen=True):
    """Who this node is and where it can be reached."""

    peer: str
    name: str
    addresses: list[str]


class Peer(_Reply, frozen=True):
    """One connected peer. `rtt_ms` is null until it was measured; `since_s` is the age.

    `path` is "direct", "punched" (direct, through a hole in two routers) or "relayed", through
    `relay` (its name, or its ID). `in_s` and `out_s` are bytes a second, over the last seconds.
    """

    peer: str
    name: str
    address: str
    direction: str
    path: str
    rtt_ms: float | None
    bytes_in: int
    bytes_out: int
    since_s: float
    relay: str = ""
    in_s: float = 0.0
    out_s: float = 0.0


class PingRequest(_Reply, frozen=True):
    """Ping a peer `count` times, a second apart; `until_direct`: no more once one went directly."""

    peer: str
    count: int = 4
    interval_s: float = 1.0
    timeout_s: float = 5.0
    until_direct: bool = False


class Pong(_Reply, frozen=True):
    """One answer to a ping; `rtt_ms` is null when it was lost, with the reason in `error`.

    `path`: how it went, as in `Peer`; `relay` and `address`: through whom, and where to.
    """

    peer: str
    sequence: int
    rtt_ms: float | None
    path: str
    error: str = ""
    relay: str = ""
    address: str = ""


class Ticket(_Reply, frozen=True):
    """What `shoal up --join` takes. It holds the swarm's key: give it to members only."""

    ticket: str


class Member(_Reply, frozen=True):
    """One member of the swarm. `alive`: connected to us, or heard of within 30 s."""

    peer: str
    name: str
    addresses: list[str]
    version: str
    started_ms: int
    alive: bool
    connected: bool
    me: bool


class LogLine(_Reply, frozen=True):
    """One line of the daemon's log. `number` counts from the daemon's start."""

    number: int
    level: str
    line: str


class StateChange(_Reply, frozen=True):
    """An event of the daemon's life: its new state and the wall clock."""

    state: str
    at_ms: int


class PeerChange(_Reply, frozen=True):
    """An event: a peer was connected or lost."""

    peer: str
    connected: bool
    at_ms: int


class Setting(_Reply, frozen=True):
    """One option: its value and where it came from (default, file, environment or flag)."""

    key: str
    value: object
    origin: str


class Health(_Reply, frozen=True):
    """The daemon does its work. While it starts or drains, asking is an error ("unhealthy")."""

    state: str
    loop_lag_ms: float


class Waited(_Reply, frozen=True):
    """The answer of `wait`: what was there when the condition held."""

    peers: int
    waited_s: float


class DashboardAt(_Reply, frozen=True):
    """Where the dashboard is. The address holds a key that may look, and do nothing else."""

    url: str


@dataclass(frozen=True)
class Event:
    """One server-sent event as it arrived; `name` is "" if it has none."""

    name: str
    data: bytes
