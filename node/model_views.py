"""Served models as the API shows them, and their ready spans as routing sees them."""

from collections.abc import Callable, Iterable, Mapping

from protocols.sharding.manifest import Manifest
from protocols.sharding.records import ModelRecord, StageRecord
from protocols.sharding.route import Candidate
from shoal import models as shapes
from wire.ids import PeerId

Leases = Iterable[tuple[PeerId, StageRecord]]


def model_view(
    name: str, record: ModelRecord, manifest: Manifest | None, leases: Leases
) -> shapes.Model:
    """Return one model with its stages, by block. Without the manifest nothing is ready."""
    stages = sorted(
        (_stage(peer, lease) for peer, lease in leases),
        key=lambda stage: (stage.start, stage.end, stage.peer),
    )
    layers = manifest.n_layers if manifest is not None else 0
    covered = [False] * layers
    for stage in stages:
        if stage.state == "ready":
            covered[stage.start : stage.end] = [True] * len(covered[stage.start : stage.end])
    ready = layers > 0 and all(covered)
    return shapes.Model(name, record.model, layers, ready, record.created_ms, stages)


def _stage(peer: PeerId, lease: StageRecord) -> shapes.Stage:
    return shapes.Stage(
        peer=peer,
        start=lease.start,
        end=lease.end,
        state=lease.state,
        note=lease.note,
        done_bytes=lease.done_bytes,
        total_bytes=lease.total_bytes,
        decode_ms=lease.decode_us / 1000,
        prefill_ms=lease.prefill_us / 1000,
        free_tokens=lease.free_tokens,
        sessions=lease.sessions,
        load=lease.load / 1000,
    )


def candidates(
    leases: Leases,
    *,
    layers: int,
    entry: PeerId,
    rtt_s: Callable[[PeerId], float | None],
    penalty: Callable[[PeerId], float],
) -> list[Candidate]:
    """Return the ready spans with their own measurements, and ours of the way there."""
    found: list[Candidate] = []
    for peer, lease in leases:
        if lease.state != "ready" or lease.end > layers:
            continue
        found.append(
            Candidate(
                peer,
                lease.start,
                lease.end,
                decode_s=lease.decode_us / 1e6,
                prefill_s=lease.prefill_us / 1e6,
                free_tokens=lease.free_tokens,
                load=lease.load / 1000,
                delays=_delays(lease, entry, rtt_s(peer)),
                penalty=penalty(peer),
            )
        )
    return found


def _delays(lease: StageRecord, entry: PeerId, ours_s: float | None) -> Mapping[PeerId, float]:
    """Return round trips in seconds; what we measured ourselves counts more than what is told."""
    told = {PeerId(peer): delay_us / 1e6 for peer, delay_us in lease.delays}
    return told if ours_s is None else {**told, entry: ours_s}
