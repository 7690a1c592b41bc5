"""The lanes to all peers: agreed on by calls, dialled, taken, kept for the next transfer, ended.

Who dialled the libp2p connection dials the lanes too, to the same address: the other side's
listening port is open to it, and perhaps to nobody else. Both ends of a lane know each other as the
ends of the call that agreed on it, so a lane can be neither taken nor offered by anybody else.
"""

import itertools
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from protocols.bulk.counters import BulkCounters
from protocols.bulk.desk import Desk
from protocols.bulk.lane import Lane
from protocols.bulk.records import LaneKeys, Opener, Sealer, derive, is_proof
from protocols.bulk.wire import (
    DIAL,
    LANE,
    LANE_ID_BYTES,
    LANES_PER_PEER_MAX,
    PROOF_BYTES,
    SECRET_BYTES,
    Dialled,
    DialMe,
    LaneOffer,
    LaneTaken,
    hello,
    parse_hello,
)
from wire.errors import BadMessage, Busy, PeerError, PeerUnreachable
from wire.ids import PeerId
from wire.ports import Rpc

LANES_MAX = 32  # in all: 64 threads, and 1.5 MB of buffers each once they have worked
IDLE_S = 45.0  # that a lane waits for the next transfer: a round of training often comes sooner
SWEEP_S = 5.0  # between two looks for idle lanes
EXPECT_S = 10.0  # from the call to the hello: a dial of three SYNs
LANE_S = 5.0  # for each step of making one
EXPECTED_MAX = 2 * LANES_PER_PEER_MAX  # lanes of one peer, with offers that may yet come true

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """How a peer is connected: who dialled, and the round trip if it is known."""

    is_ours: bool
    rtt_s: float | None = None
    is_dialable: bool = True  # not through a relay, or a hole that lets nothing else through


@dataclass(frozen=True)
class Welcome:
    """A hello was right: send `answer`, then `take` owns the socket, which must block."""

    answer: bytes
    take: Callable[[socket.socket], None]


class Sockets(Protocol):
    """What the lanes need of the host."""

    def welcome(self, greet: Callable[[bytes], Welcome | None]) -> None:
        """Ask `greet` about every hello that comes in; None is a stranger's."""
        ...

    def route(self, peer: PeerId) -> Route | None:
        """How a peer is connected; None if it is not."""
        ...

    async def dial(
        self, peer: PeerId, first: bytes, answer_bytes: int
    ) -> tuple[socket.socket, bytes]:
        """Connect to where our connection to the peer goes, send `first`, and read the answer.

        Returns a blocking socket. Raises PeerUnreachable.
        """
        ...

    def changes(self) -> AsyncIterator[tuple[PeerId, bool]]:
        """Yield peers as their connections come, end or move, and whether the last one is gone."""
        ...


@dataclass(frozen=True)
class _Expected:
    """A lane that a peer will dial."""

    peer: PeerId
    keys: LaneKeys
    until: float


@dataclass
class _Peer:
    """A peer that has, or had, something to do with us."""

    desk: Desk
    lanes: set[Lane] = field(default_factory=set[Lane])
    making: trio.Lock = field(default_factory=trio.Lock)


