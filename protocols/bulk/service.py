"""Large things between peers: `send` here meets `receive_into` there, by a key that both know.

A transfer is one streaming call (`bulk.transfer`), opened by the sender: what it offers, whether
the receiver has just that much room for it, and what has arrived. The bytes go over lanes; where
there is no lane, now or at all, they go through the call. Ending the call ends the transfer on both
sides.
"""

import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import trio

from protocols.bulk.arrivals import Arrivals, Progress
from protocols.bulk.counters import BulkCounters
from protocols.bulk.desk import Departure, Front, Job
from protocols.bulk.machine import Outbound, piece_bytes_for
from protocols.bulk.places import Source, file_target, memory_target, source_of
from protocols.bulk.pool import Pool, Sockets
from protocols.bulk.wire import (
    KEY_MAX,
    PIECE_MAX,
    SIZE_MAX,
    TRANSFER,
    Accept,
    Data,
    Got,
    Offer,
    SizeMismatch,
    Stalled,
    ToReceiver,
    ToSender,
    TransferEnded,
)
from wire.errors import (
    BadMessage,
    Busy,
    DeadlineExceeded,
    RemoteError,
    ShoalError,
    UsageError,
)
from wire.faults import OnFailure
from wire.ids import PeerId
from wire.ports import Call, Rpc

if TYPE_CHECKING:
    from protocols.bulk.places import Readable, Writable

OPEN_S = 10.0  # to reach the peer
WAIT_S = 30.0  # for the other side to come to the rendezvous, unless the caller says otherwise
STALL_S = 30.0  # without a byte that arrives: the transfer fails
SMALL_BYTES = 256 * 1024  # up to here the call carries it sooner than a lane is made
SEVERAL_BYTES = 32 * 1024 * 1024  # from here a transfer is worth more than one lane
FAR_S = 0.010  # a round trip from which one connection may not fill the link: below, the 4 MiB that
# Linux lets a connection have on its way are 400 MB/s
NEAR_LANES = 2  # one seals while the other sends
FAR_LANES = 4
GRACE_S = 0.5  # for the first lane, before the call begins to carry pieces
RETRY_S = 0.5  # after a lane could not be made, doubling
RETRY_MAX_S = 10.0
RATE_MIN_MB_S = 0.01  # below, a transfer would look stalled

Ready = Callable[[int], Awaitable[int]]  # may go so far: wait for more

log = logging.getLogger(__name__)

_ERRORS: dict[str, type[ShoalError]] = {
    kind.code: kind for kind in (SizeMismatch, TransferEnded, Stalled, DeadlineExceeded, Busy)
}


