"""The library: models as content. Adds, removes, pins and verifies them; brings their parts here.

A model is known to the swarm by its record in the store (model_catalogue.py); its parts are blobs.
Who has one is whom the record names, who computes it, who is connected, and whom the DHT names. On
this node a part stays while it is pinned, while it is used, and for a while after.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import msgspec
import structlog
import trio

from node.model_catalogue import TAKEN_HINT, Catalogue
from node.model_files import MANIFEST, Blobs, ModelFiles, Progress, Refused
from node.model_jobs import Job, Jobs
from node.model_pins import Pins
from node.model_shelf import Spans, detail_of, known_model, parts_of_spans
from node.model_source import checked, parts_of
from protocols.sharding.manifest import Manifest, Part
from protocols.sharding.records import NAMESPACE, ModelRecord
from shoal import library as shapes
from wire.errors import Busy, NotFound, ShoalError, UsageError
from wire.ids import PeerId
from wire.ports import Clock, Store

LOOK_S = 30.0  # between two looks at what is to be fetched or thrown away, besides at changes
SETTLE_S = 0.2  # after a change, before the next look: whoever writes much does not keep us busy
MANIFEST_S = 20.0  # seconds to fetch a manifest, and
FIRST_S = 3.0  # at the first try: who has it is at hand, or others should not wait for it
MANIFESTS_AT_ONCE = 16  # that are asked for the first time, and as many that could not be had then

Make = Callable[[Path], Awaitable[object]]

_log = structlog.get_logger("models")


class Library:
    """Which models there are, and their parts on this node.

    `add`, `pin` and `verify` yield progress; close the generator to cancel the work.
    """

    def __init__(
        self, folder: Path, *, store: Store, blobs: Blobs, peer: PeerId, clock: Clock
    ) -> None:
        self.catalogue, self.files = Catalogue(store, peer), ModelFiles(folder, blobs)
        self._store, self._peer, self._clock = store, peer, clock
        self._pins = Pins(folder / "pins.json")
        self._jobs = Jobs()
        self._adding: set[str] = set()
        self._used: Counter[tuple[str, int, int]] = Counter()  # (model, start, end)
        self._manifests: dict[str, Manifest] = {}
        self._failed: set[str] = set()  # models whose manifest could not be had
        self._fetching: set[str] = set()
        self._first = trio.CapacityLimiter(MANIFESTS_AT_ONCE)
        self._again = trio.CapacityLimiter(MANIFESTS_AT_ONCE)
        self._news = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch manifests and what is pinned, throw away what nothing needs, until cancelled."""
        await self.files.tidy()
        self._pins.load()
        async with trio.open_nursery() as nursery, self._store.watch(NAMESPACE) as changes:
            await nursery.start(self._jobs.run)
            nursery.start_soon(self._look_often, nursery)
            nursery.start_soon(self._keep_pinned)
            task_status.started()
            async for key in changes:
                if key.endswith("/manifest"):
                    self._news.set()

    # --- parts ---------------------------------------------------------------------------------

    def record(self, name: str) -> ModelRecord:
        """Return a model that the swarm knows, or that is pinned here. Raises NotFound."""
        pin = self._pins.get(name)
        if pin is not None and self.catalogue.find(name) is None:
            return pin.record
        return self.catalogue.record(name)

    def manifest_here(self, record: ModelRecord) -> Manifest | None:
        """Return a model's manifest if it has been fetched before; asks nobody."""
        if record.model not in self._manifests:
            found = self.files.manifest_here(record.model)
            if found is None:
                return None
            self._manifests[record.model] = found
        return self._manifests[record.model]

    async def manifest(self, record: ModelRecord) -> Manifest:
        """Return a model's manifest, fetched if need be. Raises ShoalError."""
        found = self.manifest_here(record)
        if found is None:
            found = await self.files.manifest(record, self.providers(record))
            self._manifests[record.model] = found
        return found

    def providers(self, record: ModelRecord) -> list[PeerId]:
        """Return whom to ask for parts first; who else has some is found by the blobs."""
        return self.catalogue.providers(record.model, record.providers)

    async def bring(self, record: ModelRecord, parts: list[Part], progress: Progress) -> Path:
        """Have these parts in the model's folder, from whoever has them; return the folder.

        progress: told the bytes that are here. Use them within `using`, or they may be swept.
        Raises Refused if the disk has no room, NotFound, PeerUnreachable, BadMessage.
        """
        return await self.files.bring(record.model, parts, self.providers(record), progress)

    @contextmanager
    def using(self, record: ModelRecord, start: int, end: int) -> Generator[None]:
        """Keep the parts of blocks [start, end) here meanwhile (and a while longer)."""
        span = (record.model, start, end)
        self._used[span] += 1
        try:
            yield
        finally:
            self._used[span] -= 1
            self._used = +self._used  # without those that are at 0

    # --- adding and removing -------------------------------------------------------------------

    async def add(
        self, request: shapes.AddModel, *, make: Make | None = None
    ) -> AsyncGenerator[shapes.LibraryProgress]:
        """Split a model, make blobs of its parts, pin them here, and tell the swarm.

        make: writes the model into an empty folder first; the request then has a name, no source.
        A name that another model has is taken: UsageError says by whom.
        """
        source, name = checked(request, is_made=make is not None)
        if name in self._adding:
            raise Busy(f"model {name} is being added")
        self._adding.add(name)
        try:
            job = Job(name, "starting")
            steps = self._jobs.follow(job, lambda: self._add(job, source, request, make))
            async with aclosing(steps):
                async for step in steps:
                    yield step
        finally:
            self._adding.discard(name)

    async def _add(
        self, job: Job, source: str, request: shapes.AddModel, make: Make | None
    ) -> None:
        name, log_path = job.name, self.files.log_path(job.name)
        async with self.files.scratch(name) as scratch:
            if make is not None:
                job.say("exporting")
                source = str(scratch / "made")
                await make(scratch / "made")
            split = await parts_of(source, request.dtype, scratch, log_path, job.report)
            job.say("storing", sum((scratch / cut.name).stat().st_size for cut in split.cuts))
            manifest, model, cid = await self.files.store(scratch, name, split, job.progress)
            job.say("publishing")
            now_ms = self._clock.wall_ms()
            sizes = (request.hosted, request.nodes, request.replicas)
            record = ModelRecord(model, cid, [self._peer], now_ms, *sizes)
            whole = (0, manifest.n_layers)
            taken = self.catalogue.taken(name, model)
            if not taken:
                with self.using(record, *whole):
                    # Within `scratch`: until they have links here, its files keep the blobs.
                    await self.files.bring(model, manifest.parts, [], lambda _: None)
                    await self.files.manifest(record, [])
                    with trio.CancelScope(shield=True):  # what all know of is kept here
                        record = await self.catalogue.publish(name, record)
                        self._pins.put(name, record, [whole])
        if taken:
            await self.files.release(manifest.parts)
            raise UsageError(taken, hint=TAKEN_HINT)
        _log.info("model.added", model=name, layers=manifest.n_layers, id=model[:12])
        job.model = await self._view(name)

    async def remove(self, name: str, *, force: bool = False) -> shapes.Removed:
        """Make the swarm forget a model. Raises NotFound, or Refused while it is hosted."""
        record, listed = self.record(name), self.catalogue.find(name)
        hosts = {peer for peer, _ in self.catalogue.leases(name, record.model)}
        if listed is not None and (listed.hosted or hosts) and not force:
            nodes = "1 node" if len(hosts) == 1 else f"{len(hosts)} nodes"
            how = f"is hosted by {nodes}" if hosts else "is to be hosted"
            hint = (
                f"`shoal unserve {name}` (and `shoal unhost` on nodes told to host it), or --force"
            )
            raise Refused(f"model {name} {how}", hint=hint)
        await self.catalogue.delete(name)
        self._pins.drop(name)
        return shapes.Removed(name, await self._sweep())

    # --- pinning and verifying -----------------------------------------------------------------

    async def pin(
        self, name: str, request: shapes.PinModel
    ) -> AsyncGenerator[shapes.LibraryProgress]:
        """Fetch parts and keep them: the swarm cannot lose them while this node lives."""
        record = self.record(name)
        job = Job(name, "fetching")

        async def work() -> None:
            manifest = await self.manifest(record)
            end = manifest.n_layers if request.end is None else request.end
            if not 0 <= request.start < end <= manifest.n_layers:
                raise UsageError(f"no blocks: {request.start}:{end} of {manifest.n_layers}")
            span = (request.start, end)
            self._pins.put(name, record, [span])
            parts = parts_of_spans(manifest, [span])
            job.say("fetching", sum(part.size_bytes for part in parts))
            await self.bring(record, parts, job.progress)
            is_whole = self._pinned(name, record) == [(0, manifest.n_layers)]
            await self.catalogue.provide(name, record.model, is_provider=is_whole)
            job.model = await self._view(name)

        async with aclosing(self._jobs.follow(job, work)) as steps:
            async for step in steps:
                yield step

    async def unpin(self, name: str) -> shapes.KnownModel:
        """Let the parts go when nothing here uses them. Raises NotFound."""
        record, view = self.record(name), await self._view(name)
        self._pins.drop(name)
        await self.catalogue.provide(name, record.model, is_provider=False)
        if self.catalogue.find(name) is None:
            await self._sweep()
            return msgspec.structs.replace(view, pinned=[], here=[], here_bytes=0)
        return await self._view(name)

    async def verify(self, name: str) -> AsyncGenerator[shapes.LibraryProgress]:
        """Hash the parts that are here; repair bad ones from other nodes."""
        record = self.record(name)
        job = Job(name, "verifying")

        async def work() -> None:
            manifest = await self.manifest(record)
            here = self.files.names_here(record.model)
            parts = [part for part in manifest.parts if part.name in here]
            job.say("verifying", sum(part.size_bytes for part in parts))
            with self.using(record, 0, manifest.n_layers):
                for part in parts:
                    if not await self.files.is_good(record.model, part):
                        job.bad.append(await self._repaired(record, part))
                    job.checked += 1
                    job.progress(job.done_bytes + part.size_bytes)
            job.model = await self._view(name)

        async with aclosing(self._jobs.follow(job, work)) as steps:
            async for step in steps:
                yield step

    async def _repaired(self, record: ModelRecord, part: Part) -> shapes.BadPart:
        _log.warning("model.part_bad", model=record.model[:12], part=part.name, cid=part.cid)
        try:
            await self.files.repair(record.model, part, self.providers(record))
        except ShoalError as error:
            return shapes.BadPart(part.name, part.cid, repaired=False, why=str(error)[:300])
        return shapes.BadPart(part.name, part.cid, repaired=True)

    # --- showing -------------------------------------------------------------------------------

    async def views(self) -> list[shapes.KnownModel]:
        """Return all models that the swarm knows or that are pinned here, by name."""
        names = {*self.catalogue.records(), *(name for name, _ in self._pins.all())}
        found: list[shapes.KnownModel] = []
        for name in sorted(names):
            with suppress(NotFound):  # forgotten meanwhile
                found.append(await self._view(name))
        return found

    async def view(self, name: str) -> shapes.ModelDetail:
        """Return one with its parts and hosts. Raises NotFound, ShoalError."""
        record = self.record(name)
        manifest = await self.manifest(record)
        return detail_of(
            await self._view(name),
            manifest,
            here=self.files.names_here(record.model),
            pinned=self._pinned(name, record),
            leases=self.catalogue.leases(name, record.model),
        )

    async def _view(self, name: str) -> shapes.KnownModel:
        record = self.record(name)
        return known_model(
            name,
            record,
            self.manifest_here(record),
            here=await trio.to_thread.run_sync(self.files.names_here, record.model),
            pinned=self._pinned(name, record),
            leases=self.catalogue.leases(name, record.model),
            listed=self.catalogue.find(name) is not None,
        )

    def _pinned(self, name: str, record: ModelRecord) -> Spans:
        pin = self._pins.get(name)
        return pin.spans if pin is not None and pin.record.model == record.model else []

    # --- keeping -------------------------------------------------------------------------------

    async def _look_often(self, nursery: trio.Nursery) -> None:
        while True:
            self._news = trio.Event()
            self._fetch_manifests(nursery)
            await self._sweep()
            with trio.move_on_after(LOOK_S):
                await self._news.wait()
                await trio.sleep(SETTLE_S)

    def _fetch_manifests(self, nursery: trio.Nursery) -> None:
        """Ask for those that are lacking; nobody waits for them, so none keeps another waiting."""
        records = self.catalogue.records().values()
        lacking = {r.model: r for r in records if self.manifest_here(r) is None}
        self._failed &= lacking.keys()
        for model, record in lacking.items():
            if model not in self._fetching:
                self._fetching.add(model)
                nursery.start_soon(self._fetch_manifest, record)

    async def _fetch_manifest(self, record: ModelRecord) -> None:
        is_first = record.model not in self._failed
        try:
            async with self._first if is_first else self._again:
                with trio.move_on_after(FIRST_S if is_first else MANIFEST_S):
                    await self.manifest(record)
                    return
        except (ShoalError, OSError) as error:
            _log.debug("model.no_manifest", id=record.model[:12], error=str(error))
        finally:
            self._fetching.discard(record.model)
        if record.model not in self._failed:  # once more at once, then with every look
            self._failed.add(record.model)
            self._news.set()

    async def _keep_pinned(self) -> None:
        """Fetch again what was pinned and is not here: after an interruption, or a full disk."""
        while True:
            for name, pin in self._pins.all():
                try:
                    manifest = await self.manifest(pin.record)
                    here = self.files.names_here(pin.record.model)
                    for part in parts_of_spans(manifest, pin.spans):
                        if part.name not in here and self._pins.get(name) is pin:
                            await self.bring(pin.record, [part], lambda _: None)
                except (ShoalError, OSError) as error:
                    _log.warning("model.not_kept", model=name, error=str(error))
            await trio.sleep(LOOK_S)

    async def _sweep(self) -> int:
        """Throw away what nothing needs; return the bytes freed."""
        spans: dict[str, set[tuple[int, int]]] = {}
        for record in self.catalogue.records().values():
            spans.setdefault(record.model, set())
        for _, pin in self._pins.all():
            spans.setdefault(pin.record.model, set()).update(pin.spans)
        for model, start, end in self._used:
            spans.setdefault(model, set()).add((start, end))
        needed: dict[str, set[str]] = {}
        for model, own in spans.items():
            manifest = self._manifests.get(model) or self.files.manifest_here(model)
            if manifest is not None:
                self._manifests[model] = manifest
                needed[model] = {MANIFEST, *(p.name for p in parts_of_spans(manifest, own))}
        self._manifests = {model: self._manifests[model] for model in needed}
        return await self.files.sweep(set(spans), needed)