class Pool:
    """Makes and keeps lanes. `run` it; `ensure` before a transfer."""

    def __init__(self, rpc: Rpc, sockets: Sockets, counters: BulkCounters) -> None:
        self._rpc, self._sockets, self._counters = rpc, sockets, counters
        self._peers = dict[PeerId, _Peer]()
        self._expected = dict[bytes, _Expected]()
        self._numbers = itertools.count(1)  # 0 is the call
        self._nursery: trio.Nursery | None = None
        self.changed = trio.lowlevel.ParkingLot()  # a lane has come or gone
        rpc.serve(LANE, self._offered)
        rpc.serve(DIAL, self._asked_to_dial)
        sockets.welcome(self._greet)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep lanes until cancelled; then no thread is left."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._follow_peers)
                task_status.started()
                while True:
                    await trio.sleep(SWEEP_S)
                    self._sweep()
            finally:
                self._nursery = None

    def desk(self, peer: PeerId) -> Desk:
        """Return where transfers with a peer are booked."""
        return self._peer(peer).desk

    def lanes(self, peer: PeerId) -> int:
        """How many lanes to a peer there are now."""
        return len(self._peers[peer].lanes) if peer in self._peers else 0

    def route(self, peer: PeerId) -> Route | None:
        """How a peer is connected."""
        return self._sockets.route(peer)

    async def ensure(self, peer: PeerId, count: int) -> None:
        """See that there are so many lanes. Raises PeerUnreachable, Busy and what calls raise."""
        entry = self._peer(peer)
        async with entry.making:
            missing = count - len(entry.lanes)
            if missing <= 0:
                return
            route = self._sockets.route(peer)
            if route is None or not route.is_dialable:
                raise PeerUnreachable(f"no lane can be dialled to {peer}")
            if route.is_ours:
                for _ in range(missing):
                    await self._make(peer)
            else:
                await self._rpc.call(peer, DIAL, DialMe(count), timeout_s=2 * LANE_S)

    async def _make(self, peer: PeerId) -> None:
        """Agree on a lane and dial it."""
        self._check_room()
        lane, secret = secrets.token_bytes(LANE_ID_BYTES), secrets.token_bytes(SECRET_BYTES)
        offer = LaneOffer(lane, secret)
        taken = await self._rpc.call(peer, LANE, offer, timeout_s=LANE_S)
        keys = derive(
            lane,
            dialler=self._rpc.peer,
            listener=peer,
            dialler_secret=secret,
            listener_secret=taken.secret,
        )
        first = hello(lane, keys.dialler_proof)
        sock, answer = await self._sockets.dial(peer, first, PROOF_BYTES)
        if not is_proof(answer, keys.listener_proof):
            sock.close()
            raise PeerError(f"who answers where {peer} was is not {peer}")
        self._start(peer, sock, Sealer(keys.to_listener), Opener(keys.to_dialler))

    async def _offered(self, peer: PeerId, offer: LaneOffer) -> LaneTaken:
        """A peer will dial a lane."""
        now = time.monotonic()
        for lane in [lane for lane, expected in self._expected.items() if expected.until < now]:
            del self._expected[lane]
        open_offers = sum(expected.peer == peer for expected in self._expected.values())
        if open_offers + self.lanes(peer) >= EXPECTED_MAX:
            raise Busy(f"more than {EXPECTED_MAX} lanes")
        if offer.lane in self._expected:
            raise BadMessage("a lane is offered twice")
        self._check_room()
        secret = secrets.token_bytes(SECRET_BYTES)
        keys = derive(
            offer.lane,
            dialler=peer,
            listener=self._rpc.peer,
            dialler_secret=offer.secret,
            listener_secret=secret,
        )
        self._expected[offer.lane] = _Expected(peer, keys, now + EXPECT_S)
        return LaneTaken(secret)

    async def _asked_to_dial(self, peer: PeerId, ask: DialMe) -> Dialled:
        route = self._sockets.route(peer)
        if route is not None and route.is_ours:
            await self.ensure(peer, ask.lanes)
        return Dialled(min(self.lanes(peer), LANES_PER_PEER_MAX))

    def _greet(self, first: bytes) -> Welcome | None:
        """Look at a hello; each lane's is good for once."""
        try:
            lane, proof = parse_hello(first)
        except BadMessage:
            lane, proof = b"", b""
        expected = self._expected.get(lane)
        if (
            expected is None
            or expected.until < time.monotonic()
            or not is_proof(proof, expected.keys.dialler_proof)
        ):
            self._counters.hellos_refused += 1
            return None
        del self._expected[lane]
        keys = expected.keys

        def take(sock: socket.socket) -> None:
            self._start(expected.peer, sock, Sealer(keys.to_dialler), Opener(keys.to_listener))

        return Welcome(keys.listener_proof, take)

    def _start(self, peer: PeerId, sock: socket.socket, sealer: Sealer, opener: Opener) -> None:
        is_full = self._counters.lanes >= LANES_MAX + LANES_PER_PEER_MAX  # many offers came true
        if is_full or self._nursery is None or not self._is_dialable(peer):
            sock.close()  # or it ended while the lane was made
            return
        entry = self._peer(peer)
        lane = Lane(next(self._numbers), entry.desk, sock, sealer, opener)
        entry.lanes.add(lane)
        self._counters.lanes += 1
        self._counters.lanes_made += 1
        self._nursery.start_soon(self._run, entry, lane)
        self.changed.unpark_all()

    async def _run(self, entry: _Peer, lane: Lane) -> None:
        try:
            await lane.run()
        finally:
            entry.lanes.discard(lane)
            entry.desk.lost(lane.number)
            self._counters.lanes -= 1
            self._counters.lane_faults += lane.fault is not None
            self._counters.ended_wire_in += lane.wire_in
            self._counters.ended_wire_out += lane.wire_out
            self.changed.unpark_all()

    def _peer(self, peer: PeerId) -> _Peer:
        if peer not in self._peers:
            self._peers[peer] = _Peer(Desk(peer))
        return self._peers[peer]

    def _check_room(self) -> None:
        """Raises Busy if there are too many lanes, and none that idles could go."""
        if self._counters.lanes < LANES_MAX:
            return
        idle = [lane for lane in self._lanes() if lane.desk.is_idle]
        if not idle:
            raise Busy(f"{LANES_MAX} lanes are in use")
        min(idle, key=lambda lane: lane.used_at).close()

    def wire_bytes(self) -> tuple[int, int]:
        """Bytes that came in and went out over lanes' sockets so far."""
        lanes, counters = self._lanes(), self._counters
        now_in, now_out = (
            sum(lane.wire_in for lane in lanes),
            sum(lane.wire_out for lane in lanes),
        )
        return counters.ended_wire_in + now_in, counters.ended_wire_out + now_out

    def _lanes(self) -> list[Lane]:
        return [lane for entry in self._peers.values() for lane in entry.lanes]

    def _sweep(self) -> None:
        now = time.monotonic()
        for lane in self._lanes():
            if lane.desk.is_idle and now - lane.used_at > IDLE_S:
                lane.close()
        for peer in [p for p, entry in self._peers.items() if self._is_forgettable(p, entry)]:
            del self._peers[peer]

    def _is_forgettable(self, peer: PeerId, entry: _Peer) -> bool:
        is_used = entry.lanes or not entry.desk.is_idle or entry.making.locked()
        return not is_used and self._sockets.route(peer) is None

    def _is_dialable(self, peer: PeerId) -> bool:
        route = self._sockets.route(peer)
        return route is not None and route.is_dialable

    async def _follow_peers(self) -> None:
        """A lane is worth what the connection is that it was agreed on through: it ends with it."""
        async for peer, is_gone in self._sockets.changes():
            if is_gone or not self._is_dialable(peer):
                for lane in [*self._peers[peer].lanes] if peer in self._peers else ():
                    lane.close()
            self.changed.unpark_all()  # perhaps lanes can be dialled now
