"""A small internet on one machine that changes while it runs.

with Lab([Site("a", "portrestricted", hosts=2, delay_ms=10), Site("b", "symmetric")]) as lab:
    lab.run("a1", ["ip", "address"])        # hosts: a1 a2 b1, pub1 pub2
    lab.hosts["a1"].ip, lab.sites["a"].wan_ip
    lab.nat_reboot("a"); lab.renumber("b"); lab.move_host("a1", "b"); lab.cut("b")
"""

from collections.abc import Iterable

from tests.net.lab import rules
from tests.net.lab.internet import Internet
from tests.net.lab.internet import missing as missing
from tests.net.lab.namespaces import Namespace
from tests.net.lab.plan import Router
from tests.net.lab.plan import Site as Site


class Lab(Internet):
    """The internet. A context manager; several can exist at once. Raises LabError."""

    def nat_reboot(self, site: str) -> None:
        """A router restarts: it forgets all mappings and connections."""
        router = self._router_of(site)
        self._load(router)
        router.box.forget_connections()
        if router.server is not None:
            router.server.restart()

    def renumber(self, site: str) -> None:
        """A site's provider gives it another address (and another network, where routed)."""
        router = self._router_of(site)
        line = router.line
        if line is None:
            raise ValueError(f"{site} has its address from a carrier: renumber that")
        old_wan, old_lan, old_six = line.ip, router.lan, line.ipv6
        line.last += 1
        router.wan_ip = line.ip
        number = line.number
        orders = [f"address del {old_wan}/24 dev wan", f"address add {line.ip}/24 dev wan"]
        orders.append(f"route replace default via 11.{number}.0.1")
        if router.plan.ipv6:
            orders += [
                f"address add {line.ipv6}/64 dev wan nodad",
                f"address del {old_six}/64 dev wan",
            ]
            orders.append(f"route replace ::/0 via 2a0e:{number:x}::1")
        if router.plan.kind in rules.ROUTED:
            router.lan = f"11.{number}.{line.last}"
            orders.append(f"address del {old_lan}.1/24 dev lan")
            orders.append(f"address add {router.lan}.1/24 dev lan")
            self.core.ip(f"route del {old_lan}.0/24")
        router.box.ip(*orders)
        self._route_inside(router)
        self.nat_reboot(site)
        if router.lan != old_lan:
            for host in self.hosts.values():
                if host.site == site:
                    self.move_host(host.name, site)

    def move_host(self, host: str, site: str) -> None:
        """A host leaves its network and joins a site's (which may be the same: a new lease)."""
        machine = self.hosts[host]
        machine.box.ip("link del eth0")
        self._plug(machine, self.sites[site])

    def cut(self, name: str) -> None:
        """Pull the cable of a host, or of a site's, carrier's or public host's line."""
        box, device = self._cable(name)
        box.ip(f"link set {device} down")

    def mend(self, name: str) -> None:
        """Plug it in again; it carries within 1 s, as a cable does (the kernel polls it)."""
        box, device = self._cable(name)
        box.ip(f"link set {device} up")
        router = self.sites.get(name) or self._carriers.get(name)
        if router is not None:  # the routes went with the device
            self._route_inside(router)

    def kill(self, host: str) -> None:
        """A machine dies without a word: no FIN, no RST."""
        self.cut(host)
        self.hosts[host].box.kill()

    def partition(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Drop silently, both ways, all between these sites or public hosts and those."""
        others = list(others)
        for one in some:
            for other in others:
                a, b = self._line_of(one), self._line_of(other)
                self._cut += [(a, b), (b, a)]
        self.core.nft(rules.core(self._cut))

    def heal(self) -> None:
        """End all partitions."""
        self._cut.clear()
        self.core.nft(rules.core([]))

    def _router_of(self, name: str) -> Router:
        return self.sites[name] if name in self.sites else self._carriers[name]

    def _line_of(self, name: str) -> str:
        router = self.sites.get(name)
        if router is not None and router.carrier is not None:
            name = router.carrier.name
        return self.lines[name].device

    def _cable(self, name: str) -> tuple[Namespace, str]:
        """Return the far end of a cable: the box it is in, and the device."""
        if name in self.lines:
            return self.core, self.lines[name].device
        if name in self.hosts:
            host = self.hosts[name]
            assert host.site is not None
            return self.sites[host.site].box, host.cable
        site = self.sites[name]
        assert site.carrier is not None
        return site.carrier.box, site.cable
