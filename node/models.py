"""Served models on this node: hosts spans, brings models into service, answers prompts.

Wires the store, blobs, RPC and membership to `protocols.sharding`.
"""

import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Protocol

import structlog
import trio

from node.model_answers import Answering, Answers, Options, Prompt, Served
from node.model_files import Blobs, ModelFiles
from node.model_host import Hosting, providers_of
from protocols.sharding.manifest import Manifest, blocks_in_memory, parts_of_front
from protocols.sharding.placement import Offer, Span, place
from protocols.sharding.records import (
    NAMESPACE,
    STAGES_MAX,
    ModelRecord,
    PlacementRecord,
    StageRecord,
    is_name,
    manifest_key,
    next_epoch,
    placement_key,
    read,
    read_placement,
    read_stage,
    spans_of,
    to_value,
)
from protocols.sharding.route import NoRoute, find_route
from protocols.sharding.service import StageService
from shoal import models as shapes
from wire.errors import Busy, NotFound, UsageError
from wire.ids import PeerId
from wire.ports import Clock, Rpc, Store

GIB = 1 << 30
TIDY_INTERVAL_S = 5.0  # between two looks for what a model out of service has left
PROGRESS_INTERVAL_S = 1.0  # between two looks at the stages while a model comes into service

_log = structlog.get_logger("models")


class MemberView(Protocol):
    """What models need to know of a member of the swarm."""

    @property
    def peer(self) -> PeerId:
        """Its peer ID."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is there now."""
        ...

    @property
    def offers(self) -> Mapping[str, object]:
        """What it offers: {"serve": bool, "memory_gib": number}."""
        ...


class Models:
    """The part of the daemon that serves models."""

    def __init__(
        self,
        *,
        folder: Path,
        store: Store,
        blobs: Blobs,
        rpc: Rpc,
        members: Callable[[], list[MemberView]],
        clock: Clock,
        offer: bool = True,
        memory_gib: float = 0.0,
    ) -> None:
        self.peer = rpc.peer
        self._store = store
        self._members = members
        self._clock = clock
        self._memory_bytes = _resolved_bytes(memory_gib) if offer else 0
        self._files = ModelFiles(folder, blobs)
        self._stages = StageService(rpc)
        self._hosting = Hosting(
            store, self._stages, self._files, memory_bytes=lambda: self._memory_bytes
        )
        self._answers = Answers(rpc, self._stages, self._files.log_path)
        self._serving: set[str] = set()

    def offers(self) -> dict[str, object]:
        """Return what this node's membership says it offers."""
        return {
            "serve": self._memory_bytes > 0,
            "memory_gib": round(self._memory_bytes / GIB, 3),
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host spans and answer prompts until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._answers.run)
            await nursery.start(self._hosting.run)
            nursery.start_soon(self._tidy_often)
            task_status.started()

    async def _tidy_often(self) -> None:
        """Drop what models leave behind that are served no more: at the start, then at times."""
        while True:
            self._answers.keep(self._model_ids())
            await self._files.sweep(self._model_ids)
            await trio.sleep(TIDY_INTERVAL_S)

    def _model_ids(self) -> set[str]:
        items = self._store.scan(NAMESPACE)
        records = [read(item, ModelRecord) for item in items if item.key.endswith("/manifest")]
        return {record.model for record in records if record is not None}

    def names(self) -> list[str]:
        """Return the names of the models that the swarm serves."""
        return [model.name for model in self.views()]

    def views(self) -> list[shapes.Model]:
        """Return every served model, by name."""
        keys = [item.key.partition("/") for item in self._store.scan(NAMESPACE)]
        names = sorted(name for name, _, kind in keys if kind == "manifest" and is_name(name))
        views = [self._view(name) for name in names]
        return [view for view in views if view is not None]

    def view(self, name: str) -> shapes.Model:
        """Return one served model. Raises NotFound."""
        view = self._view(name) if is_name(name) else None
        if view is None:
            raise NotFound(f"no model {name[:64]!r} is served", hint="`shoal models` lists them")
        return view

    def choose(self, name: str) -> str:
        """Return the name of the model that is meant; "" is the only one. Raises NotFound."""
        if name:
            return self.view(name).name
        names = self.names()
        if len(names) != 1:
            there = ", ".join(names) or "none"
            raise NotFound(
                f"which model? {len(names)} are served: {there}",
                hint="name one with --model" if names else "`shoal serve PATH` serves one",
            )
        return names[0]

    async def serve(self, request: shapes.ServeRequest) -> AsyncGenerator[shapes.ServeProgress]:
        """Split, store and place a model; yield progress until it is ready."""
        source = _source(request.path)
        name = request.name or _name_of(source)
        if not is_name(name):
            raise UsageError(f"{name[:64]!r} cannot be a model's name: letters, digits, . _ - only")
        if name in self._serving:
            raise Busy(f"model {name} is being brought into service")
        self._serving.add(name)
        try:
            yield shapes.ServeProgress("splitting", name)
            scratch, split = await self._files.split(source, name)
            yield shapes.ServeProgress("storing", name)
            manifest, model, cid = await self._files.store(scratch, name, split)
            yield shapes.ServeProgress("placing", name)
            await self._place(name, manifest, model, cid, request.nodes)
            self._answers.warm(lambda: self._served(name))
        finally:
            self._serving.discard(name)
        while True:
            view = self.view(name)
            yield shapes.ServeProgress("ready" if view.ready else "waiting", name, view)
            if view.ready:
                return
            await trio.sleep(PROGRESS_INTERVAL_S)

    async def unserve(self, name: str) -> None:
        """Take a model out of service: its hosts see it and end their workers."""
        self.view(name)
        await self._store.delete(NAMESPACE, placement_key(name))
        await self._store.delete(NAMESPACE, manifest_key(name))

    async def answer(self, name: str, prompt: Prompt, options: Options) -> Answering:
        """Begin to answer a prompt with a model. Raises ShoalError."""
        return await self._answers.start(await self._served(self.choose(name)), prompt, options)

    async def _served(self, name: str) -> Served:
        record, placement = self._records(name)
        if record is None:
            raise NotFound(f"no model {name!r} is served", hint="`shoal models` lists them")
        providers = list(providers_of(record, placement, self.peer))
        manifest = await self._files.manifest(record, providers)
        folder = await self._files.bring(
            record.model, parts_of_front(manifest), providers, lambda _: None
        )
        return Served(
            name, record.model, manifest, folder, lambda: self._ready_spans(name, record.model)
        )

    async def _place(
        self, name: str, manifest: Manifest, model: str, cid: str, nodes: int | None
    ) -> None:
        spans = place(manifest.n_layers, self._room(manifest), nodes=min(nodes or 64, STAGES_MAX))
        before = read(self._store.get(NAMESPACE, placement_key(name)), PlacementRecord)
        now_ms = self._clock.wall_ms()
        record = ModelRecord(model, cid, [self.peer], now_ms)
        placement = PlacementRecord(
            model,
            next_epoch(before, now_ms),
            [(span.peer, span.start, span.end) for span in spans],
        )
        await self._store.put(NAMESPACE, manifest_key(name), to_value(record))
        await self._store.put(NAMESPACE, placement_key(name), to_value(placement))
        _log.info("model.placed", model=name, layers=manifest.n_layers, nodes=len(spans))

    def _room(self, manifest: Manifest) -> list[Offer]:
        """Return how many of a model's blocks each member has room for."""
        room = {member.peer: _offered_bytes(member) for member in self._members() if member.alive}
        room[self.peer] = self._memory_bytes
        return [Offer(peer, blocks_in_memory(manifest, size)) for peer, size in room.items()]

    def _stage_records(self, name: str) -> dict[PeerId, StageRecord]:
        items = self._store.scan(NAMESPACE, f"{name}/stage/")
        return dict(found for found in (read_stage(name, item) for item in items) if found)

    def _ready_spans(self, name: str, model: str) -> list[Span]:
        view = self._view(name)
        return [] if view is None or view.model != model else _ready_of(view.stages)

    def _records(self, name: str) -> tuple[ModelRecord | None, PlacementRecord | None]:
        manifest = self._store.get(NAMESPACE, manifest_key(name))
        placement = self._store.get(NAMESPACE, placement_key(name))
        return read(manifest, ModelRecord), read_placement(manifest, placement)

    def _view(self, name: str) -> shapes.Model | None:
        record, placement = self._records(name)
        if record is None or placement is None:
            return None
        said = self._stage_records(name)
        stages = [
            _stage_view(span, record.model, placement.epoch, said.get(span.peer))
            for span in spans_of(placement)
        ]
        layers = max((stage.end for stage in stages), default=0)
        try:
            find_route(layers, _ready_of(stages))
            ready = layers > 0
        except NoRoute:
            ready = False
        return shapes.Model(name, record.model, layers, ready, record.created_ms, stages)


