"""The building of a lab: boxes, cables, addresses, rules; and the readings of what runs inside.

Every box is a network namespace, every cable a veth pair. Each public host, site and carrier hangs
on the core with a network of its own, 11.K.0.0/24: an address that `ipaddress` calls global, in a
/16 of its own; nothing leads outside. All private networks are 192.168.1.0/24, as in life: the
address of a peer in another home is somebody else's in one's own.
"""

import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.net.lab import rules
from tests.net.lab.delay import DelayLine
from tests.net.lab.namespaces import LabError, Namespace
from tests.net.lab.plan import Host, Line, Router, Site
from tests.net.lab.portmap import PortMapServer
from tests.net.lab.readings import Connection, Counters, connections, counters

NETWORKS_MAX = 250  # 11.1 to 11.250
LAN = "192.168.1"
REAPER = Path(__file__).with_name("reaper.py")
TOOLS = ("ip", "nft", "ss")
# The usual congestion control, not one that hides loss; a slept-over connection is not taken up
# again by a router that restarted; addresses are there at once.
EVERY_BOX: Mapping[str, str | int] = {
    "net.ipv4.tcp_congestion_control": "cubic",
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
}
ROUTER: Mapping[str, str | int] = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.netfilter.nf_conntrack_tcp_loose": 0,
    "net.bridge.bridge-nf-call-iptables": 0,
    "net.bridge.bridge-nf-call-ip6tables": 0,
}


@functools.cache
def missing() -> str | None:
    """Say why no lab can be built here; None if one can."""
    if os.geteuid() != 0:
        return "the NAT lab needs root (network namespaces)"
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"the NAT lab needs `{tool}`; try: apt-get install iproute2 nftables"
    try:
        probe = Namespace("probe")
        try:
            probe.nft("table ip x {\n chain c {\n type nat hook postrouting priority 100\n }\n}\n")
        finally:
            probe.close()
    except (OSError, LabError) as error:
        return f"the NAT lab needs network namespaces and nftables: {error}"
    return None


