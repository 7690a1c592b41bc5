"""Serving as a relay: the hop protocol. Who gets what is decided in `hop`, bytes move in `joint`.

Source: libp2p/specs, relay/circuit-v2.md; docs/protocols/reach.md, "Relays".
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from node.host.addresses import parse_address
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.host.views import PeerDown
from node.reach.hop import Asking, Circuit, Hop, RelayBudget
from node.reach.joint import Joint, Pump
from node.reach.messages import (
    ADDRESSES_MAX,
    HOP,
    STOP,
    Answer,
    Connect,
    Limits,
    Reserve,
    Status,
    pack_hop,
    pack_stop,
    read_hop,
    receive,
)
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId
from wire.ports import Stream

log = logging.getLogger(__name__)

ASK_S = 5.0  # to say what one wants, after the protocol is agreed
ANSWER_S = 5.0  # for whom a circuit is brought to


@dataclass(frozen=True)
class RelayView:
    """What a relay gives now."""

    is_on: bool
    reservations: tuple[PeerId, ...]
    circuits: tuple[Circuit, ...]
    moved_bytes: int  # since the start, both ways together
    refused: int  # requests since the start


class Relay:
    """Serves admitted peers from the moment it is made; `run` it beside the host.

    is_on: asked each time; one that is off gives no reservation, and keeps its circuits.
    """

    def __init__(self, host: LibP2pHost, budget: RelayBudget, is_on: Callable[[], bool]) -> None:
        self._host = host
        self._is_on = is_on
        self._hop = Hop(budget)
        self._asking = Asking()
        self._pump = Pump(budget.rate_bytes_s)
        self._joints: set[Joint] = set()
        self._moved_bytes = 0  # of circuits that are over
        self._refused = 0
        host.serve(HOP, self._serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pace circuits, and forget reservations of peers that left, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump.run)
            task_status.started()
            async for event in self._host.watch():
                if isinstance(event, PeerDown):
                    self._hop.gone(event.peer)

    @property
    def free(self) -> int:
        """Reservations that others can still make; 0 while it is off."""
        return self._hop.free(trio.current_time()) if self._is_on() else 0

    def view(self) -> RelayView:
        """What it gives now."""
        moved = self._moved_bytes + sum(joint.moved_bytes for joint in self._joints)
        return RelayView(
            is_on=self._is_on(),
            reservations=tuple(self._hop.reservations(trio.current_time())),
            circuits=tuple(self._hop.circuits()),
            moved_bytes=moved,
            refused=self._refused,
        )

    async def _serve(self, stream: Stream) -> None:
        assert isinstance(stream, HostStream)
        verdict = self._asking.ask(stream.peer, trio.current_time())
        if verdict == "shed":
            self._refused += 1
            stream.drop()
        elif verdict == "refuse":
            await self._answer(stream, Status.RESOURCE_LIMIT_EXCEEDED)
        else:
            await self._serve_request(stream)

    async def _serve_request(self, stream: HostStream) -> None:
        try:
            with trio.fail_after(ASK_S):
                request = read_hop(await receive(stream))
        except BadMessage:
            await self._answer(stream, Status.MALFORMED_MESSAGE)
            return
        match request:
            case Reserve():
                await self._reserve(stream)
            case Connect(peer):
                await self._connect(stream, peer)
            case Answer():
                await self._answer(stream, Status.UNEXPECTED_MESSAGE)

    async def _reserve(self, stream: HostStream) -> None:
        now = trio.current_time()
        status = Status.RESERVATION_REFUSED
        if self._is_on():
            status = self._hop.reserve(stream.peer, is_relayed=stream.path != "direct", now=now)
        if status is not Status.OK:
            return await self._answer(stream, status)
        until = int(time.time() + self._hop.reserved_until(stream.peer) - now)
        own = tuple(parse_address(text) for text in self._host.addresses()[:ADDRESSES_MAX])
        answer = Answer(status, self._hop.budget.limits, until, own)
        try:
            await stream.write(pack_hop(answer))
        finally:
            if stream.peer not in self._host.connected():
                self._hop.gone(stream.peer)  # it left meanwhile, and nobody would say so again
        log.debug("relay.reserved peer=%s", stream.peer)
        return None

    async def _connect(self, stream: HostStream, target: PeerId) -> None:
        circuit = self._hop.connect(
            stream.peer, target, is_relayed=stream.path != "direct", now=trio.current_time()
        )
        if isinstance(circuit, Status):
            return await self._answer(stream, circuit)
        status = None
        try:
            with trio.move_on_at(circuit.until) as time_is_up:
                status = await self._carry(stream, circuit)
        finally:
            self._hop.ended(circuit)
        if status is not Status.OK and not time_is_up.cancelled_caught:
            await self._answer(stream, Status.CONNECTION_FAILED)
        return None

    async def _carry(self, stream: HostStream, circuit: Circuit) -> Status | None:
        """Bring a circuit to its target, and move its bytes to its end."""
        limits = self._hop.budget.limits
        try:
            called = await self._called(circuit, limits)
        except (ShoalError, trio.TooSlowError) as error:
            log.debug("relay.not_reached peer=%s %r", circuit.target, error)
            return None
        joint = Joint(stream, called, self._pump, limits)
        self._joints.add(joint)
        try:
            await joint.run(answer_s=ANSWER_S)
        finally:
            called.drop()
            self._joints.discard(joint)
            self._moved_bytes += joint.moved_bytes
        return joint.status

    async def _called(self, circuit: Circuit, limits: Limits) -> HostStream:
        called = await self._host.open(circuit.target, STOP, timeout_s=ANSWER_S, path="direct")
        with trio.fail_after(ANSWER_S):
            await called.write(pack_stop(Connect(circuit.source, limits)))
        return called

    async def _answer(self, stream: HostStream, status: Status) -> None:
        self._refused += 1
        with contextlib.suppress(ShoalError), trio.move_on_after(ASK_S):
            await stream.write(pack_hop(Answer(status)))
