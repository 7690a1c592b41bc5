"""Which addresses of this machine others may dial, when we listen on all of them."""

import ipaddress
import socket
from collections.abc import Iterable

import ifaddr

from node.host.addresses import Address, is_loopback

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRANSLATORS = ipaddress.ip_network("64:ff9b::/32")  # NAT64: an IPv4 address of any kind inside


def interface_hosts(family: socket.AddressFamily) -> list[str]:
    """IP addresses of this machine: not loopback, not link-local (useless without a scope).

    Loopback alone is returned when there is nothing else (a machine without a network).
    """
    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            if entry.is_IPv4 != (family == socket.AF_INET):
                continue
            ip = ipaddress.ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0])
            if not ip.is_loopback and not ip.is_link_local:
                found.append(str(ip))
    return found or ["127.0.0.1" if family == socket.AF_INET else "::1"]


def interfaces() -> list[IpInterface]:
    """All addresses of this machine with the networks that they are in."""
    found: list[IpInterface] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            ip = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            found.append(ipaddress.ip_interface(f"{ip}/{entry.network_prefix}"))
    return found


def interface_networks() -> list[str]:
    """Networks of this machine's interfaces, like 192.168.1.0/24: who is in one is a neighbour.

    Not those of one address, as clouds and tunnels have: nobody else is in them.
    """
    return [str(one.network) for one in interfaces() if one.network.num_addresses > 1]


def expand(addresses: Iterable[Address]) -> list[Address]:
    """Turn listening addresses into dialable ones: 0.0.0.0 and :: become the interfaces' own.

    Loopback stands for them only if this machine has no other address of either family.
    """
    found, own = list[Address](), list[Address]()
    for address in addresses:
        if address.is_unspecified:
            hosts = interface_hosts(address.family)
            own += [Address(address.network, host, address.port, address.peer) for host in hosts]
        else:
            found.append(address)
    return found + ([one for one in own if not is_loopback(one.host)] or own)


def is_global(host: str) -> bool:
    """True for an IP address of one machine on the public Internet; False for names, too.

    IPv6 addresses that hold an IPv4 one are not: what is behind them may be anything.
    """
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip in _TRANSLATORS
    ):
        return False
    return ip.is_global and not ip.is_multicast


def network_of(host: str) -> str:
    """Name the network that an IP address is in: /16 for IPv4, /32 for IPv6, about one provider.

    What must not be of one hand (relays, those who dial back) is chosen from different ones.
    """
    bits = 32 if ":" in host else 16
    return str(ipaddress.ip_network(f"{host}/{bits}", strict=False))