@dataclass
class Internet:
    """The internet. A context manager; several can exist at once. Raises LabError."""

    plan: Iterable[Site]
    publics: int = 2
    public_ipv6: bool = False
    hosts: dict[str, Host] = field(default_factory=dict[str, Host])
    sites: dict[str, Router] = field(default_factory=dict[str, Router])
    lines: dict[str, Line] = field(default_factory=dict[str, Line])

    def __post_init__(self) -> None:
        self._boxes: list[Namespace] = []
        self._cut: list[tuple[str, str]] = []
        self._delay: DelayLine | None = None
        self._carriers: dict[str, Router] = {}
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(REAPER)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all that runs inside and remove everything."""
        for router in self.sites.values():
            if router.server is not None:
                router.server.close()
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()  # it kills now
        self._reaper.wait(10.0)
        if self._delay is not None:
            self._delay.close()
        for box in self._boxes:
            box.close()
        self._boxes.clear()

    # --- building

    def _box(self, name: str, options: Mapping[str, str | int] = {}) -> Namespace:
        box = Namespace(name)
        self._boxes.append(box)
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(b"%d\n" % box.inode)
        self._reaper.stdin.flush()
        box.sysctl({**EVERY_BOX, **options})
        box.ip("link set lo up")
        return box

    def _build(self) -> None:
        self.core = self._box("core", ROUTER)
        self.core.nft(rules.core([]))
        self.core.ip("route add blackhole default", "route add blackhole ::/0")
        for number in range(1, self.publics + 1):
            name = f"pub{number}"
            box = self._box(name)
            line = self._connect(name, box, "eth0", ipv6=self.public_ipv6)
            ipv6 = line.ipv6 if self.public_ipv6 else None
            self.hosts[name] = Host(name, box, line.ip, ipv6)
        for site in self.plan:
            self.add_site(site)

    def add_site(self, site: Site) -> Router:
        """Build one more site, with its hosts."""
        router = self.sites[site.name] = self._router(site)
        for number in range(1, site.hosts + 1):
            name = f"{site.name}{number}"
            self.hosts[name] = Host(name, self._box(name))
            self._plug(self.hosts[name], router)
        if site.portmap:
            router.server = PortMapServer(router.box, f"{router.lan}.1")
        return router

    def _connect(self, name: str, box: Namespace, device: str, *, ipv6: bool) -> Line:
        """Lay a line from the core to a box, whose end is `device`."""
        number = len(self.lines) + 1
        if number > NETWORKS_MAX:
            raise LabError(f"the lab has room for {NETWORKS_MAX} networks")
        line = self.lines[name] = Line(number, box, device)
        six = ipv6
        self.core.ip(
            f"link add {line.device} type veth peer name {device} netns {box.path}",
            f"address add 11.{number}.0.1/24 dev {line.device}",
            *([f"address add 2a0e:{number:x}::1/64 dev {line.device} nodad"] if six else []),
            f"link set {line.device} up",
        )
        box.ip(
            f"address add {line.ip}/24 dev {device}",
            f"link set {device} up",
            f"route add default via 11.{number}.0.1",
            *([f"address add {line.ipv6}/64 dev {device} nodad"] if six else []),
            *([f"route add ::/0 via 2a0e:{number:x}::1"] if six else []),
        )
        return line

    def _router(self, site: Site) -> Router:
        box = self._box(f"router-{site.name}", ROUTER)
        box.ip("link add lan type bridge mcast_snooping 0")
        behind = self._carrier(site)
        if behind is not None:
            wan_ip, line = self._subscribe(site, box, behind), None
        else:
            line = self._connect(site.name, box, "wan", ipv6=site.ipv6 is not None)
            wan_ip = line.ip
        lan = f"11.{line.number}.1" if line and site.kind in rules.ROUTED else LAN
        cable = f"c{behind.taken}" if behind else ""
        router = Router(site.name, site, box, wan_ip, lan, line, behind, cable)
        self._furnish(router)
        if line is not None:
            self.set_line(site.name, site.delay_ms, site.loss, site.rate_mbit)
        return router

    def _carrier(self, site: Site) -> Router | None:
        """Return the carrier that this site is a customer of, built if need be."""
        if site.kind not in rules.CARRIERS:
            return None
        if site.ipv6 is not None:
            raise LabError("a carrier of this lab carries no IPv6")
        name = site.carrier or f"{site.name}-carrier"
        if name not in self._carriers:
            kind = rules.CARRIERS[site.kind]
            plan = Site(name, kind, 0, None, inbound=site.inbound, forget_s=site.forget_s)
            box = self._box(f"router-{name}", ROUTER)
            box.ip("link add lan type bridge mcast_snooping 0")
            line = self._connect(name, box, "wan", ipv6=False)
            self._carriers[name] = Router(name, plan, box, line.ip, "100.64.0", line)
            self._furnish(self._carriers[name])
            self.set_line(name, site.delay_ms, site.loss, site.rate_mbit)
        return self._carriers[name]

    def _subscribe(self, site: Site, box: Namespace, carrier: Router) -> str:
        carrier.taken += 1
        ip = f"{carrier.lan}.{carrier.taken}"
        carrier.box.ip(
            f"link add c{carrier.taken} type veth peer name wan netns {box.path}",
            f"link set c{carrier.taken} master lan up",
        )
        box.ip(
            f"address add {ip}/24 dev wan",
            "link set wan up",
            f"route add default via {carrier.lan}.1",
        )
        return ip

    def _furnish(self, router: Router) -> None:
        """Give a router its inside and its rules."""
        six = router.lan_ipv6
        router.box.ip(
            f"address add {router.lan}.1/24 dev lan",
            *([f"address add {six}:1/64 dev lan nodad"] if six else []),
            "link set lan up",
        )
        if router.plan.forget_s is not None:
            prefix = "net.netfilter.nf_conntrack_tcp_timeout_"
            router.box.sysctl({f"{prefix}established": router.plan.forget_s})
        self._route_inside(router)
        self._load(router)

    def _route_inside(self, router: Router) -> None:
        """Tell the core the way to a network that has no router's address before it."""
        if router.line is None:
            return
        if router.plan.kind in rules.ROUTED:
            self.core.ip(f"route replace {router.lan}.0/24 via {router.line.ip}")
        if router.lan_ipv6:
            self.core.ip(f"route replace {router.lan_ipv6}:/64 via {router.line.ipv6}")

    def _load(self, router: Router) -> None:
        plan = router.plan
        kind = "portrestricted" if plan.kind in rules.CARRIERS else plan.kind
        text = rules.router(
            kind, inbound=plan.inbound, ipv6=plan.ipv6, preserve_ports=plan.preserve_ports
        )
        router.box.nft(text)

    def _plug(self, host: Host, router: Router) -> None:
        """Plug a host into a site's network: device, addresses, routes."""
        router.taken += 1
        host.site, host.ip = router.name, f"{router.lan}.{router.taken}"
        host.cable = f"h{router.taken}"
        six = router.lan_ipv6
        host.ipv6 = f"{six}:{router.taken:x}" if six else None
        router.box.ip(
            f"link add {host.cable} type veth peer name eth0 netns {host.box.path}",
            f"link set {host.cable} master lan up",
        )
        host.box.ip(
            f"address add {host.ip}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {router.lan}.1",
            *([f"address add {host.ipv6}/64 dev eth0 nodad"] if six else []),
            *([f"route add ::/0 via {six}:1"] if six else []),
        )

    # --- what runs inside, and what is read

    def popen(self, host: str, args: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a process in a host; `options` as of subprocess.Popen."""
        return self.hosts[host].box.popen(args, **options)

    def run(self, host: str, args: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a process in a host to its end; `options` as of subprocess.run."""
        return self.hosts[host].box.run(args, **options)

    def outside_ips(self, host: str) -> set[str]:
        """Return the addresses that others see connections of a host come from."""
        machine = self.hosts[host]
        found = {machine.ipv6} if machine.ipv6 else set[str]()
        if machine.site is None or self.sites[machine.site].plan.kind in rules.ROUTED:
            return {*found, machine.ip}
        router = self.sites[machine.site]
        return {*found, (router.carrier or router).wan_ip}

    def counters(self, host: str, device: str = "eth0") -> Counters:
        """Return the counters of a host's device."""
        return counters(self.hosts[host].box)[device]

    def connections(self, host: str) -> list[Connection]:
        """Return a host's TCP connections, with the bytes that each carried."""
        return connections(self.hosts[host].box)

    def set_line(
        self, name: str, delay_ms: float = 0.0, loss: float = 0.0, rate_mbit: float | None = None
    ) -> None:
        """Set delay (one way), loss (a share, each way) and rate of the line to a site, carrier or
        public host. A line that loses carries single segments: one loss is one packet's."""
        line = self.lines[name]
        if (line.delay_ms, line.loss) != (delay_ms, loss):
            if self._delay is None:
                self._delay = DelayLine(self.core)
            index = self.core.call(lambda: socket.if_nametoindex(line.device))
            self._delay.set(index, delay_ms, loss)
        if loss and not any(other.loss for other in self.lines.values()):
            for other in self.lines.values():
                other.box.ip(f"link set {other.end} gso_max_segs 1")
        if line.rate_mbit != rate_mbit:
            self._set_rate(line, rate_mbit)
        line.delay_ms, line.loss, line.rate_mbit = delay_ms, loss, rate_mbit

    def _set_rate(self, line: Line, rate_mbit: float | None) -> None:
        for box, end in ((self.core, line.device), (line.box, line.end)):
            if rate_mbit is None:
                box.run(["tc", "qdisc", "del", "dev", end, "root"])
                continue
            shape = f"rate {rate_mbit}mbit burst 64kb latency 200ms"
            done = box.run(["tc", "qdisc", "replace", "dev", end, "root", "tbf", *shape.split()])
            if done.returncode:
                raise LabError(f"tc: {done.stderr}")
