"""What the node keeps of a run and of the trainer that takes part in it; checks of its requests."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from node.broadcast import Broadcast
from node.children import Child
from protocols.modelsync.part import Outcome
from protocols.modelsync.wire import (
    ELEMENTS_MAX,
    ROUNDS_MAX,
    WEIGHT_MAX,
    WEIGHT_MIN,
    Settings,
    is_weight,
)
from shoal.runs import Attach, Metric, RoundResult, Run
from wire.errors import UsageError


@dataclass
class AttachedTrainer:
    """An attached trainer: its process and its shared memory."""

    pid: int
    pidfd: int
    shape: Attach
    states: list[NDArray[np.float32]]
    wire_at: tuple[int, int]
    since: float  # the clock when its first round could begin
    rounds_done: int = 0
    last: RoundResult | None = None


@dataclass
class Record:
    """One run of this node."""

    name: str
    state: str
    directory: Path
    child: Child | None = None
    trainer: AttachedTrainer | None = None
    metric: Metric | None = None
    rounds: int = 0
    root: str = ""
    round: int = 0
    error: str = ""
    stopping: bool = False
    is_supervised: bool = False  # we started it, and say ourselves how it ended
    ended: trio.Event = field(default_factory=trio.Event)
    news: Broadcast[Run | Metric] = field(default_factory=Broadcast[Run | Metric])


def check_shape(shape: Attach) -> None:
    """Raise UsageError if a trainer asks for something out of range."""
    if not 1 <= shape.elements <= ELEMENTS_MAX or not 1 <= shape.rounds <= ROUNDS_MAX:
        raise UsageError(f"{shape.elements} parameters, {shape.rounds} rounds: out of range")
    if shape.wire not in ("float32", "int8"):
        raise UsageError(f"no such wire: {shape.wire[:16]!r}", hint="float32 or int8")
    if not (1 <= shape.min_members <= 64 and 0 <= shape.patience_s <= 3600):
        raise UsageError("min_members is 1 to 64, patience_s 0 to 3600")
    try:
        msgspec.convert(shape.settings, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"settings {shape.settings[:128]!r}: {error}") from error
    if len(shape.states) != 2:
        raise UsageError("a trainer has two state buffers")
    hash_of(shape.root)


def check_weight(weight: float) -> float:
    """Return a weight that others will accept. Raises UsageError."""
    if not is_weight(weight):
        raise UsageError(
            f"a weight of {weight:g} is neither 0 nor in [{WEIGHT_MIN:g}, {WEIGHT_MAX:g}]"
        )
    return weight


def round_result(round_: int, outcome: Outcome) -> RoundResult:
    """Put the outcome of a round into the control API's words."""
    certificate = outcome.certificate
    if certificate is None:
        root = outcome.root.hex() if outcome.root else ""
        return RoundResult("behind", round_, at_least=outcome.at_least, root=root)
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


def buffer_index(index: int) -> int:
    """Check the number of a state buffer. Raises UsageError."""
    if index not in (0, 1):
        raise UsageError(f"there is no state buffer {index}")
    return index
