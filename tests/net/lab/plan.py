"""What a lab is made of: sites as they are wished for, and the boxes that were built from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tests.net.lab.namespaces import Namespace
from tests.net.lab.portmap import PortMapServer
from tests.net.lab.rules import Inbound, IPv6, Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """Some hosts behind one router. Delay is one way, on the line between router and core.

    carrier: sites of one name share that carrier (cgnat and cgnat-sym; default: their own).
    inbound: what a packet meets that nobody asked for. forget_s: when idle TCP is forgotten.
    preserve_ports: whether an endpoint-independent router keeps a port's number where it can.
    portmap: run a UPnP-IGD, NAT-PMP and PCP server in the router (needs miniupnpd).
    """

    name: str
    kind: Kind = "portrestricted"
    hosts: int = 1
    carrier: str | None = None
    delay_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float | None = None
    ipv6: IPv6 | None = None
    inbound: Inbound = "drop"
    forget_s: int | None = None
    preserve_ports: bool = True
    portmap: bool = False


@dataclass
class Line:
    """A network at the core: number K, the box that has 11.K.0.LAST, the settings of the line."""

    number: int
    box: Namespace
    end: str  # the box's device
    delay_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float | None = None
    last: int = 2

    @property
    def device(self) -> str:
        """The core's end."""
        return f"k{self.number}"

    @property
    def ip(self) -> str:
        """The box's address."""
        return f"11.{self.number}.0.{self.last}"

    @property
    def ipv6(self) -> str:
        """The box's address."""
        return f"2a0e:{self.number:x}::{self.last}"


@dataclass
class Router:
    """A site's or a carrier's router."""

    name: str
    plan: Site
    box: Namespace
    wan_ip: str
    lan: str  # the first three numbers of the network inside
    line: Line | None  # None: behind a carrier
    carrier: "Router | None" = None
    cable: str = ""  # behind a carrier: the device at the other end of its wan
    taken: int = 9  # last number given to a host inside
    server: PortMapServer | None = None

    @property
    def lan_ipv6(self) -> str | None:
        """The first half of the network inside, if it has IPv6."""
        return f"2a0e:{self.line.number:x}:0:1:" if self.plan.ipv6 and self.line else None


@dataclass
class Host:
    """A machine. `site` is None for a public one."""

    name: str
    box: Namespace
    ip: str = ""
    ipv6: str | None = None
    site: str | None = None
    cable: str = ""  # the device at the other end of its eth0

    def call(self, work: Callable[[], T]) -> T:
        """Do it inside; see Namespace.call."""
        return self.box.call(work)
