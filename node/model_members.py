"""Which members of the swarm live, and what they offer to models."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from node.model_offer import offer_of
from protocols.sharding.placement import Host
from wire.ids import PeerId

DOWN_S = 3.0  # seconds without a connection to a member that we had one to: it is down for us


class MemberView(Protocol):
    """What models need to know of a member of the swarm."""

    @property
    def peer(self) -> PeerId:
        """Its peer ID."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is there now."""
        ...

    @property
    def connected(self) -> bool:
        """Whether we hold a connection to it."""
        ...

    @property
    def offers(self) -> Mapping[str, object]:
        """What it offers: {"serve", "memory_gib", "room_gib", "speed"}."""
        ...


@dataclass
class Living:
    """Which members live. A lease lives long; a connection that is gone says more."""

    members: Callable[[], list[MemberView]]
    changed_s: float = -math.inf  # when one came or went, or offered something else
    _connected_s: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    _before: dict[PeerId, Host] = field(default_factory=dict[PeerId, Host])

    def hosts(self, now: float) -> dict[PeerId, Host]:
        """Return the members that live, with what they offer."""
        found: dict[PeerId, Host] = {}
        for member in self.members():
            if member.connected:
                self._connected_s[member.peer] = now
            last_s = self._connected_s.get(member.peer, now)
            if member.alive and (member.connected or now - last_s < DOWN_S):
                found[member.peer] = offer_of(member.peer, member.offers)
            elif not member.alive:
                self._connected_s.pop(member.peer, None)
        if found != self._before:
            self._before, self.changed_s = found, now
        return found
