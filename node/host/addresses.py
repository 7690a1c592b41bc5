"""Multiaddrs of the kind we dial and listen on, as strings, and what they mean.

A small parser of our own (`/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/PEER]`, and relay addresses
`…/p2p/RELAY/p2p-circuit[/p2p/PEER]`), so that tickets and the CLI need not import libp2p, which
costs 0.9 s. Source: multiformats/multiaddr, protocols table; libp2p/specs, relay/circuit-v2.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass, replace

from wire.errors import BadMessage
from wire.ids import PeerId, public_key_of

ADDRESS_MAX = 256  # characters; the longest DNS name (253) would still be refused with its parts
_PORT_MAX = 65535
_PORT = re.compile(r"[0-9]{1,5}")
_DNS_NAME = re.compile(r"(?=.{1,190}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Address:
    """One dialable place: `network` is ip4, ip6, dns, dns4 or dns6; `peer` is None if not named.

    With a `relay`, host and port are the relay's.
    """

    network: str
    host: str
    port: int
    peer: PeerId | None = None
    relay: PeerId | None = None

    def __str__(self) -> str:
        place = f"/{self.network}/{self.host}/tcp/{self.port}"
        if self.relay:
            place += f"/p2p/{self.relay}/p2p-circuit"
        return f"{place}/p2p/{self.peer}" if self.peer else place

    @property
    def is_unspecified(self) -> bool:
        """True for 0.0.0.0 and ::, which can be listened on but not dialled."""
        return self.network.startswith("ip") and ipaddress.ip_address(self.host).is_unspecified

    @property
    def family(self) -> socket.AddressFamily:
        """The socket family to resolve the host in."""
        if self.network in ("ip4", "dns4"):
            return socket.AF_INET
        return socket.AF_INET6 if self.network in ("ip6", "dns6") else socket.AF_UNSPEC

    def with_peer(self, peer: PeerId) -> "Address":
        """Return the same place with the peer named."""
        return replace(self, peer=peer)


def parse_address(text: str) -> Address:
    """Parse a multiaddr. Raises BadMessage, naming what is wrong, for anything else."""
    shown = text[:80]
    if len(text) > ADDRESS_MAX:
        raise BadMessage(f"address of {len(text)} characters is over {ADDRESS_MAX}")
    parts = text.split("/")
    if len(parts) < 5 or parts[0] or parts[3] != "tcp":
        raise BadMessage(f"not an address like /ip4/192.0.2.1/tcp/4001[/p2p/PEER]: {shown!r}")
    host = _checked_host(parts[1], parts[2])
    if not _PORT.fullmatch(parts[4]) or int(parts[4]) > _PORT_MAX:
        raise BadMessage(f"not a TCP port: {parts[4][:8]!r} in {shown!r}")
    peer, rest = _named_peer(parts[5:], shown)
    relay = None
    if rest[:1] == ["p2p-circuit"] and peer is not None:
        relay = peer
        peer, rest = _named_peer(rest[1:], shown)
    if rest:
        raise BadMessage(f"cannot dial /{rest[0][:16]} in {shown!r}: only tcp is spoken")
    return Address(parts[1], host, int(parts[4]), peer, relay)


def _named_peer(parts: list[str], shown: str) -> tuple[PeerId | None, list[str]]:
    """Read /p2p/PEER, if it comes next, and return what follows."""
    if parts[:1] != ["p2p"]:
        return None, parts
    if len(parts) < 2:
        raise BadMessage(f"no peer after /p2p in {shown!r}")
    peer = PeerId(parts[1])
    public_key_of(peer)
    return peer, parts[2:]


def _checked_host(network: str, host: str) -> str:
    try:
        if network == "ip4":
            return str(ipaddress.IPv4Address(host))
        if network == "ip6":
            if "%" in host:
                raise ValueError("a scope means nothing to another machine")
            return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise BadMessage(f"not an /{network} address: {host[:64]!r}") from error
    if network in ("dns", "dns4", "dns6") and _DNS_NAME.fullmatch(host):
        return host
    raise BadMessage(f"cannot dial /{network[:16]}/{host[:64]}")


def is_loopback(host: str) -> bool:
    """True for an IP address of this machine only (127/8, ::1, also IPv4-mapped)."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
