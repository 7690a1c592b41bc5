"""Drives the reachability machine: watches this machine's network and its peers, and looks at what
the machine wants looked at. docs/protocols/reach.md, "Reachability".
"""

from collections.abc import Callable

import trio

from node.host.addresses import Address
from node.host.interfaces import is_global
from node.host.service import LibP2pHost
from node.reach.machine import Reachability


class Probe:
    """Start it once the host runs: `await nursery.start(probe.run)`.

    It serves STUN at the host's listening ports and AutoNAT. `changed` wakes when anything that
    `machine` says may have. is_outside: which addresses are asked about; tests allow loopback.
    """

    def __init__(self, host: LibP2pHost, *, is_outside: Callable[[str], bool] = is_global) -> None:
        self._host = host
        self.machine = Reachability(is_outside)
        self.changed = trio.lowlevel.ParkingLot()
        self.stun_port: int | None = None  # our second STUN port, to tell in offers["reach"]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch and look until cancelled."""
        raise NotImplementedError

    def set_mapped(self, mapped: dict[Address, str]) -> None:
        """Take the routers' port maps (node.reach.portmap), whenever they change."""
        raise NotImplementedError

    async def predicted(self, count: int) -> list[Address]:
        """Where a sequential router will let our next connections come from: a STUN probe, now.

        Empty if the router is not sequential, or no server answers within STUN_S.
        """
        raise NotImplementedError
