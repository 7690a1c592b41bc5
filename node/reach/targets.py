"""Which of a peer's candidates we connect to in a hole punch, and in what order: pure.

A peer tells us addresses, and we send packets there: it must not make us scan ports or bother third
parties. So we take few addresses of few machines, none of this machine, in our own networks only
their own kind, and say nothing of what we found (docs/protocols/reach.md, "Hole punching").
"""

import ipaddress
from collections.abc import Collection, Sequence
from itertools import pairwise

from node.host.addresses import Address
from node.host.interfaces import IpInterface, IpNetwork, is_global
from node.reach.dcutr import CANDIDATES_MAX

PREDICTED = 16  # ports told for a sequential router: other machines behind it may take some, too
MACHINES_MAX = 4  # that we send packets to beyond our own networks: IPv4 and IPv6 of two uplinks
NEAR_MAX = 8  # and in them: interfaces of one machine
PORT_MIN = 1024  # below are services that look upon a stray packet as an attack, and no router's
# translations of us; a node that listens there may be dialled, and need not be punched with
_CARRIER = ipaddress.ip_network("100.64.0.0/10")  # between a carrier's customers (RFC 6598)


def choose(
    told: Sequence[Address], own: Sequence[Address], interfaces: Collection[IpInterface]
) -> list[Address]:
    """Return where to connect to, in order: at hand, predicted, the rest.

    told: by the peer. own: our candidates. interfaces: of this machine. Packets to machines at hand
    cross no router, so that they may go before the predicted ones, which must be the first that a
    sequential router sees.
    """
    predicted = predicted_of(told)
    is_carried = any(_is_in(one.host, [_CARRIER]) for one in own)
    near: list[Address] = []
    guessed: list[Address] = []
    rest: list[Address] = []
    machines: set[str] = set()
    for address in told[:CANDIDATES_MAX]:
        if not _is_possible(address, own, interfaces):
            continue
        if _is_in(address.host, [one.network for one in interfaces]):
            near.append(address)
            continue
        is_there = is_global(address.host) or (is_carried and _is_in(address.host, [_CARRIER]))
        if is_there and (address.host in machines or len(machines) < MACHINES_MAX):
            machines.add(address.host)
            (guessed if address in predicted else rest).append(address)
    return near[:NEAR_MAX] + guessed + rest


def predicted_of(told: Sequence[Address]) -> Sequence[Address]:
    """Return the guesses among a peer's candidates: the last `PREDICTED`, if the ports of one host
    in equal steps are. Nobody else has so many of them.
    """
    last = told[-PREDICTED:]
    hosts = {address.host for address in last}
    steps = {(b.port - a.port) % 2**16 for a, b in pairwise(last)}
    return last if len(last) == PREDICTED and len(hosts) == 1 and len(steps) == 1 else ()


def aim(targets: Sequence[Address], told: Sequence[Address]) -> list[Address]:
    """Return where the side that answers connects to if both routers are sequential: of the guesses
    only to the last, as many times.

    The other sweeps ours from a port of its own each. If both swept, and either router had given
    ports to other connections since it was asked, no two of them would meet; this way one pair does
    for up to PREDICTED - 1 such connections, together.
    """
    guesses = [target for target in targets if target in predicted_of(told)]
    return [guesses[-1] if target in guesses else target for target in targets]


def _is_possible(
    address: Address, own: Sequence[Address], interfaces: Collection[IpInterface]
) -> bool:
    is_family_ours = any(address.network == one.network for one in own)
    is_this_machine = any(address.host == str(one.ip) for one in interfaces) or address in own
    return is_family_ours and not is_this_machine and address.port >= PORT_MIN


def _is_in(host: str, networks: Collection[IpNetwork]) -> bool:
    ip = ipaddress.ip_address(host)
    if ip.is_loopback or ip.is_multicast or ip.is_link_local or ip.is_unspecified:
        return False
    return any(ip in network and not _is_everybody(ip, network) for network in networks)


def _is_everybody(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, network: IpNetwork) -> bool:
    """Tell a broadcast address, the old one of zeros, too; small networks have none (RFC 3021)."""
    return network.num_addresses > 2 and ip in (network.network_address, network.broadcast_address)
