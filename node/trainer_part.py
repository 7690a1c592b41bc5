"""A trainer's part in a run, as the node holds it: its process, its memory, what it may ask."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from node.checkpoints import Checkpoints
from node.segments import map_segment, unlink_segment
from protocols.modelsync.codecs import codec_named
from protocols.modelsync.part import Attachment, LaneShape, Outcome
from protocols.modelsync.wire import (
    ELEMENTS_MAX,
    LANES_MAX,
    MEMBERS_MAX,
    ROUNDS_MAX,
    WEIGHT_MAX,
    WEIGHT_MIN,
    Settings,
    is_weight,
)
from shoal.runs import Attach, Duty, LaneBody, RoundResult
from wire.errors import UsageError

Vector = NDArray[np.float32]

PATIENCE_MAX_S = 3600.0
LAYOUT_MAX = 100_000  # tensors of a model; the largest known have some ten thousand
NAME_MAX = 64  # characters of a strategy's or aggregator's name


@dataclass
class AttachedTrainer:
    """An attached trainer: its process and its shared memory."""

    pid: int
    pidfd: int
    shape: Attach
    exchange: Vector
    sent: Vector | None
    states: list[Vector]
    wire_at: tuple[int, int]
    since: float  # the clock when its first round could begin
    checkpoints: Checkpoints
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    rounds_done: int = 0
    last: dict[int, RoundResult] = field(default_factory=dict[int, RoundResult])

    def state(self, lane: int, buffer: int) -> Vector:
        """A lane's slice of one of the two state buffers. Raises UsageError."""
        if buffer not in (0, 1):
            raise UsageError(f"there is no state buffer {buffer}")
        if not 0 <= lane < len(self.shape.lanes):
            raise UsageError(f"there is no lane {lane}")
        return self.states[buffer][slices(self.shape.lanes)[lane]]

    def attachment(self, run: str) -> Attachment:
        """What modelsync is told of it."""
        shape = self.shape
        return Attachment(
            run=run,
            lanes=tuple(LaneShape(lane.contribution, lane.state) for lane in shape.lanes),
            codec=shape.wire,
            rounds=shape.rounds,
            min_members=shape.min_members,
            patience_s=shape.patience_s,
            exchange=self.exchange,
            sent=self.sent,
            settings=shape.settings,
            aggregator=shape.aggregator,
            sample=shape.sample,
            replicas_differ=shape.replicas_differ,
            is_verified=shape.verify,
        )

    def close(self) -> None:
        """Give back what the process had; safe when it has unlinked its memory itself."""
        self.scope.cancel()
        trio.lowlevel.notify_closing(self.pidfd)
        os.close(self.pidfd)
        shape = self.shape
        for segment in (shape.exchange, shape.sent, *shape.states):
            unlink_segment(segment)


def open_trainer(
    shape: Attach, checkpoints: Checkpoints, *, wire_at: tuple[int, int], now: float
) -> AttachedTrainer:
    """Check a trainer's request, map its memory, find its process. Raises UsageError."""
    check_shape(shape)
    contributions = sum(lane.contribution for lane in shape.lanes)
    elements = sum(lane.state for lane in shape.lanes)
    exchange = map_segment(shape.exchange, contributions)
    sent = map_segment(shape.sent, contributions) if shape.sent else None
    states = [map_segment(segment, elements) for segment in shape.states]
    try:
        pidfd = os.pidfd_open(shape.pid)
    except (OSError, OverflowError) as error:
        raise UsageError(f"there is no process {shape.pid}") from error
    return AttachedTrainer(
        shape.pid, pidfd, shape, exchange, sent, states, wire_at, now, checkpoints
    )


def slices(lanes: Sequence[LaneBody]) -> list[slice]:
    """Where each lane's state lies in a state buffer."""
    stops = list(accumulate(lane.state for lane in lanes))
    return [slice(stop - lane.state, stop) for stop, lane in zip(stops, lanes, strict=True)]


def check_shape(shape: Attach) -> None:
    """Raise UsageError if a trainer asks for something out of range."""
    if not 1 <= len(shape.lanes) <= LANES_MAX:
        raise UsageError(f"a run has 1 to {LANES_MAX} lanes, not {len(shape.lanes)}")
    sizes = [(lane.contribution, lane.state) for lane in shape.lanes]
    if any(not 1 <= size <= ELEMENTS_MAX for lane in sizes for size in lane):
        raise UsageError(f"a lane has 1 to {ELEMENTS_MAX} elements")
    if not 1 <= shape.rounds <= ROUNDS_MAX:
        raise UsageError(f"{shape.rounds} rounds: out of range")
    if shape.wire != "auto":
        codec_named(shape.wire)
    if not (1 <= shape.min_members <= MEMBERS_MAX and 0 <= shape.patience_s <= PATIENCE_MAX_S):
        raise UsageError(f"min_members is 1 to {MEMBERS_MAX}, patience_s 0 to {PATIENCE_MAX_S:g}")
    if not 0 <= shape.sample <= MEMBERS_MAX:
        raise UsageError(f"a sample has 0 (all) to {MEMBERS_MAX} members, not {shape.sample}")
    if (
        len(shape.layout) > LAYOUT_MAX
        or max(map(len, (shape.strategy, shape.aggregator))) > NAME_MAX
    ):
        raise UsageError("the layout, or a name, is too long")
    try:
        msgspec.convert(shape.settings, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"settings {shape.settings[:128]!r}: {error}") from error
    if len(shape.states) != 2 or len(shape.roots) != len(shape.lanes):
        raise UsageError("a trainer has two state buffers, and a root for each lane")
    for root in shape.roots:
        hash_of(root)


def check_weight(weight: float) -> float:
    """Return a weight that others will accept. Raises UsageError."""
    if not is_weight(weight):
        raise UsageError(
            f"a weight of {weight:g} is neither 0 nor in [{WEIGHT_MIN:g}, {WEIGHT_MAX:g}]"
        )
    return weight


def round_result(
    lane: int, round_: int, outcome: Outcome, duties: Sequence[Duty] = ()
) -> RoundResult:
    """Put the outcome of a round into the control API's words."""
    certificate = outcome.certificate
    if certificate is None:
        root = outcome.root.hex() if outcome.root else ""
        return RoundResult("behind", round_, at_least=outcome.at_least, root=root, lane=lane)
    return RoundResult(
        outcome="committed",
        round=certificate.round,
        attempt=certificate.attempt,
        members=list(certificate.members),
        weights=certificate.weights,
        result=certificate.result.hex(),
        bytes_in=outcome.bytes_in,
        bytes_out=outcome.bytes_out,
        seconds=outcome.seconds,
        rate=outcome.rate,
        lane=lane,
        codec=certificate.codec,
        every=certificate.every,
        contributors=list(certificate.contributors or certificate.members),
        duties=list(duties),
    )


def hash_of(text: str) -> bytes:
    """Read a SHA-256 in hexadecimal. Raises UsageError."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise UsageError(f"{text[:16]!r} is not a SHA-256 in hexadecimal")
    return value
