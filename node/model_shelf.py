"""What is shown of the library: pure functions from records, manifests and what is here."""

from collections.abc import Iterable

import msgspec

from node.model_pins import merged
from protocols.sharding.manifest import BLOCK, Manifest, Part, parts_of_front, parts_of_span
from protocols.sharding.records import ModelRecord, StageRecord
from shoal import library as shapes
from wire.ids import PeerId

Spans = list[tuple[int, int]]
Leases = list[tuple[PeerId, StageRecord]]


def parts_of_spans(manifest: Manifest, spans: Iterable[tuple[int, int]]) -> list[Part]:
    """Return the parts of some spans, each once, and those of the tokenizer."""
    found = {part.name: part for part in parts_of_front(manifest)}
    for start, end in spans:
        found |= {part.name: part for part in parts_of_span(manifest, start, end)}
    return list(found.values())


def known_model(
    name: str,
    record: ModelRecord,
    manifest: Manifest | None,
    *,
    here: set[str],
    pinned: Spans,
    leases: Leases,
    listed: bool,
) -> shapes.KnownModel:
    """Return a model as `shoal model ls` shows it. `here`: names of files in its folder."""
    ready = [(stage.start, stage.end) for _, stage in leases if stage.state == "ready"]
    layers = 0 if manifest is None else manifest.n_layers
    gaps = gaps_of(layers, ready)
    parts = [] if manifest is None else manifest.parts
    blocks = [(p.block, p.block + 1) for p in parts if p.role == BLOCK and p.name in here]
    found = shapes.KnownModel(
        name=name,
        model=record.model,
        manifest=record.manifest,
        created_ms=record.created_ms,
        hosted=record.hosted,
        listed=listed,
        nodes=record.nodes,
        replicas=record.replicas,
        layers=layers,
        size_bytes=sum(part.size_bytes for part in parts),
        here_bytes=sum(part.size_bytes for part in parts if part.name in here),
        here=merged(blocks),
        pinned=pinned,
        hosts=len({peer for peer, stage in leases if stage.state == "ready"}),
        ready=layers > 0 and not gaps,
        gaps=gaps,
        providers=list(record.providers),
    )
    if manifest is None:
        return found
    return msgspec.structs.replace(
        found,
        family=manifest.family,
        dtype=manifest.dtype,
        parameters=manifest.parameters,
        hidden_size=manifest.hidden_size,
        vocab_size=manifest.vocab_size,
        context=manifest.context,
    )


def detail_of(
    model: shapes.KnownModel, manifest: Manifest, *, here: set[str], pinned: Spans, leases: Leases
) -> shapes.ModelDetail:
    """Return a model as `shoal model show` shows it."""
    kept = {part.name for part in parts_of_spans(manifest, pinned)} if pinned else set[str]()
    return shapes.ModelDetail(
        model,
        [
            shapes.ModelPart(
                part.role,
                part.block,
                part.name,
                part.cid,
                part.size_bytes,
                here=part.name in here,
                pinned=part.name in kept,
            )
            for part in manifest.parts
        ],
        [
            shapes.ModelHost(peer, stage.start, stage.end, stage.state, stage.note)
            for peer, stage in leases
        ],
    )


def gaps_of(layers: int, spans: Spans) -> Spans:
    """Return the blocks of [0, layers) that none of the spans has."""
    found: Spans = []
    at = 0
    for start, end in merged(spans):
        if at < min(start, layers):
            found.append((at, min(start, layers)))
        at = max(at, end)
    return found if at >= layers else [*found, (at, layers)]
