"""Where the threads of lanes and the event loop meet: one desk for each peer.

Everything of the machines happens under one lock, for some microseconds a piece. What takes longer
(encryption, sockets, disks) happens outside; a transfer counts who is at its bytes (`users`), and
its buffer is given back to its owner only when nobody is.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from protocols.bulk.machine import Inbound, Outbound, Piece, Turns
from protocols.bulk.places import Source, Target
from wire.errors import BadMessage, ShoalError, UsageError
from wire.ids import PeerId

ARRIVING_WAIT_S = 10.0  # for another thread to write the same piece: a slow disk
LET_GO_S = 2.0  # for threads to leave a transfer's bytes; memory takes them microseconds


class Wake:
    """Wakes one task from any thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self) -> None:
        """Wake it; from any thread."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._set)

    async def wait(self) -> None:
        """Wait for the next `set`, or for one since the last return."""
        await self._event.wait()
        self._event = trio.Event()

    def _set(self) -> None:
        self._event.set()


@dataclass
class Front:
    """Tells somebody on the event loop how many bytes from the front of a transfer are here,
    whenever it is `step_bytes` more, and when its head is: a call, for less than it costs to wake
    a task.
    """

    tell: Callable[[int], None]
    step_bytes: int
    told_bytes: int = 0
    is_over: bool = False  # nobody wants to know any more
    _token: trio.lowlevel.TrioToken = field(default_factory=trio.lowlevel.current_trio_token)

    def reached(self, front_bytes: int, head_bytes: int) -> None:
        """The front is there; from any thread, one at a time."""
        is_head = self.told_bytes < head_bytes <= front_bytes
        if is_head or front_bytes >= self.told_bytes + self.step_bytes:
            self.told_bytes = front_bytes
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._say, front_bytes)

    def _say(self, front_bytes: int) -> None:
        if not self.is_over:
            self.tell(front_bytes)


@dataclass
class Transfer:
    """What both directions have. `wake` rouses the task that drives it."""

    wake: Wake = field(default_factory=Wake)
    users: int = 0  # threads at its bytes
    is_open: bool = True  # threads may begin to use it; afterwards the last to leave closes it
    failure: ShoalError | None = None  # of reading or writing its place

    def close(self) -> None:
        """Give the bytes back to their owner."""
        raise NotImplementedError


@dataclass
class Departure(Transfer):
    """A transfer to a peer."""

    source: Source = field(kw_only=True)
    outbound: Outbound = field(kw_only=True)

    def close(self) -> None:
        """Give the bytes back to their owner."""
        self.source.close()


@dataclass
class Arrival(Transfer):
    """A transfer from a peer."""

    target: Target = field(kw_only=True)
    inbound: Inbound = field(kw_only=True)
    front: Front | None = None

    def close(self) -> None:
        """Give the bytes back to their owner."""
        self.target.close()


@dataclass(frozen=True, slots=True)
class Job:
    """A piece for a lane to send."""

    transfer: int
    departure: Departure
    piece: Piece


class Desk:
    """All transfers with one peer."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        lock = threading.Lock()
        self._changed = threading.Condition(lock)  # there may be something to send
        self._settled = threading.Condition(
            lock
        )  # a piece is written; writers need not wake for it
        self._turns = Turns()
        self._departures = dict[int, Departure]()
        self._arrivals = dict[int, Arrival]()

    @property
    def is_idle(self) -> bool:
        """True if no transfer is going on."""
        return not self._departures and not self._arrivals

    # the event loop's

    def send(self, transfer: int, departure: Departure) -> None:
        """Let lanes send it."""
        with self._changed:
            self._departures[transfer] = departure
            self._turns.add(transfer, departure.outbound)
            self._changed.notify_all()

    def grow(self, departure: Departure, ready_bytes: int) -> None:
        """More of it may go."""
        with self._changed:
            departure.outbound.grow(ready_bytes)
            self._changed.notify_all()

    def expect(self, transfer: int, arrival: Arrival) -> None:
        """Let lanes bring it. Raises BadMessage if the peer uses one number twice."""
        with self._changed:
            if transfer in self._arrivals:
                raise BadMessage(f"transfer {transfer} comes twice")
            self._arrivals[transfer] = arrival

    async def withdraw(self, transfer: int, given: Departure | Arrival) -> None:
        """End a transfer, also one that has not begun. When it returns, no thread is at its bytes
        (of a file whose disk hangs, one may be: it closes the file when it is through).
        """
        with self._changed:
            if isinstance(given, Departure):
                self._departures.pop(transfer, None)
                self._turns.remove(transfer)
            else:
                if self._arrivals.get(transfer) is given:  # not another of the same number
                    del self._arrivals[transfer]
            given.is_open = False
            if not given.users:
                given.close()
                return
        with trio.move_on_after(LET_GO_S, shield=True):
            while given.users:
                await given.wake.wait()

    def arrived(self, departure: Departure, ranges: list[tuple[int, int]]) -> int:
        """The receiver's report; returns the bytes that are news. Raises BadMessage."""
        with self._changed:
            return departure.outbound.arrived(ranges)

    def news(self, arrival: Arrival) -> list[tuple[int, int]]:
        """What to report to the sender."""
        with self._changed:
            return arrival.inbound.news()

    def take_for_call(self, transfer: int, departure: Departure, now: float) -> Job | float:
        """Take a piece that goes through the call of the transfer, or when to ask again."""
        with self._changed:
            if (piece := departure.outbound.next(0, now)) is None:
                return departure.outbound.ready_at()
            departure.users += 1
            return Job(transfer, departure, piece)

    # the lanes'

    def take(self, lane: int, is_over: Callable[[], bool]) -> Job | None:
        """Wait for the next piece to send; None when the lane is over. Then call `sealed`."""
        with self._changed:
            while not is_over():
                now = time.monotonic()
                found = self._turns.next(lane, now)
                if isinstance(found, tuple):
                    departure = self._departures[found[0]]
                    departure.users += 1
                    return Job(found[0], departure, found[1])
                self._changed.wait(None if found == math.inf else found - now)
        return None

    def sealed(self, job: Job, error: OSError | None = None) -> None:
        """A piece has been read, or could not be."""
        if error is not None:
            self._fail(job.departure, f"cannot read what is sent: {error}")
        self._leave(job.departure)

    def lost(self, lane: int) -> None:
        """A lane is over: what was on its way there goes again."""
        with self._changed:
            self._turns.lane_lost(lane)
            self._changed.notify_all()

    def wake(self) -> None:
        """Rouse whoever waits in `take`, to look whether it is over."""
        with self._changed:
            self._changed.notify_all()

    def put(
        self,
        header: tuple[int, int, int],
        spare: memoryview,
        fill: Callable[[memoryview], None],
    ) -> None:
        """Take a piece: `fill` puts it into its place, or into `spare` if nobody wants it.

        Raises BadMessage, also what `fill` raises, if it is none of its transfer's.
        """
        transfer, offset, length = header
        claimed = self._claim(transfer, offset, length)
        if claimed is None:
            fill(spare[:length])  # of a transfer that is over, or here already
            return
        arrival, piece = claimed
        is_kept = False
        try:
            place = arrival.target.place(offset, spare[:length])
            fill(place)
            arrival.target.keep(offset, place)
            is_kept = True
        except OSError as error:
            self._fail(arrival, f"cannot write what has arrived: {error}")
        finally:
            self._settle(arrival, piece, is_kept=is_kept)

    def _claim(self, transfer: int, offset: int, length: int) -> tuple[Arrival, Piece] | None:
        with self._changed:
            arrival = self._arrivals.get(transfer)
            if arrival is None:
                return None
            inbound = arrival.inbound
            until = time.monotonic() + ARRIVING_WAIT_S
            while inbound.is_arriving(offset, length):
                # Its lane was lost to the sender, not yet to us.
                if not self._settled.wait(until - time.monotonic()):
                    raise BadMessage(f"the piece at {offset} comes twice at once")
            if not arrival.is_open or (piece := inbound.claim(offset, length)) is None:
                return None
            arrival.users += 1
            return arrival, piece

    def _settle(self, arrival: Arrival, piece: Piece, *, is_kept: bool) -> None:
        with self._changed:
            if is_kept:
                arrival.inbound.kept(piece)
            else:
                arrival.inbound.spoilt(piece)
            if arrival.front is not None:
                arrival.front.reached(arrival.inbound.prefix_bytes, arrival.target.head_bytes)
            is_complete = arrival.inbound.is_complete
            self._settled.notify_all()
        self._leave(arrival)
        if is_complete:
            arrival.wake.set()

    def _fail(self, transfer: Transfer, reason: str) -> None:
        transfer.failure = transfer.failure or UsageError(reason)
        transfer.wake.set()

    def _leave(self, transfer: Transfer) -> None:
        with self._changed:
            transfer.users -= 1
            is_last = not transfer.users and not transfer.is_open
        if is_last:
            transfer.close()
            transfer.wake.set()
