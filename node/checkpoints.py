"""Checkpoints of a run: each lane's state in a file of its own, so that training goes on after
the whole swarm was off; and the export of a model from them.

HOME/runs/NAME/checkpoint/lane-000.safetensors holds the tensor `state`, and as texts the round
that it precedes, its root and the certificate of the round before (MessagePack, hexadecimal). The
file before it stays as .bak. layout.json beside them names the parameters.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import trio
from msgspec import Meta

from node.tensor_file import (
    BadFile,
    Found,
    NamedTensor,
    Vector,
    backup_of,
    find_tensor,
    sync_folder,
    write_tensors,
)
from protocols.modelsync.state import CHUNK_BYTES, State, root_of
from protocols.modelsync.wire import ELEMENTS_MAX, LANES_MAX, Certificate, Round
from wire.errors import NotFound, UsageError
from wire.ports import OffLoop

CHECKPOINT_S = 60.0  # seconds between two checkpoints of a lane: what a power cut may cost
FOLDER = "checkpoint"
CERTIFICATE_MAX = 64 * 1024  # bytes: what a control frame holds
_STATE = "state"

_log = logging.getLogger(__name__)


class Shape(msgspec.Struct, frozen=True):
    """One parameter of the model, in the order of the flat vector."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    shape: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=16)]


class Slice(msgspec.Struct, frozen=True):
    """The elements of the flat vector that begin a lane's state."""

    start: Annotated[int, Meta(ge=0, le=ELEMENTS_MAX)]
    stop: Annotated[int, Meta(ge=0, le=ELEMENTS_MAX)]


class Layout(msgspec.Struct, frozen=True):
    """Where a model's parameters are in the states of a run's lanes."""

    tensors: list[Shape]
    lanes: Annotated[list[Slice], Meta(min_length=1, max_length=LANES_MAX)]


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of the state in it."""

    round: int
    root: bytes
    certificate: Certificate | None


@dataclass(frozen=True)
class Exported:
    """What an export wrote: a model, from the lanes' states before these rounds."""

    path: Path
    rounds: list[int]
    roots: list[bytes]
    tensors: int


def lane_path(directory: Path, lane: int) -> Path:
    """Return where a run keeps the checkpoint of a lane."""
    return directory / FOLDER / f"lane-{lane:03d}.safetensors"


def save_checkpoint(directory: Path, lane: int, state: State, *, is_copied: bool = False) -> None:
    """Write a state, and read what was written; blocking. Raises OSError, BadFile if it changed
    meanwhile. is_copied: copy it first, which costs its size in memory but takes less long.
    """

    def check(written: Path) -> None:
        pieces = find_tensor(written, _STATE).pieces(CHUNK_BYTES)
        if root_of(hashlib.sha256(piece).digest() for piece in pieces) != state.root:
            raise BadFile(f"the state before round {state.round} has changed while it was written")

    vector = state.vector.copy() if is_copied else state.vector
    path = lane_path(directory, lane)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate = b"" if state.certificate is None else msgspec.msgpack.encode(state.certificate)
    metadata = {
        "round": str(state.round),
        "root": state.root.hex(),
        "elements": str(len(vector)),
        "certificate": certificate.hex(),
    }
    tensor = NamedTensor(_STATE, (len(vector),), vector)
    write_tensors(path, [tensor], metadata, backup=True, check=check)


def load_checkpoint(directory: Path, run: str, lane: int, target: Vector) -> Checkpoint | None:
    """Read the latest checkpoint of a lane that is whole into `target`; blocking.

    None if there is none. Raises BadFile, and leaves `target` alone, if none can be used.
    """
    errors: list[str] = []
    for path in _candidates(directory, lane):
        try:
            found, checkpoint = _open(path, run, lane)
            if found.elements != len(target):
                raise BadFile(f"{path} has {found.elements} elements, not {len(target)}")
            found.read_into(target)
        except FileNotFoundError:
            continue
        except (BadFile, OSError) as error:
            errors.append(str(error))
            _log.warning("run.checkpoint_bad run=%s lane=%d error=%s", run, lane, error)
        else:
            return checkpoint
    if errors:
        raise BadFile(
            f"no checkpoint of run {run} can be used: {'; '.join(errors)}",
            hint=f"move {directory / FOLDER} away to begin anew or to load the state from others",
        )
    return None


def map_checkpoint(directory: Path, lane: int) -> Vector:
    """Return the state in a lane's checkpoint, mapped: to be given to others after a trainer's
    end. Raises BadFile, FileNotFoundError.
    """
    return find_tensor(lane_path(directory, lane), _STATE).mapped()


def save_layout(directory: Path, layout: Layout) -> None:
    """Write layout.json; blocking. Raises UsageError if the layout contradicts itself, OSError."""
    _check_layout(layout)
    path = directory / FOLDER / "layout.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = path.with_suffix(".partial")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(layout), indent=1))
    os.replace(unfinished, path)
    sync_folder(path.parent)


