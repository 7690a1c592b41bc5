"""The state of a run for those who join late: served in chunks, verified by its hash.

The donor reads the buffer that its trainer announced and does not touch until it announces the
next; a download that straddles two rounds fails the hash check and is tried again.
"""

import hashlib
from collections.abc import Iterator
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

PART_BYTES = 1024 * 1024  # one part; the frame limit leaves 4 KiB for its header
GIVE_WAIT_S = 10.0  # seconds for a joiner to take one part: it may write to a slow disk
PART_WAIT_S = 4.0  # seconds for the next part: 256 KiB/s
OPEN_S = 4.0  # seconds to open a stream


def state_root(vector: Vector) -> bytes:
    """Hash a state, as raw little-endian float32."""
    return hashlib.sha256(vector.astype("<f4", copy=False).data.cast("B")).digest()


@dataclass(frozen=True)
class State:
    """What a node can give to joiners: the state before `round`."""

    round: int
    root: bytes
    vector: Vector
    certificate: Certificate | None

    def latest(self) -> Latest:
        """Describe it for the wire."""
        return Latest(self.round, self.root, len(self.vector), self.certificate)


async def give(call: Call[StatePart, Ask], state: State) -> None:
    """Send a whole state. Raises DeadlineExceeded if it is not taken."""
    view = state.vector.astype("<f4", copy=False).data.cast("B")
    await _send(call, StatePart(state.latest(), b""))
    for start, stop in _parts(len(view)):
        await _send(call, StatePart(None, bytes(view[start:stop])))


async def fetch(
    rpc: Rpc, donor: PeerId, ask: Ask, target: Vector, work: Work, *, root: bytes
) -> None:
    """Download the state with this hash into `target`.

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
