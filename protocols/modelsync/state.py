"""States of a lane: their chunks, the hashes of these, and the root over the hashes.

A state is a flat float32 vector. Its chunks are 1 MiB of little-endian float32 (the last one may be
shorter), so that what differs between two states can be told, fetched and checked by the piece.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import trio

from protocols.modelsync.codecs import Vector
from protocols.modelsync.latest_wire import STATE, Latest, StatePart
from protocols.modelsync.wire import Ask, Certificate
from protocols.modelsync.work import Work
from wire.errors import BadMessage, DeadlineExceeded, NotFound
from wire.ids import PeerId
from wire.ports import Call, Rpc

CHUNK_BYTES = 1024 * 1024  # one frame carries a chunk; its hash is 1/32,768 of it
CHUNK_ELEMENTS = CHUNK_BYTES // 4
HASHES_BYTES = 32  # of one SHA-256
ROOT_TAG = b"shoal/state/1"
_THREADS = 2  # hash at a time: hashlib lets go of the interpreter while it hashes
_THREADS_FROM = 16  # chunks; below that, threads take longer to start than to hash


@dataclass(frozen=True)
class State:
    """What a node can give to others: the state of a lane before `round`."""

    round: int
    root: bytes
    vector: Vector  # of the lane's state elements, as its strategy lays them out
    certificate: Certificate | None  # of the round before; None before the first

    def latest(self) -> Latest:
        """Describe it for the wire."""
        return Latest(self.round, self.root, len(self.vector), self.certificate)


def chunk_count(elements: int) -> int:
    """Return how many chunks a state of this many elements has."""
    return -(-elements // CHUNK_ELEMENTS)


def chunk_of(vector: Vector, index: int) -> memoryview:
    """Return the bytes of one chunk of a contiguous little-endian vector, without a copy."""
    return vector[index * CHUNK_ELEMENTS : (index + 1) * CHUNK_ELEMENTS].data.cast("B")


def chunk_hashes(vector: Vector) -> list[bytes]:
    """Return the SHA-256 of every chunk. Cost: one read of the vector, on two threads."""
    plain = vector.astype("<f4", copy=False)
    indexes = range(chunk_count(len(plain)))
    if len(indexes) < _THREADS_FROM:
        return [_hash_of(plain, index) for index in indexes]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda index: _hash_of(plain, index), indexes))


def root_of(hashes: Iterable[bytes]) -> bytes:
    """Hash the chunks' hashes, in order, to the root of the state."""
    return hashlib.sha256(ROOT_TAG + b"".join(hashes)).digest()


def state_root(vector: Vector) -> bytes:
    """Return the root of a state: SHA-256("shoal/state/1", SHA-256(chunk 0), SHA-256(chunk 1) …).

    Blocking: 0.5 to 2 s a GB; call it off the event loop.
    """
    return root_of(chunk_hashes(vector))


def _hash_of(plain: Vector, index: int) -> bytes:
    return hashlib.sha256(chunk_of(plain, index)).digest()

# -- the first form, until service.py uses Donor and Joining: goes away then -------------------

PART_BYTES = 1024 * 1024  # one part; the frame limit leaves 4 KiB for its header
GIVE_WAIT_S = 10.0  # seconds for a joiner to take one part: it may write to a slow disk
PART_WAIT_S = 4.0  # seconds for the next part: 256 KiB/s
OPEN_S = 4.0  # seconds to open a stream


async def give(call: Call[StatePart, Ask], state: State) -> None:
    """Send a whole state. Raises DeadlineExceeded if it is not taken."""
    view = state.vector.astype("<f4", copy=False).data.cast("B")
    await _send(call, StatePart(state.latest(), b""))
    for start, stop in _parts(len(view)):
        await _send(call, StatePart(None, bytes(view[start:stop])))


async def fetch(
    rpc: Rpc, donor: PeerId, ask: Ask, target: Vector, work: Work, *, root: bytes
) -> None:
    """Download the state with this hash into `target` (parameters, then momentum).

    Raises DeadlineExceeded, PeerUnreachable, RemoteError, NotFound if the donor has gone on, or
    BadMessage if it is not what its hash says; `target` then holds rubbish.
    """
    view = target.data.cast("B")
    async with rpc.stream(donor, STATE, timeout_s=OPEN_S) as call:
        await call.send(ask)
        latest = (await _next(call)).latest
        if latest is None or 4 * latest.elements != len(view):
            raise BadMessage(f"the state of {ask.run} at {donor} is not of our size")
        if latest.root != root:
            raise NotFound(f"{donor} has another state of {ask.run} by now")
        for start, stop in _parts(len(view)):
            part = await _next(call)
            if len(part.data) != stop - start:
                raise BadMessage(f"state part of {len(part.data)} B, expected {stop - start} B")
            view[start:stop] = part.data
    if await work(partial(state_root, target)) != root:
        raise BadMessage(f"the state of {ask.run} from {donor} does not match its hash")


async def _send(call: Call[StatePart, Ask], part: StatePart) -> None:
    try:
        with trio.fail_after(GIVE_WAIT_S):
            await call.send(part)
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{call.peer} does not take the state") from error


async def _next(call: Call[Ask, StatePart]) -> StatePart:
    try:
        with trio.fail_after(PART_WAIT_S):
            return await call.receive()
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{call.peer} stopped sending the state") from error
    except trio.EndOfChannel as error:
        raise BadMessage(f"{call.peer} ended the state too early") from error


def _parts(size_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size_bytes, PART_BYTES):
        yield start, min(start + PART_BYTES, size_bytes)
