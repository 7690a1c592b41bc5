"""Hole punching: whoever dialled us through a relay is met directly, if routers let us.

Talks `/libp2p/dcutr`, drives `node.reach.punch`; docs/protocols/reach.md, "Hole punching".
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Protocol

import trio

from node.host.addresses import Address
from node.host.holes import Holes
from node.host.interfaces import IpInterface, interfaces
from node.host.views import Path, PeerEvent, PeerView
from node.reach.attempts import CONNECTING_S, PREDICTED_S, Attempts
from node.reach.dcutr import CANDIDATES_MAX, DCUTR, Connect, Inbox, Sync, encode
from node.reach.punch import Punches, Record
from node.reach.targets import PREDICTED, aim, choose, predicted_of
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId
from wire.ports import Stream, StreamServer

TALK_S = 10.0  # for DCUtR's messages: four round trips, and a STUN probe on each side
LOOK_S = 1.0  # between looks at how peers are connected, while one is relayed
TRY_S = 20.0  # for everything; the connecting ends by itself before

log = logging.getLogger(__name__)

Predict = Callable[[int], Awaitable[list[Address]]]


class PunchHost(Protocol):
    """What is needed of the host (node.host.service)."""

    holes: Holes

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    def serve(self, protocol: str, server: StreamServer) -> None:
        """Answer streams of a protocol."""
        ...

    async def open(
        self, peer: PeerId, protocol: str, *, timeout_s: float, path: Path | None = None
    ) -> Stream:
        """Open a stream, only over a connection of that path. Raises ShoalError."""
        ...

    def peers(self) -> list[PeerView]:
        """Admitted peers and how they are connected best."""
        ...

    def rtt_s(self, peer: PeerId) -> float | None:
        """Return the least of the round trips measured lately."""
        ...

    def watch(self) -> AsyncIterator[PeerEvent]:
        """Iterate over what changes in that."""
        ...


class Puncher:
    """Start it once the host runs: `await nursery.start(puncher.run)`.

    candidates: our addresses, interfaces' first, without relay addresses. predicted: the next ports
    of a sequential router, seen just now; empty for other routers.
    """

    def __init__(
        self,
        host: PunchHost,
        candidates: Callable[[], Sequence[Address]],
        predicted: Predict,
        *,
        own_interfaces: Callable[[], Collection[IpInterface]] = interfaces,
    ) -> None:
        self._host, self._candidates, self._predicted = host, candidates, predicted
        self._interfaces = own_interfaces
        self._machine = Punches(host.peer)
        self._talks: dict[PeerId, trio.CancelScope] = {}  # the one that counts, of each peer
        self._news = trio.lowlevel.ParkingLot()
        self._is_any_relayed = False
        host.serve(DCUTR, self._answer)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Punch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            task_status.started()
            while True:
                for peer in self._machine.start(trio.current_time()):
                    nursery.start_soon(self._try, peer)
                look_at = trio.current_time() + LOOK_S if self._is_any_relayed else math.inf
                with trio.move_on_at(min(self._machine.deadline, look_at)):
                    await self._news.park()
                self._look()

    def moved(self, peer: PeerId | None = None) -> None:
        """Begin anew with a peer whose addresses changed; with all (None) if ours did."""
        self._machine.moved(peer, trio.current_time())
        self._news.unpark_all()

    def view(self) -> list[tuple[Record, float | None]]:
        """The last rounds, oldest first, each with the seconds to the next try, if there is one."""
        now, machine = trio.current_time(), self._machine
        dues = [(record, machine.next_at(record.peer)) for record in machine.records.values()]
        return [(record, None if due is None else max(0.0, due - now)) for record, due in dues]

    def outcomes(self) -> dict[str, int]:
        """How many tries ended how, since the start."""
        return {str(outcome): count for outcome, count in self._machine.outcomes.items()}

    async def _watch(self) -> None:
        async for _ in self._host.watch():
            self._look()
            self._news.unpark_all()

    def _look(self) -> None:
        """See with whom to punch. A second connection to a peer is no event; then two who dialled
        each other at once may both see their own as the best, and both begin.
        """
        views = self._host.peers()
        relayed = {view.peer for view in views if view.path == "relayed"}
        dialled_us = {view.peer for view in views if view.direction == "in" or view.connections > 1}
        self._is_any_relayed = bool(relayed)
        self._machine.set_wanted(relayed & dialled_us, trio.current_time())
        for peer, talk in self._talks.items():
            if peer not in relayed:
                talk.cancel()  # it came in at our listener, or is gone

    def _is_direct(self, peer: PeerId) -> bool:
        return any(view.peer == peer and view.path == "direct" for view in self._host.peers())

    async def _try(self, peer: PeerId) -> None:
        try:
            await self._talk(peer, self._begin(peer))
        except Exception:  # a bug, but one peer's only
            log.exception("punch.broke peer=%s", peer)
        is_direct = self._is_direct(peer)
        self._machine.ended(peer, is_direct=is_direct, now=trio.current_time())
        log.debug("punch.ended peer=%s direct=%s", peer, is_direct)
        self._news.unpark_all()

    async def _answer(self, stream: Stream) -> None:
        peer = stream.peer
        if self._is_direct(peer) or not self._machine.asked(peer, trio.current_time()):
            stream.drop()
            return
        if mine := self._talks.get(peer):
            mine.cancel()
        try:
            await self._talk(peer, self._respond(stream))
        finally:
            now, is_direct = trio.current_time(), self._is_direct(peer)
            self._machine.answered(peer, is_direct=is_direct, now=now)
            self._news.unpark_all()

    async def _talk(self, peer: PeerId, work: Awaitable[None]) -> None:
        with trio.move_on_after(TRY_S) as scope:
            self._talks[peer] = scope
            try:
                await work
            except (ShoalError, trio.TooSlowError) as error:
                log.debug("punch.failed peer=%s error=%r", peer, error)
            finally:
                if self._talks.get(peer) is scope:
                    del self._talks[peer]

    async def _begin(self, peer: PeerId) -> None:
        with trio.fail_after(TALK_S):
            stream = await self._host.open(peer, DCUTR, timeout_s=TALK_S, path="relayed")
        try:
            with trio.fail_after(TALK_S):
                own = await self._own()
                asked_at = trio.current_time()
                await stream.write(encode(Connect(own)))
                answer = await Inbox(stream).next()
                # Without the peer's STUN probe: late by that, we would meet its packets' remains of
                # an earlier try at our listener, whose answer a router takes for a stray one.
                rtt_s = min(trio.current_time() - asked_at, self._host.rtt_s(peer) or math.inf)
                if not isinstance(answer, Connect):
                    raise BadMessage("SYNC before CONNECT")
                await stream.write(encode(Sync()))
                await trio.sleep(rtt_s / 2)
            await self._connect(peer, answer, own, begins=True, rtt_s=rtt_s)
        finally:
            stream.drop()

    async def _respond(self, stream: Stream) -> None:
        inbox = Inbox(stream)
        with trio.fail_after(TALK_S):
            asked = await inbox.next()
            if not isinstance(asked, Connect):
                raise BadMessage("SYNC before CONNECT")
            own = await self._own()
            asked_at = trio.current_time()
            await stream.write(encode(Connect(own)))
            if not isinstance(await inbox.next(), Sync):
                raise BadMessage("CONNECT twice")
            rtt_s = trio.current_time() - asked_at
        await self._connect(stream.peer, asked, own, begins=False, rtt_s=rtt_s)

    async def _own(self) -> tuple[Address, ...]:
        """Return our candidates, the predicted ones last: other implementations' order, too."""
        known = list(dict.fromkeys(self._candidates()))
        predicted = await self._predicted(PREDICTED)
        return (*known[: CANDIDATES_MAX - len(predicted)], *predicted)

    async def _connect(
        self,
        peer: PeerId,
        told: Connect,
        own: Sequence[Address],
        *,
        begins: bool,
        rtt_s: float,
    ) -> None:
        targets = choose(told.candidates, own, self._interfaces())
        is_predicted = bool(predicted_of(own))
        if is_predicted and not begins:
            targets = aim(targets, told.candidates)
        is_brief = is_predicted or bool(predicted_of(told.candidates))
        await Attempts(
            self._host.holes,
            peer,
            targets,
            begins=begins,
            rtt_s=rtt_s,
            is_predicted=is_predicted,
            within_s=min(CONNECTING_S, PREDICTED_S + 4 * rtt_s) if is_brief else CONNECTING_S,
        ).run()
