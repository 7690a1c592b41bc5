"""A swarm that serves models, without libp2p: real parts, real workers, in-memory streams.

The store and the blobs are those of boards.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from node.config import ServeOptions
from node.models import Models
from tests.sim.boards import Board, SharedStore, Shelf
from tests.sim.net import Net
from wire.clock import SystemClock
from wire.ids import PeerId, Signer
from wire.threads import Threads


def _signer(name: str) -> Signer:
    return Signer(name.encode().ljust(32))


def peer_of(name: str) -> PeerId:
    """The peer ID of a node: that of its key, with which it signs receipts."""
    return _signer(name).peer


@dataclass
class ServingSwarm:
    """Nodes with a models part each."""

    net: Net
    board: Board = field(default_factory=Board)
    shelves: dict[PeerId, Shelf] = field(default_factory=dict[PeerId, Shelf])
    nodes: dict[PeerId, Models] = field(default_factory=dict[PeerId, Models])
    members: dict[PeerId, "ServingMember"] = field(default_factory=dict)

    async def add(
        self, folder: Path, name: str, *, memory_gib: float, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Models:
        """Start a node; 0 GiB is one that offers nothing."""
        peer = peer_of(name)
        self.shelves[peer] = Shelf(folder / name / "blobs", self.shelves)
        models = Models(
            folder=folder / name / "models",
            store=SharedStore(self.board, peer),
            blobs=self.shelves[peer],
            rpc=self.net.rpc(peer),
            signer=_signer(name),
            members=lambda: list(self.members.values()),
            clock=SystemClock(),
            options=ServeOptions(offer=memory_gib > 0, memory_gib=memory_gib, device=device),
            rtt_s=lambda _: 2 * self.net.latency_s,
            off_loop=Threads(),
        )
        self.nodes[peer], self.members[peer] = models, ServingMember(self, peer)
        await self.net.nursery.start(models.run)
        return models


@dataclass(frozen=True)
class ServingMember:
    """A member as membership shows it."""

    swarm: ServingSwarm
    peer: PeerId

    @property
    def alive(self) -> bool:
        return self.swarm.net.host(self.peer).alive

    @property
    def connected(self) -> bool:
        return self.alive

    @property
    def offers(self) -> Mapping[str, object]:
        return self.swarm.nodes[self.peer].offers()