class BulkService:
    """Sends and receives. Run it with `await nursery.start(bulk.run)`."""

    def __init__(self, rpc: Rpc, sockets: Sockets, *, stall_s: float = STALL_S) -> None:
        self._rpc = rpc
        self._stall_s = stall_s
        self._numbers = itertools.count(1)
        self.counters = BulkCounters()
        self.pool = Pool(rpc, sockets, self.counters)
        self._arrivals = Arrivals(self.pool, self.counters, stall_s=stall_s, wait_s=WAIT_S)
        rpc.serve_stream(TRANSFER, self._arrivals.answer)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the lanes until cancelled."""
        await self.pool.run(task_status=task_status)

    async def send(
        self,
        peer: PeerId,
        key: bytes,
        source: "Readable",
        *,
        rate_mb_s: float | None = None,
        ready: Ready | None = None,
        progress: Progress | None = None,
        wait_s: float = WAIT_S,
    ) -> int:
        """Send all of a buffer, a tuple of two, a file or range (`places.part_of`); return its
        bytes once they are there. A buffer must not change meanwhile.

        key: up to 64 bytes. rate_mb_s: at most so many 10^6 bytes a second. ready: given how many
        bytes from the front may go, waits until more may, and returns how many; None: all may go.
        wait_s: for the peer to call `receive_into`. Raises UsageError, SizeMismatch, TransferEnded
        (the receiver gave up), DeadlineExceeded, Stalled, Busy, PeerUnreachable, RemoteError or
        BadMessage.
        """
        _check_key(key)
        if rate_mb_s is not None and not RATE_MIN_MB_S <= rate_mb_s < math.inf:
            raise UsageError(f"a rate of {rate_mb_s} MB/s; the least is {RATE_MIN_MB_S}")
        rate_bytes_s = rate_mb_s * 1e6 if rate_mb_s is not None else None
        origin = await _open(source)
        if origin.size_bytes > SIZE_MAX:
            origin.close()
            raise UsageError(f"a transfer has up to {SIZE_MAX} B, not {origin.size_bytes}")
        piece_bytes = piece_bytes_for(origin.size_bytes, rate_bytes_s)
        departure = Departure(
            source=origin,
            outbound=Outbound(
                origin.size_bytes,
                piece_bytes,
                rate_bytes_s=rate_bytes_s,
                ready_bytes=None if ready is None else 0,
                head_bytes=origin.head_bytes,
            ),
        )
        offer = Offer(next(self._numbers), key, origin.size_bytes, piece_bytes, origin.head_bytes)
        with OnFailure(self.counters.add_failed), _typed():
            await self._send(peer, offer, departure, progress or _nothing, wait_s, ready)
        self.counters.sent += 1
        return offer.size_bytes

    async def receive_into(
        self,
        peer: PeerId,
        key: bytes,
        buffer: "Writable",
        *,
        prefix: Callable[[int], None] | None = None,
        step_bytes: int = PIECE_MAX,
        progress: Progress | None = None,
        wait_s: float = WAIT_S,
    ) -> int:
        """Receive what the peer sends by this key into a buffer of exactly its size; returns that.

        prefix: told how many bytes from the front have come, whenever it is `step_bytes` more,
        or the first of two buffers.
        If it fails, or is cancelled, the buffer holds anything; but nobody writes to it any more.
        Raises what `send` raises.
        """
        _check_key(key)
        target = memory_target(buffer)
        return await self._arrivals.receive(
            peer,
            key,
            target,
            progress or _nothing,
            wait_s,
            front=None if prefix is None else Front(prefix, step_bytes),
        )

    async def receive_file(
        self,
        peer: PeerId,
        key: bytes,
        file: "Path | IO[Any]",
        *,
        size_bytes: int,
        offset: int = 0,
        progress: Progress | None = None,
        wait_s: float = WAIT_S,
    ) -> int:
        """Receive into a range of a file, which no more than some pieces of are in memory. It is
        not synced. A path is made if it is not there.
        """
        _check_key(key)
        target = await trio.to_thread.run_sync(partial(file_target, file, offset, size_bytes))
        return await self._arrivals.receive(peer, key, target, progress or _nothing, wait_s)

    async def _send(
        self,
        peer: PeerId,
        offer: Offer,
        departure: Departure,
        progress: Progress,
        wait_s: float,
        ready: Ready | None,
    ) -> None:
        try:
            async with self._rpc.stream(peer, TRANSFER, timeout_s=OPEN_S) as call:
                await self._drive(call, offer, departure, progress, wait_s, ready)
        finally:
            await self.pool.desk(peer).withdraw(offer.transfer, departure)

    async def _drive(
        self,
        call: Call[ToReceiver, ToSender],
        offer: Offer,
        departure: Departure,
        progress: Progress,
        wait_s: float,
        ready: Ready | None,
    ) -> None:
        """Offer, see that it is carried, and follow it to its end."""
        failure: ShoalError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await call.send(ToReceiver(offer))
                nursery.start_soon(self._keep_lanes, call.peer, offer.size_bytes)
                await _accepted(call, wait_s)
                self.pool.desk(call.peer).send(offer.transfer, departure)
                nursery.start_soon(self._carry, call, offer, departure)
                if ready is not None:
                    nursery.start_soon(self._grow, call.peer, departure, ready)
                await self._follow(call, departure, progress)
            except ShoalError as error:  # carried out of the nursery, which would wrap it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _follow(
        self, call: Call[ToReceiver, ToSender], departure: Departure, progress: Progress
    ) -> None:
        """Hear what has arrived, until all has. Raises why it will not."""
        outbound, size_bytes = departure.outbound, departure.source.size_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_failed, departure, nursery.cancel_scope)
            nursery.cancel_scope.deadline = trio.current_time() + self._stall_s
            failure: ShoalError | None = None
            try:
                while not outbound.is_done:
                    fresh_bytes = self.pool.desk(call.peer).arrived(departure, await _report(call))
                    if fresh_bytes:
                        nursery.cancel_scope.deadline = trio.current_time() + self._stall_s
                    self.counters.bytes_out += fresh_bytes
                    progress(outbound.arrived_bytes, size_bytes)
            except ShoalError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if departure.failure is not None:
            raise departure.failure
        if failure is not None:
            raise failure
        if not outbound.is_done:
            raise Stalled(f"nothing arrived for {self._stall_s:g} s")

    async def _grow(self, peer: PeerId, departure: Departure, ready: Ready) -> None:
        """Let more and more of it go."""
        ready_bytes = 0
        while ready_bytes < departure.source.size_bytes:
            ready_bytes = await ready(ready_bytes)
            self.pool.desk(peer).grow(departure, ready_bytes)
            if not self.pool.lanes(peer):
                self.pool.changed.unpark_all()  # it goes through the call

    async def _keep_lanes(self, peer: PeerId, size_bytes: int) -> None:
        """Have lanes for a transfer, and again when they are lost."""
        if size_bytes <= SMALL_BYTES:
            return
        wait_s = RETRY_S
        while True:
            route = self.pool.route(peer)
            wanted = _lanes_for(size_bytes, route.rtt_s if route else None)
            if self.pool.lanes(peer) >= wanted or (route is not None and not route.is_dialable):
                await self.pool.changed.park()
                continue
            try:
                await self.pool.ensure(peer, wanted)
                wait_s = RETRY_S
            except ShoalError as error:
                log.debug("bulk.no_lane peer=%s %s", peer, error)
            if self.pool.lanes(peer) < wanted:
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)

    async def _carry(
        self, call: Call[ToReceiver, ToSender], offer: Offer, departure: Departure
    ) -> None:
        """Send pieces through the call while there is no lane."""
        pool, peer, has_carried = self.pool, call.peer, False
        route = pool.route(peer)
        is_for_lanes = offer.size_bytes > SMALL_BYTES and route is not None and route.is_dialable
        with trio.move_on_after(GRACE_S if is_for_lanes else 0):
            while not pool.lanes(peer):
                await pool.changed.park()
        while True:
            if pool.lanes(peer):
                await pool.changed.park()
                continue
            now = time.monotonic()
            job = pool.desk(peer).take_for_call(offer.transfer, departure, now)
            if not isinstance(job, Job):
                with trio.move_on_after(max(0.0, job - now)):
                    await pool.changed.park()
                continue
            self.counters.fallbacks += not has_carried
            has_carried = True
            try:
                await call.send(ToReceiver(Data(job.piece.offset, await self._read(peer, job))))
            except (ShoalError, OSError):
                return  # whoever follows the transfer knows, or hears it

    async def _read(self, peer: PeerId, job: Job) -> bytes:
        """Read a piece that goes through the call."""
        failure: OSError | None = None

        def read() -> bytes:
            spare = memoryview(bytearray(job.piece.length))
            return bytes(job.departure.source.read(job.piece.offset, spare))

        try:
            if job.departure.source.blocks:
                return await trio.to_thread.run_sync(read)
            return read()
        except OSError as error:
            failure = error
            raise
        finally:
            self.pool.desk(peer).sealed(job, failure)


async def _accepted(call: Call[ToReceiver, ToSender], wait_s: float) -> None:
    """Wait until the receiver is there and has room. Raises DeadlineExceeded."""
    with trio.move_on_after(wait_s):
        try:
            message = await call.receive()
        except trio.EndOfChannel:
            raise TransferEnded("the receiver left at once") from None
        if not isinstance(message.body, Accept):
            raise BadMessage("a report before the transfer was accepted")
        return
    raise DeadlineExceeded(f"{call.peer} was not there to receive within {wait_s:g} s")


async def _report(call: Call[ToReceiver, ToSender]) -> list[tuple[int, int]]:
    try:
        message = await call.receive()
    except trio.EndOfChannel:
        raise TransferEnded("the receiver left before the end") from None
    if not isinstance(message.body, Got):
        raise BadMessage("a transfer is accepted twice")
    return message.body.ranges


async def _until_failed(departure: Departure, scope: trio.CancelScope) -> None:
    while departure.failure is None:
        await departure.wake.wait()
    scope.cancel()


async def _open(source: "Readable") -> Source:
    opener = source_of(source)
    if isinstance(source, Path):
        return await trio.to_thread.run_sync(opener)
    return opener()


def _lanes_for(size_bytes: int, rtt_s: float | None) -> int:
    if size_bytes < SEVERAL_BYTES:
        return 1
    return FAR_LANES if rtt_s is not None and rtt_s > FAR_S else NEAR_LANES


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= KEY_MAX:
        raise UsageError(f"a key of {len(key)} B; it has 1 to {KEY_MAX}")


def _nothing(_done_bytes: int, _size_bytes: int) -> None:
    """Nobody wants to know."""


@contextmanager
def _typed() -> Generator[None]:
    """Turn what the receiver has raised back into what it was."""
    try:
        yield
    except RemoteError as error:
        if (kind := _ERRORS.get(error.code)) is None:
            raise
        raise kind(str(error)) from error
