"""One connection to a peer: accepts its streams until it ends, and then everything of it ends."""

import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import trio
from libp2p.abc import IMuxedStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from node.host.addresses import Address
from node.host.carrier import Carrier
from node.host.gate import Place
from node.host.liveness import HURRY_S, patience_s
from node.host.views import Direction, Path, Rates
from node.host.yamux import MuxedConnection
from node.host.yamux_stream import MuxedStream
from wire.ids import PeerId, public_key_of

if TYPE_CHECKING:
    from node.host.swarm import FencedSwarm

log = logging.getLogger(__name__)

SERVERS_END_S = 1.0  # for stream servers to see their streams break, before they are cancelled
RTTS_KEPT = 8  # a few minutes of pings: a path may change under a connection
_NOTIFY_S = 1.0  # for libp2p's own listeners to a disconnection


class Connection(SwarmConn):
    """libp2p's SwarmConn for its own parts to see, with a life of our own.

    Overridden: `start` and `close`. libp2p's run each stream's handler in the host's own nursery,
    where one exception ends everything (trap 1), and sleep 200 ms while they close.
    """

    def __init__(
        self, muxed: MuxedConnection, swarm: "FencedSwarm", carrier: Carrier, place: Place
    ) -> None:
        direction: Direction = "out" if muxed.is_initiator else "in"
        super().__init__(muxed, swarm, "outbound" if direction == "out" else "inbound")
        self.muxed = muxed
        self.carrier = carrier
        self.place = place
        self.peer = PeerId(muxed.peer_id.to_base58())
        public_key_of(self.peer)  # raises BadMessage for RSA and other keys that we cannot check by
        self.way: Direction = direction
        self.since = time.time()
        self.began_at = trio.current_time()
        self.rtts_s = deque[float](maxlen=RTTS_KEPT)  # of keep-alive pings, the last one last
        self.admitted_at = self.proven_at = -math.inf  # trio's clock; when the other end was there
        self.is_retired = False  # a better one is there: see `peers`
        self.is_doubted = False  # its keep-alive is to ask at once
        self.waiting = 0  # streams on which somebody waits for the other end's word
        self.next_look_at = -math.inf  # of its keep-alive
        self.patience = trio.CancelScope()  # of its keep-alive, when it waits for an answer
        self.changed = trio.lowlevel.ParkingLot()  # its keep-alive has something to look at
        self.turned = trio.lowlevel.ParkingLot()  # it is retired, or not any more
        self.rates = Rates(trio.current_time())
        self.is_admitted = False
        self.refusal = "the connection ended"  # why not, if it is settled and not admitted
        self.settled = trio.Event()  # admitted, or never to be
        self.agreed = trio.Event()  # and the other end has admitted us, as far as it says so
        self.over = self.event_closed

    def expect(self, *, waits: bool) -> None:
        """One more stream waits for the other end's word, or one less."""
        self.waiting += 1 if waits else -1
        if waits and self.waiting == 1:
            self.hurry()

    def hurry(self) -> None:
        """Let the keep-alive look within HURRY_S, and wait for an answer no longer than it must."""
        now = trio.current_time()
        until, soon = now + patience_s(self.rtt_s, hurries=True), now + HURRY_S
        self.patience.deadline = min(self.patience.deadline, until)
        if self.next_look_at > soon:  # so that it is woken once a second at most
            self.next_look_at = soon
            self.changed.unpark_all()

    def doubt(self) -> None:
        """Ask at once whether somebody is there."""
        self.is_doubted = True
        self.hurry()
        self.changed.unpark_all()

    def retire(self, *, is_retired: bool) -> None:
        """A better connection is there, or not any more."""
        if is_retired != self.is_retired:
            self.is_retired = is_retired
            self.changed.unpark_all()
            self.turned.unpark_all()

    @property
    def rtt_s(self) -> float | None:
        """The round trip of the last ping; None before the first answer."""
        return self.rtts_s[-1] if self.rtts_s else None

    @property
    def address(self) -> str:
        """The other end, as a multiaddr without the peer; through a relay it ends in
        /p2p/RELAY/p2p-circuit.
        """
        host, port = self.carrier.get_remote_address() or ("0.0.0.0", 0)
        return str(Address("ip6" if ":" in host else "ip4", host, port, relay=self.relay))

    @property
    def relay(self) -> PeerId | None:
        """Whom it runs through; None if it is direct."""
        return self.carrier.relay

    @property
    def path(self) -> Path:
        """How it runs."""
        return "direct" if self.relay is None else "relayed"

    @property
    def is_punched(self) -> bool:
        """True if it came through a hole of two routers: nothing else can be dialled there."""
        return self.carrier.is_punched

    async def run(
        self,
        session: Callable[["Connection"], Awaitable[None]],
        serve: Callable[["Connection", MuxedStream], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Live until either side ends it. `session` runs beside it, `serve` once per stream; both
        catch their own errors.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.muxed.start)
                await self.muxed.event_started.wait()
                self.event_started.set()
                await self._register()
                nursery.start_soon(session, self)
                task_status.started()
                while True:
                    try:
                        stream = await self.muxed.accept_stream()
                    except MuxedConnUnavailable:
                        break
                    nursery.start_soon(serve, self, stream)
                self.over.set()
                nursery.cancel_scope.deadline = trio.current_time() + SERVERS_END_S
        finally:
            self.over.set()
            await self._unregister()

    async def close(self) -> None:
        """Say goodbye and end; `run` does the rest."""
        self.over.set()
        await self.muxed.close()

    def abort(self, reason: str) -> None:
        """End now, without a word."""
        self.over.set()
        self.muxed.abort(reason)

    async def start(self) -> None:
        """Never called: the swarm calls `run`."""
        raise NotImplementedError

    async def as_libp2p(self, stream: MuxedStream) -> NetStream:
        """Wrap a stream for a handler that libp2p brings (identify, later the relay)."""
        return await self._add_stream(cast(IMuxedStream, stream))

    async def _register(self) -> None:
        swarm = cast("FencedSwarm", self.swarm)
        swarm.connections.setdefault(self.muxed.peer_id, []).append(self)
        swarm.live.add(self)
        await swarm.notify_connected(self)

    async def _unregister(self) -> None:
        swarm = cast("FencedSwarm", self.swarm)
        swarm.remove_conn(self)
        swarm.live.discard(self)
        with trio.move_on_after(_NOTIFY_S, shield=True):
            await swarm.notify_disconnected(self)
        log.debug("connection.over peer=%s reason=%s", self.peer, self.muxed.ended_by)
