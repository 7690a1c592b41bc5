"""In which order a node tells its addresses: what others can use first, for there is a limit.

A lease holds 16, a ticket 8. A machine with many interfaces (containers, tunnels) must not crowd
out the addresses through relays, which are all that most can use.
"""

import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

from node.host.addresses import Address, is_loopback
from node.host.interfaces import is_global
from node.reach.views import Announced, Origin

FIRST_INTERFACES = 3  # before the relays': IPv4 of the LAN, and IPv6 global and private
ELSEWHERE = {  # documentation addresses (RFC 5737, RFC 3849): nothing is sent there
    socket.AF_INET: "192.0.2.1",
    socket.AF_INET6: "2001:db8::1",
}


def source_host(family: socket.AddressFamily) -> str | None:
    """Return the address that this machine has for the world outside; None without a way there."""
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((ELSEWHERE[family], 9))  # UDP: only the route is looked up
        host: str = sock.getsockname()[0]
        return host
    return None


def in_order(
    own: Iterable[Address],
    others: Iterable[tuple[str, Origin]],
    relayed: Sequence[str],
    sources: Iterable[str | None],
) -> list[Announced]:
    """Put addresses in the order of use.

    own: the interfaces', of which those of this machine only (loopback) are told if there is no
    other. others: that peers outside have reached. relayed: through relays.
    sources: this machine's addresses for the world outside.
    """
    towards = {host for host in sources if host}

    def rank(address: Address) -> tuple[bool, bool]:
        return not is_global(address.host), address.host not in towards

    own = list(own)
    if not all(is_loopback(one.host) for one in own):
        own = [one for one in own if not is_loopback(one.host)]
    interfaces = [Announced(str(one), "interface") for one in sorted(own, key=rank)]
    found = [
        *(Announced(one, origin) for one, origin in others),
        *interfaces[:FIRST_INTERFACES],
        *(Announced(one, "relay") for one in relayed),
        *interfaces[FIRST_INTERFACES:],
    ]
    first: dict[str, Announced] = {}
    for one in found:
        first.setdefault(one.address, one)
    return list(first.values())
