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

STEPS = 8  # in which a large parcel is worked on as it comes
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
    """A way to one other member."""

    peer: PeerId

    async def push(self, parcel: Parcel) -> None:
        """Send a parcel as it grows, to its end."""
        ...

    async def pull(self, parcel: Parcel) -> None:
        """Let a parcel grow by what comes, to its end."""
        ...


class CallLink:
    """A stream of calls: a piece for each chunk, both ways."""

    def __init__(self, call: Call[Piece, Piece], prepare: Prepare, traffic: Traffic) -> None:
        self.peer = call.peer
        self._call, self._traffic = call, traffic
        self._piece_of = partial(Piece, prepare.run, *prepare.ballot, lane=prepare.lane)

    async def push(self, parcel: Parcel) -> None:
        """Send a parcel as it grows, to its end. An empty one opens the stream."""
        if not parcel.count:
            await self._call.send(self.piece(0, b""))
        for index in range(parcel.count):
            await parcel.wait(index + 1)
            data = bytes(parcel.chunk(index))
            await self._call.send(self.piece(index, data))

    def piece(self, index: int, data: bytes) -> Piece:
        """Return a piece to send, counted."""
        if data:
            self._traffic.give(self.peer, len(data))
        return self._piece_of(index=index, data=data)

    async def pull(self, parcel: Parcel) -> None:
        """Let a parcel grow by what comes, to its end."""
        while not parcel.is_whole:
            self.take(parcel, await self._call.receive())

    def take(self, parcel: Parcel, piece: Piece) -> None:
        """Take one piece. Raises BadMessage."""
        parcel.accept(piece.index, piece.data)
        self._traffic.taken[self.peer] += len(piece.data)


class BulkLink:
    """Bulk transfers: memory to memory, over lanes where there are any."""

    def __init__(
        self, bulk: Bulk, peer: PeerId, prepare: Prepare, traffic: Traffic, *, give: str, take: str
    ) -> None:
        """give, take: what the keys of transfers call what goes and what comes."""
        self.peer = peer
        self._bulk, self._traffic = bulk, traffic
        self._give, self._take = _key(prepare, give), _key(prepare, take)

    async def push(self, parcel: Parcel) -> None:
        """Send a parcel as it grows, to its end."""
        sent = 0

        def progress(arrived: int, _size: int) -> None:
            nonlocal sent
            self._traffic.give(self.peer, arrived - sent)
            sent = arrived

        assert parcel.flat is not None
        await self._bulk.send(
            self.peer,
            self._give,
            parcel.flat,
            ready=None if parcel.is_whole else parcel.ready,
            progress=progress,
            wait_s=OPEN_S,
        )

    async def pull(self, parcel: Parcel) -> None:
        """Let a parcel grow by what comes, to its end."""
        taken = 0

        def prefix(count: int) -> None:
            nonlocal taken
            self._traffic.taken[self.peer] += count - taken
            taken = count
            parcel.arrived(count)

        assert parcel.flat is not None
        await self._bulk.receive_into(
            self.peer,
            self._take,
            parcel.flat,
            prefix=prefix,
            step_bytes=_step_bytes(parcel),
            wait_s=OPEN_S,
        )


def _key(prepare: Prepare, what: str) -> bytes:
    ballot = prepare.ballot
    name = f"{what}/{prepare.run}/{prepare.lane}/{ballot.round}/{ballot.attempt}/{ballot.proposer}"
    return hashlib.sha256(name.encode()).digest()


def chunk_wait_s(members: int) -> float:
    """Seconds for the next chunk of a member: its uplink serves all the others at once."""
    return PIECE_WAIT_S * max(1.0, (members - 1) / SHARED_BY)


def _step_bytes(parcel: Parcel) -> int:
    """After how many bytes to look: steps cost time of the event loop, waiting delays the next."""
    whole_chunk = parcel.size_bytes // max(parcel.count, 1)
    return max(whole_chunk, min(parcel.size_bytes // STEPS, STEP_MAX))


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
