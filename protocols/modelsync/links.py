"""Links: how parcels go to and come from one other member, and whose fault it is if they do not.

Large parcels of known size go by bulk (protocols/bulk), all others over a stream of calls. Which it
is follows from the parcel's shape, so both ends do alike.
"""

import hashlib
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import trio

from protocols.modelsync.news import OPEN_S, PIECE_WAIT_S, Fault, News
from protocols.modelsync.parcels import Parcel
from protocols.modelsync.rates import Meter
from protocols.modelsync.wire import Piece, Prepare
from wire.errors import DeadlineExceeded, PeerError, PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Bulk, Call

STEPS = 8  # in which what comes is worked on
STEP_MAX = 4 * 1024 * 1024  # bytes of such a step
SHARED_BY = 4  # members that share an uplink before each one's chunks may take longer
_BAD = ("size_mismatch",)  # codes of errors that are the sender's fault
_LEFT = ("aborted", "transfer_ended")  # the other end gave up; it may have had reason


class Aborted(ShoalError):
    """The owner has left the attempt; no fault of anybody's on this stream."""

    code = "aborted"


class Traffic:
    """Bytes of one exchange: payload by peer, and how fast ours went out."""

    def __init__(self) -> None:
        self.taken: Counter[PeerId] = Counter()
        self.given: Counter[PeerId] = Counter()
        self.meter = Meter()

    def give(self, peer: PeerId, count: int) -> None:
        """So many more bytes have gone."""
        self.given[peer] += count
        self.meter.add(count, trio.current_time())

    @property
    def by_peer(self) -> dict[PeerId, tuple[int, int]]:
        """In and out, by peer."""
        peers = self.taken.keys() | self.given.keys()
        return {peer: (self.taken[peer], self.given[peer]) for peer in sorted(peers)}


class Link(Protocol):
    """A way to one other member. Parcels go and come one after the other."""

    peer: PeerId

    async def push(self, parcels: list[Parcel]) -> None:
        """Send parcels as they grow, to their end."""
        ...

    async def pull(self, parcels: list[Parcel]) -> None:
        """Let parcels grow by what comes, to their end."""
        ...


class CallLink:
    """A stream of calls: a piece for each chunk, both ways."""

    def __init__(self, call: Call[Piece, Piece], prepare: Prepare, traffic: Traffic) -> None:
        self.peer = call.peer
        self._call, self._traffic = call, traffic
        self._piece_of = partial(Piece, prepare.run, *prepare.ballot, lane=prepare.lane)

    async def push(self, parcels: list[Parcel]) -> None:
        """Send parcels as they grow, to their end."""
        for parcel in parcels:
            for index in range(parcel.count):
                await parcel.wait(index + 1)
                await self._call.send(self.piece(index, bytes(parcel.chunk(index))))

    def piece(self, index: int, data: bytes) -> Piece:
        """Return a piece to send, counted."""
        if data:
            self._traffic.give(self.peer, len(data))
        return self._piece_of(index=index, data=data)

    async def pull(self, parcels: list[Parcel]) -> None:
        """Let parcels grow by what comes, to their end."""
        for parcel in parcels:
            while not parcel.is_whole:
                self.take(parcel, await self._call.receive())

    def take(self, parcel: Parcel, piece: Piece) -> None:
        """Take one piece. Raises BadMessage."""
        parcel.accept(piece.index, piece.data)
        self._traffic.taken[self.peer] += len(piece.data)


class BulkLink:
    """Bulk transfers, one each way: memory to memory, over lanes where there are any."""

    def __init__(self, bulk: Bulk, peer: PeerId, prepare: Prepare, traffic: Traffic) -> None:
        self.peer = peer
        self._bulk, self._traffic = bulk, traffic
        self._key = _key(prepare)

    async def push(self, parcels: list[Parcel]) -> None:
        """Send parcels as they grow, to their end."""
        sent = 0

        def progress(arrived: int, _size: int) -> None:
            nonlocal sent
            self._traffic.give(self.peer, arrived - sent)
            sent = arrived

        if parcels:
            await self._bulk.send(
                self.peer,
                self._key,
                _memory(parcels),
                ready=None if all(p.is_whole for p in parcels) else partial(_ready, parcels),
                progress=progress,
                wait_s=OPEN_S,
            )

    async def pull(self, parcels: list[Parcel]) -> None:
        """Let parcels grow by what comes, to their end."""
        taken = 0

        def prefix(count: int) -> None:
            nonlocal taken
            self._traffic.taken[self.peer] += count - taken
            taken = count
            for parcel in parcels:
                parcel.arrived(min(count, parcel.size_bytes))
                count -= parcel.size_bytes

        if parcels:
            await self._bulk.receive_into(
                self.peer,
                self._key,
                _memory(parcels),
                prefix=prefix,
                step_bytes=_step_bytes(parcels),
                wait_s=OPEN_S,
            )


def _memory(parcels: list[Parcel]) -> tuple[memoryview, ...]:
    return tuple(parcel.flat for parcel in parcels if parcel.flat is not None)


async def _ready(parcels: list[Parcel], known_bytes: int) -> int:
    """Wait until more than `known_bytes` from the front may go."""
    before = 0
    for parcel in parcels:
        if known_bytes < before + parcel.size_bytes:
            return before + await parcel.ready(known_bytes - before)
        before += parcel.size_bytes
    return before


def _key(prepare: Prepare) -> bytes:
    ballot = prepare.ballot
    name = f"{prepare.run}/{prepare.lane}/{ballot.round}/{ballot.attempt}/{ballot.proposer}"
    return hashlib.sha256(name.encode()).digest()


def chunk_wait_s(members: int) -> float:
    """Seconds for the next chunk of a member: its uplink serves all the others at once."""
    return PIECE_WAIT_S * max(1.0, (members - 1) / SHARED_BY)


def _step_bytes(parcels: list[Parcel]) -> int:
    """After how many bytes to look: steps cost time of the event loop, waiting delays the next."""
    size_bytes = sum(parcel.size_bytes for parcel in parcels)
    whole_chunk = size_bytes // max(sum(parcel.count for parcel in parcels), 1)
    return max(whole_chunk, min(size_bytes // STEPS, STEP_MAX))


@contextmanager
def blaming(peer: PeerId, news: News) -> Generator[None]:
    """Turn what goes wrong with a peer into a Fault; the task ends, nothing else does."""
    try:
        yield
    except (trio.TooSlowError, DeadlineExceeded):
        news(Fault(peer, "silent"))
    except (PeerUnreachable, trio.EndOfChannel):
        news(Fault(peer, "broken"))
    except PeerError:
        news(Fault(peer, "bad"))
    except ShoalError as error:
        reason = "bad" if error.code in _BAD else "aborted" if error.code in _LEFT else "broken"
        news(Fault(peer, reason))
