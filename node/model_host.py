"""Hosting: this node follows the placements in the store and computes the spans it is given."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from node.model_files import ModelFiles, Refused
from node.model_workers import open_worker
from protocols.sharding.manifest import (
    Manifest,
    memory_of_span,
    parts_of_front,
    parts_of_span,
    printable,
)
from protocols.sharding.records import (
    LEASE_S,
    NAMESPACE,
    NOTE_MAX,
    ModelRecord,
    PlacementRecord,
    StageRecord,
    is_name,
    manifest_key,
    read,
    read_placement,
    spans_of,
    stage_key,
    to_value,
)
from protocols.sharding.service import StageService
from protocols.sharding.wire import worker_answer_decoder
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Store

RETRY_FIRST_S = 1.0  # seconds before a failed stage is tried again; doubled each time
RETRY_MAX_S = 30.0
STEADY_S = 60.0  # seconds that a worker must live for the next failure to count as a first one
FAREWELL_S = 1.0  # seconds to take a lease back
STAGES_HERE_MAX = 16  # worker processes of a node: each takes 300 MB besides its weights
LOOK_INTERVAL_S = 10.0  # between two looks at all placements, besides those at every change

_log = structlog.get_logger("models")


@dataclass(frozen=True)
class Duty:
    """What this node shall compute."""

    name: str
    record: ModelRecord
    epoch: int
    start: int
    end: int
    providers: tuple[PeerId, ...]


def duties(store: Store, me: PeerId) -> dict[str, Duty]:
    """Return our duties by model name, as the store has them now."""
    found: dict[str, Duty] = {}
    for item in store.scan(NAMESPACE):
        name, _, kind = item.key.partition("/")
        if kind != "placement" or not is_name(name):
            continue
        manifest = store.get(NAMESPACE, manifest_key(name))
        record, placement = read(manifest, ModelRecord), read_placement(manifest, item)
        if record is None or placement is None:
            continue
        for span in spans_of(placement):
            if span.peer == me and span.start < span.end:
                found[name] = Duty(
                    name,
                    record,
                    placement.epoch,
                    span.start,
                    span.end,
                    providers_of(record, placement, me),
                )
    return found


def providers_of(
    record: ModelRecord, placement: PlacementRecord | None, me: PeerId
) -> tuple[PeerId, ...]:
    """Return who may have a model's parts: who served it, and who computes it."""
    peers = [*record.providers, *(peer for peer, _, _ in (placement.spans if placement else []))]
    return tuple(PeerId(peer) for peer in dict.fromkeys(peers) if peer != me)


