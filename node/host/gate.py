"""How many connections we hold: pure counting. Facts: security, section 3.4, "slowloris"."""

from collections import Counter
from dataclasses import dataclass

from node.host.addresses import is_loopback

CONNECTIONS_MAX = 128  # in all, unless configured; at 60 KB each that is 8 MB
UNADMITTED_MAX = 64  # handshakes in progress: what a flood may take, and leave room for members
UNADMITTED_PER_IP_MAX = 8  # not for loopback, where a test swarm or a proxy lives
PER_IP_MAX = 64  # admitted too: a lab or a household behind one address
PER_PEER_MAX = 4  # both dialled, a relay, and one that is dead but not noticed yet


@dataclass(frozen=True)
class Limits:
    """What one host may hold; the defaults are the constants above."""

    connections: int = CONNECTIONS_MAX
    unadmitted: int = UNADMITTED_MAX
    unadmitted_per_ip: int = UNADMITTED_PER_IP_MAX
    per_ip: int = PER_IP_MAX
    per_peer: int = PER_PEER_MAX


class Place:
    """One connection's place. Leave it exactly when the connection ends."""

    def __init__(self, gate: "Gate", ip: str | None) -> None:
        self._gate = gate
        self._ip = ip  # None: not counted per IP
        self._is_admitted = self._is_left = False

    def admit(self) -> None:
        """The peer proved that it belongs here."""
        if not (self._is_admitted or self._is_left):
            self._is_admitted = True
            self._gate.change_unadmitted(self._ip, -1)

    def leave(self) -> None:
        """The connection is over. Safe to repeat."""
        if not self._is_left:
            self.admit()
            self._is_left = True
            self._gate.change_total(self._ip, -1)


class Gate:
    """Gives places to connections while there are any."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.total = 0
        self.unadmitted = 0
        self._per_ip: Counter[str] = Counter()
        self._unadmitted_per_ip: Counter[str] = Counter()

    def enter(self, ip: str | None) -> Place | None:
        """Take a place for a connection that came in from `ip` (None: that we dial ourselves)."""
        if self.total >= self._limits.connections or self.unadmitted >= self._limits.unadmitted:
            return None
        if ip is None or is_loopback(ip):
            ip = None
        elif (
            self._per_ip[ip] >= self._limits.per_ip
            or self._unadmitted_per_ip[ip] >= self._limits.unadmitted_per_ip
        ):
            return None
        self.change_total(ip, 1)
        self.change_unadmitted(ip, 1)
        return Place(self, ip)

    def change_total(self, ip: str | None, by: int) -> None:
        """Count a connection in or out."""
        self.total += by
        _count(self._per_ip, ip, by)

    def change_unadmitted(self, ip: str | None, by: int) -> None:
        """Count a connection that has proved nothing yet in or out."""
        self.unadmitted += by
        _count(self._unadmitted_per_ip, ip, by)


def _count(counter: Counter[str], ip: str | None, by: int) -> None:
    if ip is not None:
        counter[ip] += by
        if not counter[ip]:
            del counter[ip]  # or every address ever seen stays