def export_state(directory: Path, run: str, out: Path, *, prefix: str = "") -> Exported:
    """Write the model of a run's checkpoints, with its own names and shapes; blocking.

    prefix: only what has it before its name, and without it. Raises NotFound without checkpoints,
    BadFile, OSError.
    """
    path = directory / FOLDER / "layout.json"
    try:
        layout = msgspec.json.decode(path.read_bytes(), type=Layout)
        _check_layout(layout)
    except FileNotFoundError:
        raise NotFound(f"run {run} has no checkpoint in {directory}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, UsageError) as error:
        raise BadFile(f"{path}: {error}") from error
    flat = np.zeros(max(lane.stop for lane in layout.lanes), dtype=np.float32)
    saved = [_read_slice(directory, run, lane, flat[s.start : s.stop])
             for lane, s in enumerate(layout.lanes)]  # fmt: skip
    tensors, at = list[NamedTensor](), 0
    for shape in layout.tensors:
        elements = math.prod(shape.shape)
        if shape.name.startswith(prefix):
            name, values = shape.name.removeprefix(prefix), flat[at : at + elements]
            tensors.append(NamedTensor(name, tuple(shape.shape), values))
        at += elements
    texts = {"format": "pt", "run": run, "rounds": ",".join(str(c.round) for c in saved)}
    write_tensors(out, tensors, texts)
    return Exported(out, [c.round for c in saved], [c.root for c in saved], len(tensors))


class Checkpoints:
    """Writes the states of one attached trainer's lanes, off the loop and not too often."""

    def __init__(
        self,
        directory: Path,
        *,
        off_loop: OffLoop,
        every_s: float = CHECKPOINT_S,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._directory, self._off_loop = directory, off_loop
        self._every_s, self._now = every_s, now
        self._unsaved: dict[int, State] = {}
        self._saved_at: dict[int, float] = {}
        self._copied: set[int] = set()  # lanes whose trainer is faster than the disk
        self._news = trio.Event()
        self._turn = trio.Lock()

    def offer(self, lane: int, state: State) -> None:
        """A state was announced: to be written when it is time, unless a later one comes."""
        self._unsaved[lane] = state
        self._saved_at.setdefault(lane, self._now() - self._every_s)
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is offered, each lane at most every `every_s`, until cancelled."""
        task_status.started()
        while True:
            self._news = trio.Event()
            with trio.move_on_at(await self._save_due()):
                await self._news.wait()

    async def flush(self) -> None:
        """Write what is not written yet: at leave and at stop. All is on disk on return."""
        for lane in list(self._unsaved):
            self._copied.add(lane)  # there may be no next time
            await self._save(lane)
        async with self._turn:  # what `run` was writing is written
            return

    async def _save_due(self) -> float:
        """Write the lanes whose time has come; return when the next one's comes."""
        for lane in list(self._unsaved):
            if self._saved_at[lane] + self._every_s <= self._now():
                await self._save(lane)
        return min(
            (self._saved_at[lane] + self._every_s for lane in self._unsaved), default=math.inf
        )

    async def _save(self, lane: int) -> None:
        async with self._turn:  # one copy in memory at a time
            state = self._unsaved.pop(lane, None)
            if state is None:
                return
            self._saved_at[lane] = self._now()
            is_copied = lane in self._copied
            save = partial(save_checkpoint, self._directory, lane, state, is_copied=is_copied)
            try:
                await self._off_loop(save)
            except (OSError, BadFile) as error:  # a full disk ends no training
                if isinstance(error, BadFile):
                    self._copied.add(lane)
                _log.warning("run.checkpoint_lost lane=%d error=%s", lane, error)


def _candidates(directory: Path, lane: int) -> list[Path]:
    path = lane_path(directory, lane)
    return [path, backup_of(path)]


def _open(path: Path, run: str, lane: int) -> tuple[Found, Checkpoint]:
    """Check all of a checkpoint: its bytes, and that its certificate is of the round before."""
    found = find_tensor(path, _STATE)
    try:
        round_ = msgspec.convert(found.metadata.get("round"), Round, strict=False)
        root = bytes.fromhex(found.metadata.get("root", ""))
        text = found.metadata.get("certificate", "")[: 2 * CERTIFICATE_MAX]
        certificate = (
            msgspec.msgpack.decode(bytes.fromhex(text), type=Certificate) if text else None
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFile(f"{path}: its texts are not those of a checkpoint: {error}") from error
    if certificate is not None:
        named = (certificate.run, certificate.lane, certificate.round)
        if named != (run, lane, round_ - 1) or not certificate.is_signed():
            raise BadFile(
                f"{path} has a certificate of round {certificate.round} that is not its own"
            )
    elif round_ != 0:
        raise BadFile(f"{path} is before round {round_}, and has no certificate")
    pieces = found.pieces(CHUNK_BYTES)
    if root_of(hashlib.sha256(piece).digest() for piece in pieces) != root:
        raise BadFile(f"{path} does not hold the state that its root names")
    return found, Checkpoint(round_, root, certificate)


def _read_slice(directory: Path, run: str, lane: int, target: Vector) -> Checkpoint:
    """Read the parameters at the beginning of a lane's checkpoint."""
    for path in _candidates(directory, lane):
        try:
            found, checkpoint = _open(path, run, lane)
        except FileNotFoundError:
            continue
        except BadFile as error:
            _log.warning("run.checkpoint_bad run=%s lane=%d error=%s", run, lane, error)
            continue
        if found.elements < len(target):
            raise BadFile(f"{path} has {found.elements} elements, fewer than its layout says")
        target[:] = found.mapped()[: len(target)]
        return checkpoint
    raise NotFound(f"run {run} has no checkpoint of lane {lane} that can be used in {directory}")


def _check_layout(layout: Layout) -> None:
    total = sum(math.prod(shape.shape) for shape in layout.tensors)
    covered = 0
    for lane in sorted(layout.lanes, key=lambda lane: lane.start):
        if lane.start > covered or lane.stop < lane.start:
            raise UsageError(f"no lane covers the parameters from {covered} on")
        covered = max(covered, lane.stop)
    if covered != total:
        raise UsageError(f"lanes cover {covered} parameters, tensors name {total}")
