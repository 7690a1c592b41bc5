"""The parts of a running node, as the control routes see them, and the node's life.

`daemon.py` builds the real parts; the small protocols here say what of them is used, so that a
test can put a fake in a part's place.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog
import trio

from node.broadcast import Broadcast
from node.config import Loaded
from node.control.api import Event
from node.home import Home
from node.host.views import Counters, PeerView, Pong
from node.logs import LogBook
from node.membership import Member
from node.reach.views import ReachView
from node.tickets import Ticket
from shoal.api import StateChange
from wire.ids import PeerId, Signer

State = Literal["starting", "joining", "ready", "draining", "stopped"]

_log = structlog.get_logger("node")


@dataclass(frozen=True)
class Start:
    """What a daemon is started with: all of it read and checked before."""

    home: Home
    loaded: Loaded
    swarm: Ticket
    signer: Signer
    seed: bytes
    name: str
    logs: LogBook


class HostView(Protocol):
    """What the core routes need of the libp2p host."""

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    def addresses(self) -> list[str]:
        """Where we listen, on each interface; others may know us at more."""
        ...

    def connected(self) -> list[PeerId]:
        """Peers that we hold a connection to now."""
        ...

    def peers(self) -> list[PeerView]:
        """The connected peers."""
        ...

    def counters(self) -> Counters:
        """Totals since the start."""
        ...

    async def probe(self, peer: PeerId, *, timeout_s: float) -> Pong:
        """Ping it; the answer says which way both went."""
        ...


class MemberView(Protocol):
    """What the core routes need of the membership."""

    def members(self) -> list[Member]:
        """Every member we know of."""
        ...

    def resolve(self, name: str, /) -> PeerId:
        """Find a member by name, peer ID or prefix. Raises UsageError, NotFound."""
        ...


class Life:
    """Which state the daemon is in, who asked it to stop, and everything that happens to it."""

    def __init__(self) -> None:
        self.state: State = "starting"
        self.started = time.monotonic()
        self.events = Broadcast[Event]()  # any area may send its own events here
        self._stop = trio.Event()

    def enter(self, state: State) -> None:
        """Go to the next state and tell everybody who reads `/v1/events`."""
        self.state = state
        _log.info("state", state=state, uptime_s=round(self.uptime_s, 3))
        self.events.send(Event(StateChange(state, now_ms()), name="state"))

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def stop(self) -> None:
        """Ask the daemon to drain and end."""
        self._stop.set()

    async def stopping(self) -> None:
        """Wait until somebody asked it to stop."""
        await self._stop.wait()


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def _none() -> list[str]:
    return []


def _no_lag() -> float:
    return 0.0


def _unknown() -> ReachView:
    return ReachView("unknown", [], [])


@dataclass
class Node:
    """Everything the control routes may ask."""

    home: Home
    loaded: Loaded
    swarm: Ticket
    name: str
    version: str
    logs: LogBook
    life: Life
    host: HostView
    membership: MemberView
    addresses: Callable[[], list[str]]  # where others can reach us, the most useful first
    run_names: Callable[[], list[str]] = field(default=_none)
    model_names: Callable[[], list[str]] = field(default=_none)
    loop_lag_ms: Callable[[], float] = field(default=_no_lag)
    clock_skew_ms: Callable[[], int] = field(default=lambda: 0)
    traffic: Callable[[], tuple[int, int]] = field(default=lambda: (0, 0))  # bytes in and out
    reach: Callable[[], ReachView] = field(default=_unknown)
