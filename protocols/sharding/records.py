"""What the swarm's store says about served models, namespace "models". No I/O.

`NAME/manifest` and `NAME/placement` are written by who serves the model, `NAME/stage/@PEER` is the
lease of a node that computes a span: it counts if the placement gives that node that span. Every
member can write: what is read is checked.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from protocols.sharding.manifest import NAME_PATTERN, PRINTABLE, Cid, Layer, ModelId
from protocols.sharding.placement import Span
from wire.ids import PeerId
from wire.ports import Item

NAMESPACE = "models"
STAGES_MAX = 24  # spans of one placement: its entry stays under the store's 2 KiB
EPOCH_MAX = 1 << 53  # as milliseconds far beyond any clock; JSON's readers are exact up to here
NOTE_MAX = 200  # characters of why a stage failed
LEASE_S = 30.0  # seconds a stage's lease lives; it is renewed every third of it

R = TypeVar("R")

Peer = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+\Z")]
Epoch = Annotated[int, Meta(ge=1, le=EPOCH_MAX)]
Count = Annotated[int, Meta(ge=0, le=EPOCH_MAX)]
State = Annotated[str, Meta(pattern=r"^(fetching|loading|ready|failed|refused)\Z")]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common options of values in the store."""


class ModelRecord(Record, frozen=True):
    """A model that is served: where its manifest is."""

    model: ModelId
    manifest: Cid
    providers: Annotated[list[Peer], Meta(max_length=8)]
    created_ms: Count


class PlacementRecord(Record, frozen=True):
    """Who shall compute what. Another epoch is another `shoal serve`: they are not ordered."""

    model: ModelId
    epoch: Epoch
    spans: Annotated[list[tuple[Peer, Layer, Layer]], Meta(max_length=STAGES_MAX)]


class StageRecord(Record, frozen=True):
    """A node's own word on its span; `note` says why it failed."""

    model: ModelId
    epoch: Epoch
    start: Layer
    end: Layer
    state: State
    note: Annotated[str, Meta(max_length=NOTE_MAX, pattern=PRINTABLE)] = ""
    done_bytes: Count = 0
    total_bytes: Count = 0


def manifest_key(name: str) -> str:
    """Return the key of a model's `ModelRecord`."""
    return f"{name}/manifest"


def placement_key(name: str) -> str:
    """Return the key of a model's `PlacementRecord`."""
    return f"{name}/placement"


def stage_key(name: str, peer: PeerId) -> str:
    """Return the key of a node's `StageRecord`: only that node may write it."""
    return f"{name}/stage/@{peer}"


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
    if stage is None or item.key != stage_key(name, item.author) or stage.start >= stage.end:
        return None
    return item.author, stage


def read_placement(manifest: Item | None, placement: Item | None) -> PlacementRecord | None:
    """Read a model's placement: who serves it, and nobody else, says where it is computed.

    None too while one of the two records is still on its way.
    """
    record, placed = read(manifest, ModelRecord), read(placement, PlacementRecord)
    if manifest is None or placement is None or record is None or placed is None:
        return None
    if manifest.author != placement.author or record.model != placed.model:
        return None
    return placed


def next_epoch(before: PlacementRecord | None, now_ms: int) -> int:
    """Return the epoch of a new placement, which is not that of the one before.

    Of the time, so that it also differs from one before `unserve`.
    """
    return now_ms if before is None or before.epoch != now_ms else now_ms + 1


def spans_of(placement: PlacementRecord) -> list[Span]:
    """Return a placement's spans."""
    return [Span(PeerId(peer), start, end) for peer, start, end in placement.spans]