def _ready_of(stages: list[shapes.Stage]) -> list[Span]:
    """Return the spans that were placed and are ready; nothing else that a node claims to have."""
    return [
        Span(PeerId(stage.peer), stage.start, stage.end)
        for stage in stages
        if stage.state == "ready"
    ]


def _stage_view(span: Span, model: str, epoch: int, said: StageRecord | None) -> shapes.Stage:
    """Return what is to be computed where, and what the node there says about it."""
    wanted = (model, epoch, span.start, span.end)
    if said is None or (said.model, said.epoch, said.start, said.end) != wanted:
        return shapes.Stage(span.peer, span.start, span.end, "waiting")
    return shapes.Stage(
        span.peer,
        span.start,
        span.end,
        said.state,
        said.note,
        said.done_bytes,
        said.total_bytes,
    )


def _source(path: str) -> Path:
    source = Path(path).expanduser()
    if not source.is_absolute():
        raise UsageError(f"{path!r} is not an absolute path", hint="the daemon has its own folder")
    if not source.exists():
        raise UsageError(f"{path} does not exist on the daemon's machine")
    return source


def _name_of(source: Path) -> str:
    """Make a name of a path: its last part, without what a name cannot have."""
    stem = source.stem if source.suffix == ".gguf" else source.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:63].lower()


def _offered_bytes(member: MemberView) -> int:
    """Return the memory that a member offers; what another says is not trusted to make sense."""
    gib = member.offers.get("memory_gib")
    if not member.offers.get("serve") or not isinstance(gib, int | float) or not 0 < gib < 1 << 20:
        return 0
    return int(gib * GIB)


def _resolved_bytes(memory_gib: float) -> int:
    """Return the offered memory in bytes; 0 means half of what is free now."""
    if memory_gib > 0:
        return int(memory_gib * GIB)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
