"""The receiver's half: whom we expect what from, and the call of each transfer that comes."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from protocols.bulk.counters import BulkCounters
from protocols.bulk.desk import Arrival, Desk, Front
from protocols.bulk.machine import Inbound
from protocols.bulk.places import Target
from protocols.bulk.pool import Pool
from protocols.bulk.wire import (
    PIECES_MAX,
    Accept,
    Got,
    Offer,
    SizeMismatch,
    Stalled,
    ToReceiver,
    ToSender,
    TransferEnded,
)
from wire.errors import BadMessage, DeadlineExceeded, ShoalError, UsageError
from wire.faults import OnFailure
from wire.ids import PeerId
from wire.ports import Call

FIRST_S = 10.0  # for the offer, after a call was opened
REPORT_S = 0.25  # between two reports; a report costs both event loops 0.2 ms or so
LAST_REPORT_S = 5.0  # for the sender to take the last one; we have everything
LET_GO_S = 4.0  # for a transfer that was cancelled to leave the buffer

Progress = Callable[[int, int], None]  # bytes that have arrived, bytes in all


log = logging.getLogger(__name__)


@dataclass
class _Expected:
    """Somebody here who wants to receive."""

    target: Target
    progress: Progress
    front: Front | None = None
    taken: trio.Event = field(default_factory=trio.Event)  # the offer has come
    over: trio.Event = field(default_factory=trio.Event)  # and nobody is at the target any more
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_whole: bool = False
    failure: ShoalError | None = None  # why not


class Arrivals:
    """Brings together what is offered and who expects it."""

    def __init__(
        self, pool: Pool, counters: BulkCounters, *, stall_s: float, wait_s: float
    ) -> None:
        self._pool, self._counters = pool, counters
        self._stall_s, self._wait_s = stall_s, wait_s
        self._expected = dict[tuple[PeerId, bytes], _Expected]()
        self._changed = trio.lowlevel.ParkingLot()

    async def receive(
        self,
        peer: PeerId,
        key: bytes,
        target: Target,
        progress: Progress,
        wait_s: float,
        *,
        front: Front | None = None,
    ) -> int:
        """Wait for the offer, then for the bytes."""
        if (peer, key) in self._expected:
            target.close()
            raise UsageError(f"{key.hex()} of {peer} is expected already")
        expected = self._expected[peer, key] = _Expected(target, progress, front)
        self._changed.unpark_all()
        try:
            with OnFailure(self._counters.add_failed):
                with trio.move_on_after(wait_s):
                    await expected.taken.wait()
                if not expected.taken.is_set():
                    raise DeadlineExceeded(f"{peer} offered nothing within {wait_s:g} s")
                await expected.over.wait()
                if expected.failure is not None and not expected.is_whole:
                    raise expected.failure
        finally:
            self._expected.pop((peer, key), None)
            if front is not None:
                front.is_over = True
            await _let_go(expected)
        self._counters.received += 1
        return target.size_bytes

    async def answer(self, call: Call[ToSender, ToReceiver]) -> None:
        """Answer a sender: the whole transfer."""
        offer = await _offer_of(call)
        expected = await self._meet(call.peer, offer)
        # Until we know better: what it is if this is cancelled.
        expected.failure = TransferEnded("the sender gave up, or the connection broke")
        try:
            with expected.scope:
                await self._receive(call, offer, expected)
            if expected.scope.cancelled_caught:
                raise TransferEnded("the receiver gave up")
        except ShoalError as error:
            expected.failure = error
            raise
        finally:
            expected.over.set()

    async def _meet(self, peer: PeerId, offer: Offer) -> _Expected:
        """Wait for somebody who expects it. Raises DeadlineExceeded."""
        with trio.move_on_after(self._wait_s):
            while True:
                expected = self._expected.get((peer, offer.key))
                if expected is not None and not expected.taken.is_set():
                    expected.taken.set()
                    return expected
                await self._changed.park()
        raise DeadlineExceeded(f"nobody came to receive within {self._wait_s:g} s")

    async def _receive(
        self, call: Call[ToSender, ToReceiver], offer: Offer, expected: _Expected
    ) -> None:
        arrival = Arrival(
            target=expected.target,
            inbound=Inbound(offer.size_bytes, offer.piece_bytes, head_bytes=offer.head_bytes),
            front=expected.front,
        )
        desk, failure = self._pool.desk(call.peer), None
        try:
            target = expected.target
            if (offer.size_bytes, offer.head_bytes) != (target.size_bytes, target.head_bytes):
                room = f"there is room for {target.head_bytes} of {target.size_bytes}"
                raise SizeMismatch(f"{offer.head_bytes} of {offer.size_bytes} B offered, {room}")
            desk.expect(offer.transfer, arrival)
            await call.send(ToSender(Accept()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_take_data, call, offer.transfer, arrival, desk)
                try:
                    await self._follow(call, arrival, desk, expected)
                except ShoalError as error:  # carried out of the nursery, which would wrap it
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            await desk.withdraw(offer.transfer, arrival)
        if failure is not None:
            raise failure
        expected.is_whole = True
        with trio.move_on_after(LAST_REPORT_S), suppress(ShoalError):
            await _report(call, arrival, desk)

    async def _follow(
        self,
        call: Call[ToSender, ToReceiver],
        arrival: Arrival,
        desk: Desk,
        expected: _Expected,
    ) -> None:
        """Report what arrives, until all has. Raises why it will not."""
        inbound, seen_bytes, seen_at = arrival.inbound, 0, time.monotonic()
        report_at = seen_at
        while True:
            here_bytes = inbound.arrived_bytes
            if here_bytes > seen_bytes:
                self._counters.bytes_in += here_bytes - seen_bytes
                seen_bytes, seen_at = here_bytes, time.monotonic()
                expected.progress(here_bytes, arrival.target.size_bytes)
                if expected.front is not None:  # also where a step takes long
                    expected.front.tell(inbound.prefix_bytes)
            if seen_bytes == arrival.target.size_bytes:
                return
            if arrival.failure is not None:
                raise arrival.failure
            if time.monotonic() > seen_at + self._stall_s:
                raise Stalled(f"nothing arrived for {self._stall_s:g} s")
            if time.monotonic() >= report_at:
                with trio.move_on_after(self._stall_s) as patience:
                    await _report(call, arrival, desk)
                if patience.cancelled_caught:
                    raise Stalled(f"the sender took no report for {self._stall_s:g} s")
                report_at = time.monotonic() + REPORT_S
            with trio.move_on_after(report_at - time.monotonic()):
                await arrival.wake.wait()


async def _offer_of(call: Call[ToSender, ToReceiver]) -> Offer:
    with trio.move_on_after(FIRST_S):
        try:
            message = await call.receive()
        except trio.EndOfChannel:
            raise BadMessage("no offer") from None
        offer = message.body
        if not isinstance(offer, Offer):
            raise BadMessage("data before the offer")
        if offer.head_bytes > offer.size_bytes:
            raise BadMessage(f"a head of {offer.head_bytes} B in {offer.size_bytes}")
        if offer.size_bytes > offer.piece_bytes * PIECES_MAX:
            raise BadMessage(f"{offer.size_bytes} B in pieces of {offer.piece_bytes}")
        return offer
    raise DeadlineExceeded(f"no offer within {FIRST_S:g} s")


async def _report(call: Call[ToSender, ToReceiver], arrival: Arrival, desk: Desk) -> None:
    while ranges := desk.news(arrival):
        await call.send(ToSender(Got(ranges)))


async def _take_data(
    call: Call[ToSender, ToReceiver], transfer: int, arrival: Arrival, desk: Desk
) -> None:
    """Take the pieces that come through the call, and notice its end."""
    try:
        async for message in call:
            data = message.body
            if isinstance(data, Offer):
                raise BadMessage("a second offer")
            header = (transfer, data.offset, len(data.data))
            spare = memoryview(bytearray(len(data.data)))

            def fill(place: memoryview, data: bytes = data.data) -> None:
                place[:] = data

            if arrival.target.blocks:
                await trio.to_thread.run_sync(desk.put, header, spare, fill)
            else:
                desk.put(header, spare, fill)
            if arrival.inbound.is_complete:
                return
        raise TransferEnded("the sender left before the end")
    except ShoalError as error:
        arrival.failure = arrival.failure or error
        arrival.wake.set()


async def _let_go(expected: _Expected) -> None:
    """See that nobody is at the target any more."""
    if not expected.taken.is_set():
        expected.target.close()
        return
    expected.scope.cancel()
    with trio.move_on_after(LET_GO_S, shield=True):
        await expected.over.wait()
