"""Everything that this node does to be reached: probes, port mapping, relays, hole punching.

`Reach` builds the parts of node/reach over one host, starts them in order, and says what the node
announces of itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from node.host.interfaces import is_global
from node.host.service import LibP2pHost
from node.reach.offer import ReachOffer
from node.reach.views import ReachView, RelayMode
from wire.ids import PeerId


class ReachMember(Protocol):
    """What is needed of a member of the swarm."""

    @property
    def peer(self) -> PeerId:
        """Who it is."""
        ...

    @property
    def addrs(self) -> Sequence[str]:
        """Its multiaddrs, as it says."""
        ...

    @property
    def offers(self) -> Mapping[str, object]:
        """What it says it offers."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is there, as far as we know."""
        ...


@dataclass(frozen=True)
class ReachOptions:
    """What [net] of the configuration says about reaching."""

    relay: RelayMode = "auto"
    relay_bytes_per_s: float = 8 * 2**20
    port_mapping: bool = True


class Reach:
    """One per node. Start it after the host; `changed` wakes whoever announces addresses.

    members: those of the swarm, with what their leases offer.
    is_outside: whether an IP address is beyond our own network; tests pass their own.
    """

    def __init__(
        self,
        host: LibP2pHost,
        members: Callable[[], Sequence[ReachMember]],
        options: ReachOptions,
        *,
        is_outside: Callable[[str], bool] = is_global,
    ) -> None:
        self._host, self._members, self._options = host, members, options
        self._is_outside = is_outside
        self.changed = trio.lowlevel.ParkingLot()  # addresses() or offers() are not what they were

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all parts until cancelled; then give back what routers and relays gave us."""
        task_status.started()
        await trio.sleep_forever()

    def addresses(self) -> list[str]:
        """Multiaddrs to announce, the most useful first, each with our peer ID."""
        return self._host.addresses()

    def offer(self) -> ReachOffer:
        """What goes into `offers["reach"]` of our member lease."""
        return ReachOffer()

    def view(self) -> ReachView:
        """How we can be reached, for people."""
        return ReachView("unknown", [], [])
