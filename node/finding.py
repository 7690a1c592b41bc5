"""The DHT on this host: built, started with the first peer, a server or a client by our reach.

`dht` is what the other parts ask; docs/protocols/dht.md.
"""

from contextlib import suppress
from pathlib import Path

import structlog
import trio

from dht.messages import Answer, Contact, Request
from dht.service import DhtService
from node.host.service import LibP2pHost
from node.kad import KadStreams
from node.reach.family import State
from node.reach.identify import listens_at
from node.reach.service import Reach
from node.tickets import SwarmKey, swarm_tag
from wire.errors import ShoalError, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Clock

PUBLIC = "/ipfs/kad/1.0.0"  # libp2p/specs, kad-dht
# Who cannot be dialled holds nothing for others. `unknown` is a LAN, or a node that nobody has
# looked at yet: there are no strangers, or not for long.
CLIENTS: tuple[State, ...] = ("punchable", "relayed")
STRANGERS_AT_ONCE = 4  # other implementations that have dialled us, and are asked who they are
STRANGERS_MAX = 64  # that wait for it; one more comes into the table when a lookup meets it

_log = structlog.get_logger("dht")


class Finding:
    """One per node. Make it before the host runs, start it afterwards."""

    def __init__(
        self,
        host: LibP2pHost,
        reach: Reach,
        signer: Signer,
        clock: Clock,
        *,
        swarm: SwarmKey | None,
        is_public: bool,
        file: Path,
    ) -> None:
        """file: where the snapshot is kept. Raises UsageError for a closed swarm in public."""
        if is_public and swarm is not None:
            raise UsageError(
                "[dht] public: other programs cannot enter a swarm with a key",
                hint="make an open swarm, or leave [dht] public = false",
            )
        self.protocol = PUBLIC if is_public else protocol_of(swarm)
        self.streams = KadStreams(
            host,
            self.protocol,
            self._answer,
            lambda: self.dht.is_server,
            own=lambda: self.dht.sender(),
            clock=clock,
        )
        self.dht = DhtService(
            self.streams,
            reach,
            signer,
            clock,
            peers=host.connected,
            is_public=is_public,
            file=file,
        )
        self._host, self._met = host, trio.Event()
        self._strangers, self._next_stranger = trio.open_memory_channel[PeerId](STRANGERS_MAX)
        reach.on_verdict = self._judged

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Find and be found until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.streams.run)
            await nursery.start(self.dht.run)
            nursery.start_soon(self._bootstrap)
            for _ in range(STRANGERS_AT_ONCE):
                nursery.start_soon(self._ask_strangers)
            task_status.started()

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there."""
        self.dht.peer_up(peer)
        self._met.set()
        if self.protocol == PUBLIC and not self._host.addresses_of(peer):
            with suppress(trio.WouldBlock):
                self._strangers.send_nowait(peer)

    async def leave(self) -> None:
        """Hand over what we hold, and save the snapshot: a second or so."""
        try:
            await self.dht.leave()
        except ShoalError as error:
            _log.warning("dht.leave", error=error)

    def _answer(self, peer: PeerId, sender: Contact | None, request: Request) -> Answer:
        return self.dht.answer(peer, sender, request)

    async def _ask_strangers(self) -> None:
        """Other implementations do not say with their requests where they are."""
        async for peer in self._next_stranger:
            if found := await listens_at(self._host, peer, self.protocol):
                self._host.learn(peer, found)
                self.dht.peer_up(peer)

    async def _bootstrap(self) -> None:
        """Look for ourselves as soon as the first peer is there."""
        await self._met.wait()
        try:
            found = await self.dht.bootstrap()
        except ShoalError as error:
            _log.warning("dht.bootstrap", error=error)
            return
        _log.info("dht.bootstrap", contacts=found)

    def _judged(self, verdict: State) -> None:
        is_server = verdict not in CLIENTS
        if is_server != self.dht.is_server:
            _log.info("dht.mode", mode="server" if is_server else "client", verdict=verdict)
            self.dht.set_mode(is_server=is_server)
            self.streams.mode_changed()


def protocol_of(swarm: SwarmKey | None) -> str:
    """Return what a swarm's own DHT speaks: no stranger's swarm ever mixes with it."""
    return f"/shoal/{swarm_tag(swarm)}/kad/1.0.0"