class Hosting:
    """Runs a task for every duty, and ends it when the duty is gone or has changed."""

    def __init__(
        self,
        store: Store,
        stages: StageService,
        files: ModelFiles,
        *,
        memory_bytes: Callable[[], int],
    ) -> None:
        self._store = store
        self._stages = stages
        self._files = files
        self._memory_bytes = memory_bytes
        self._running: dict[str, tuple[Duty, trio.CancelScope]] = {}  # by the model's name
        self._taken: dict[str, int] = {}  # bytes that each duty takes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the placements until cancelled."""
        async with trio.open_nursery() as nursery, self._store.watch(NAMESPACE) as changes:
            nursery.start_soon(self._look_often, nursery)
            task_status.started()
            async for key in changes:
                if not key.partition("/")[2].startswith("stage/"):
                    self._look(nursery)

    async def _look_often(self, nursery: trio.Nursery) -> None:
        while True:
            self._look(nursery)
            await trio.sleep(LOOK_INTERVAL_S)

    def _look(self, nursery: trio.Nursery) -> None:
        wanted = duties(self._store, self._stages.peer)
        for duty, scope in self._running.values():
            if wanted.get(duty.name) != duty:
                scope.cancel()
        for duty in wanted.values():
            if duty.name not in self._running:  # else it starts when the old one is gone
                scope = trio.CancelScope()
                self._running[duty.name] = duty, scope
                nursery.start_soon(self._serve, duty, scope, nursery)

    async def _serve(self, duty: Duty, scope: trio.CancelScope, nursery: trio.Nursery) -> None:
        """Do one duty until it is over: fetch, load, answer; again after every failure."""
        lease = _Lease(self._store, self._stages.peer, duty)
        try:
            with scope:
                async with trio.open_nursery() as renewing:
                    renewing.start_soon(lease.renew)
                    await self._keep_serving(duty, lease, nursery)
        finally:
            del self._running[duty.name]
            self._taken.pop(duty.name, None)
            await lease.withdraw()
        self._look(nursery)

    async def _keep_serving(self, duty: Duty, lease: "_Lease", nursery: trio.Nursery) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            began = trio.current_time()
            try:
                await self._serve_once(duty, lease, nursery)
            except Refused as error:
                await lease.say("refused", str(error))
                await trio.sleep_forever()
            except (ShoalError, OSError) as error:
                _log.warning("stage.failed", model=duty.name, error=str(error), retry_s=retry_s)
                await lease.say("failed", str(error))
            if trio.current_time() - began > STEADY_S:
                retry_s = RETRY_FIRST_S
            await trio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _serve_once(self, duty: Duty, lease: "_Lease", nursery: trio.Nursery) -> None:
        await lease.say("fetching")
        manifest = await self._files.manifest(duty.record, list(duty.providers))
        self._check(duty, manifest)
        parts = parts_of_span(manifest, duty.start, duty.end)
        parts += [part for part in parts_of_front(manifest) if part not in parts]
        self._files.check_room(self._files.missing_bytes(duty.record.model, parts))
        lease.total_bytes = sum(part.size_bytes for part in parts)
        providers = list(duty.providers)
        folder = await self._files.bring(duty.record.model, parts, providers, lease.progress)
        await lease.say("loading")
        arguments = [f"--folder={folder}", f"--start={duty.start}", f"--end={duty.end}"]
        async with open_worker(
            nursery,
            "protocols.sharding.worker",
            arguments,
            worker_answer_decoder,
            log_path=self._files.log_path(duty.name),
        ) as link:
            model, span = duty.record.model, (duty.start, duty.end)
            self._stages.attach(model, *span, link, hidden_size=manifest.hidden_size)
            try:
                await lease.say("ready")
                _log.info("stage.ready", model=duty.name, start=duty.start, end=duty.end)
                await link.gone.wait()
            finally:
                self._stages.detach(model, *span)
        raise ShoalError("the worker process ended; it is started again")

    def _check(self, duty: Duty, manifest: Manifest) -> None:
        """Refuse what is more than we offered: any member can write a placement."""
        if duty.end > manifest.n_layers:
            raise Refused(f"the model has {manifest.n_layers} layers")
        needed = memory_of_span(manifest, duty.start, duty.end)
        others = sum(taken for name, taken in self._taken.items() if name != duty.name)
        if len(self._taken.keys() - {duty.name}) >= STAGES_HERE_MAX:
            raise Refused(f"{STAGES_HERE_MAX} stages are computed here already")
        if needed + others > self._memory_bytes():
            free = max(0, self._memory_bytes() - others)
            raise Refused(f"{needed >> 20} MiB are needed, {free >> 20} MiB are offered here")
        self._taken[duty.name] = needed


class _Lease:
    """Our own word on one duty, renewed while we stand to it."""

    def __init__(self, store: Store, me: PeerId, duty: Duty) -> None:
        self._store = store
        self._key = stage_key(duty.name, me)
        self._duty = duty
        self._state, self._note = "fetching", ""
        self._done_bytes = 0
        self.total_bytes = 0

    def progress(self, done_bytes: int) -> None:
        """Remember how much was fetched; it is told with the next renewal."""
        self._done_bytes = done_bytes

    async def say(self, state: str, note: str = "") -> None:
        """Tell the swarm a new state at once."""
        self._state, self._note = state, printable(note)[:NOTE_MAX]
        await self._put()

    async def renew(self) -> None:
        """Tell it again and again, so that the lease lives."""
        while True:
            await trio.sleep(LEASE_S / 3)
            await self._put()

    async def withdraw(self) -> None:
        """Take it back, unless a later duty has taken its place."""
        with trio.move_on_after(FAREWELL_S) as farewell:
            farewell.shield = True
            stage = read(self._store.get(NAMESPACE, self._key), StageRecord)
            if stage is not None and stage.epoch == self._duty.epoch:
                await self._store.delete(NAMESPACE, self._key)

    async def _put(self) -> None:
        duty = self._duty
        stage = StageRecord(
            model=duty.record.model,
            epoch=duty.epoch,
            start=duty.start,
            end=duty.end,
            state=self._state,
            note=self._note,
            done_bytes=self._done_bytes,
            total_bytes=self.total_bytes,
        )
        await self._store.put(NAMESPACE, self._key, to_value(stage), ttl_s=LEASE_S)
