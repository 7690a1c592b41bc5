"""What the swarm's store says about served models, namespace "models". No I/O.

`NAME/manifest` is written by who added the model, `NAME/stage/@PEER/START` is the lease of a node
on a span, `NAME/audit/@PEER/SUSPECT` what a node found of another. Every member can write: what is
read is checked.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from protocols.sharding.manifest import (
    LAYERS_MAX,
    NAME_PATTERN,
    PRINTABLE,
    Cid,
    Layer,
    ModelId,
)
from wire.ids import PeerId
from wire.ports import Item

NAMESPACE = "models"
COUNT_MAX = 1 << 53  # as milliseconds far beyond any clock; JSON's readers are exact up to here
DELAYS_MAX = 16  # a lease stays under the store's 2 KiB
NOTE_MAX = 200  # characters of why a stage failed
LEASE_S = 30.0  # seconds a stage's lease lives; it is renewed every third of it

R = TypeVar("R")

Peer = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+\Z")]
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
State = Annotated[str, Meta(pattern=r"^(claimed|fetching|loading|ready|draining|failed|refused)\Z")]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common options of values in the store."""


class ModelRecord(Record, frozen=True):
    """A model that the swarm knows: where its manifest is, and whether the swarm shall host it.

    `hosted`: nodes that offer room take it up by themselves; else those that are told to.
    `nodes`: over how many nodes at most it is split, 0 is all. `replicas`: of each block, at least.
    """

    model: ModelId
    manifest: Cid
    providers: Annotated[list[Peer], Meta(max_length=8)]
    created_ms: Count
    hosted: bool
    nodes: Annotated[int, Meta(ge=0, le=LAYERS_MAX)] = 0
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1


class StageRecord(Record, frozen=True):
    """A node's own word on a span that it has, or is about to have; `note` says why it failed.

    The measured times are of the whole span: one row alone, and each further row of a prompt.
    `load` is the share of the last seconds that it computed, in thousandths. `delays` are measured
    round trips to other hosts of the model.
    """

    model: ModelId
    start: Layer
    end: Layer
    state: State
    claimed_ms: Count
    note: Annotated[str, Meta(max_length=NOTE_MAX, pattern=PRINTABLE)] = ""
    done_bytes: Count = 0
    total_bytes: Count = 0
    decode_us: Count = 0
    prefill_us: Count = 0
    free_tokens: Count = 0
    sessions: Count = 0
    load: Annotated[int, Meta(ge=0, le=1000)] = 0
    delays: Annotated[list[tuple[Peer, Count]], Meta(max_length=DELAYS_MAX)] = msgspec.field(
        default_factory=list[tuple[Peer, int]]
    )


class AuditRecord(Record, frozen=True):
    """What one node found when it had work of another done again, for one model."""

    passed: Count
    failed: Count
    failed_ms: Count = 0  # when it last failed
    why: Annotated[str, Meta(max_length=NOTE_MAX, pattern=PRINTABLE)] = ""


def manifest_key(name: str) -> str:
    """Return the key of a model's `ModelRecord`."""
    return f"{name}/manifest"


def stage_key(name: str, peer: PeerId, start: int) -> str:
    """Return the key of a node's `StageRecord`: only that node may write it."""
    return f"{name}/stage/@{peer}/{start}"


def audit_key(name: str, auditor: PeerId, suspect: PeerId) -> str:
    """Return the key of an `AuditRecord`: only the auditor may write it."""
    return f"{name}/audit/@{auditor}/{suspect}"


def is_name(name: str) -> bool:
    """Whether this can be a model's name."""
    try:
        msgspec.convert(name, Annotated[str, Meta(max_length=63, pattern=NAME_PATTERN)])
    except msgspec.ValidationError:
        return False
    return True


def to_value(record: Record) -> object:
    """Return what the store keeps."""
    return msgspec.to_builtins(record)


def read(item: Item | None, record: type[R]) -> R | None:
    """Read a value; None if there is none, or it is not what it should be."""
    if item is None:
        return None
    try:
        return msgspec.convert(item.value, record)
    except msgspec.ValidationError:
        return None


def read_stage(name: str, item: Item) -> tuple[PeerId, StageRecord] | None:
    """Read a node's lease, if its author is the node that it speaks of."""
    stage = read(item, StageRecord)
    if stage is None or stage.start >= stage.end:
        return None
    if item.key != stage_key(name, item.author, stage.start):
        return None
    return item.author, stage


def read_audit(name: str, item: Item) -> tuple[PeerId, PeerId, AuditRecord] | None:
    """Read a verdict: (auditor, suspect, record), if its author is the auditor."""
    audit = read(item, AuditRecord)
    suspect = item.key.rpartition("/")[2]
    if audit is None or item.key != audit_key(name, item.author, PeerId(suspect)):
        return None
    return item.author, PeerId(suspect), audit
