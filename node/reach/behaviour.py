"""How the routers in front of us choose external ports, from what STUN servers saw. Pure.

Source: RFC 4787, section 4.1 (the words), RFC 5780, section 4.3 (the tests).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from node.host.addresses import Address

Mapping = Literal["none", "endpoint-independent", "address-dependent", "sequential", "random"]

STEP_MAX = 64  # between the ports of a sequential router: its other users take some meanwhile;
# of 60,000 random ports, two in three so near to the one before are not chance
STEADY_SHARE = 2 / 3  # of the steps that must be small: a busy moment may spoil one
KEPT_MIN = 3  # ports kept as they were, until one server alone makes us believe in a kind router
PORT_MAX = 65535

_WORDS: dict[Mapping, str] = {
    "none": "no router translates our address",
    "endpoint-independent": "the router keeps one external port for all destinations",
    "address-dependent": "the router takes another external port for each destination address",
    "sequential": "the router takes a new external port for each destination, counting up",
    "random": "the router takes a new external port for each destination, at random",
}


@dataclass(frozen=True)
class Observation:
    """What one STUN server saw of one connection of ours; none of the addresses names a peer."""

    local: Address
    remote: Address
    mapped: Address


@dataclass(frozen=True)
class Behaviour:
    """The mapping behaviour. `step`: between sequential ports; 0 if they are not."""

    mapping: Mapping
    keeps_ports: bool
    servers: int  # how many server addresses it was seen from
    step: int = 0

    @property
    def is_punchable(self) -> bool:
        """True if the other side can know in time to which port it must send."""
        return self.mapping in ("none", "endpoint-independent", "sequential")

    @property
    def words(self) -> str:
        """One sentence for people, without a full stop."""
        said = _WORDS[self.mapping]
        if self.mapping == "sequential":
            said += f" by {self.step}"
        elif self.mapping == "endpoint-independent" and self.keeps_ports:
            said += ", the same as inside"
        if self.servers == 1 and self.mapping != "none":
            said += " (seen by one server only)"
        return said


def classify(seen: Sequence[Observation]) -> Behaviour | None:
    """Tell the behaviour from observations, in the order in which they were made.

    Those from one local port to several places say most. None if they say too little.
    """
    if not seen:
        return None
    servers = len({one.remote.host for one in seen})
    keeps_ports = all(one.mapped.port == one.local.port for one in seen)
    if all(one.mapped == one.local for one in seen):
        return Behaviour("none", True, servers)
    mapping = _compared(seen)
    if mapping is None:  # one server, one port: nothing to compare with but our own port
        locals_ = {one.local for one in seen}
        known = keeps_ports and len(locals_) >= KEPT_MIN
        return Behaviour("endpoint-independent", True, servers) if known else None
    if mapping != "random":
        return Behaviour(mapping, keeps_ports, servers)
    step = _step(seen)
    return Behaviour("sequential" if step else "random", False, servers, step)


def next_ports(mapped: Address, behaviour: Behaviour, count: int) -> list[Address]:
    """Return where the next `count` connections will come from, after the one seen at `mapped`."""
    ports = (mapped.port + behaviour.step * ahead for ahead in range(1, count + 1))
    return [replace(mapped, port=port) for port in ports if port <= PORT_MAX]


def _compared(seen: Sequence[Observation]) -> Mapping | None:
    """Compare what different places saw of the same local port; "random" if nothing agrees."""
    by_port, by_host = list[bool](), list[bool]()  # do two of one host, of two hosts, agree?
    for index, one in enumerate(seen):
        for other in seen[index + 1 :]:
            if one.local == other.local and one.remote != other.remote:
                same_host = one.remote.host == other.remote.host
                (by_port if same_host else by_host).append(one.mapped == other.mapped)
    if not by_port and not by_host:
        return None
    if all(by_port) and all(by_host):
        return "endpoint-independent"
    return "address-dependent" if by_port and all(by_port) else "random"


def _step(seen: Sequence[Observation]) -> int:
    """Return the least step between consecutive external ports, 0 if they do not count up."""
    if len({one.mapped.host for one in seen}) != 1:
        return 0
    ports = [one.mapped.port for one in seen]
    steps = [after - before for before, after in pairwise(ports)]
    small = [step for step in steps if 1 <= step <= STEP_MAX]
    if len(small) < 2 or len(small) < STEADY_SHARE * len(steps):
        return 0
    return min(small)
