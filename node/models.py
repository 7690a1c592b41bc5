"""Served models on this node: hosts spans, brings models into service, answers prompts.

Wires the store, blobs, RPC and membership to `protocols.sharding`: the library (which models there
are), hosting (which spans are computed here), answers, and audits of others.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import structlog
import trio
from msgspec import structs

from node.answering import Options, Served
from node.config import ServeOptions
from node.model_answers import Answering, Answers, Prompt
from node.model_audits import Audits
from node.model_files import Blobs, Refused
from node.model_host import Hosting, shape_of
from node.model_library import Library
from node.model_members import MemberView
from node.model_offer import Offering
from node.model_views import candidates, model_view
from node.model_wishes import Wishes
from protocols.sharding.generate import EntryServices
from protocols.sharding.manifest import parts_of_front
from protocols.sharding.placement import Wish
from protocols.sharding.records import NAMESPACE, ModelRecord
from protocols.sharding.route import Candidate
from protocols.sharding.service import StageService
from shoal import library as library_shapes
from shoal import models as shapes
from wire.errors import NotFound, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Clock, OffLoop, Rpc, Store

AUDITED_TOKENS = 24  # of the answer to an audit that somebody asks for
MIB = 1024 * 1024
PROGRESS_INTERVAL_S = 0.5  # between two looks at the stages while a model comes into service
MET_S = 5.0  # for the store to be told of a model by those who host it
TIDY_INTERVAL_S = 5.0  # between two looks for tokenizers of models that are there no more

_log = structlog.get_logger("models")


class Models:
    """The part of the daemon that serves models. Public parts: `library`, `stages`, `offering`."""

    def __init__(
        self,
        *,
        folder: Path,
        store: Store,
        blobs: Blobs,
        rpc: Rpc,
        signer: Signer,
        members: Callable[[], list[MemberView]],
        clock: Clock,
        options: ServeOptions,
        rtt_s: Callable[[PeerId], float | None],
        off_loop: OffLoop,
    ) -> None:
        """`rtt_s` is the measured round trip to a connected peer, None if there is none."""
        self.peer = rpc.peer
        self.options = options
        self._rtt_s, self._store = rtt_s, store
        self.look_for: Callable[[str], Awaitable[object]] = _nowhere  # a model nobody told us of
        self.offering = Offering(options)
        self.library = Library(folder, store=store, blobs=blobs, peer=rpc.peer, clock=clock)
        self.stages = StageService(rpc, signer, clock=clock)
        self._wishes = Wishes(folder / "wishes.json")
        self._hosting = Hosting(
            store=store,
            stages=self.stages,
            library=self.library,
            offering=self.offering,
            wishes=self._wishes,
            members=members,
            clock=clock,
            options=options,
            rtt_s=rtt_s,
            off_loop=off_loop,
        )
        self.audits = Audits(
            stages=self.stages,
            store=store,
            clock=clock,
            candidates=self.candidates,
            share=options.audit,
            ask=self._ask,
        )
        services = EntryServices(self.stages, self, self.audits.finished)
        self._answers = Answers(services, self.library.files.log_path)

    def offers(self) -> dict[str, object]:
        """Return what this node's membership says it offers."""
        return self.offering.told()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host spans, answer prompts and audit until cancelled."""
        async with trio.open_nursery() as nursery:
            parts = (self.library, self.stages, self._answers, self._hosting, self.audits)
            for part in parts:
                await nursery.start(part.run)
            nursery.start_soon(self._tidy_often)
            task_status.started()

    async def leave(self) -> None:
        """Take back all leases: this node stops."""
        await self._hosting.leave()

    async def _tidy_often(self) -> None:
        while True:
            self._answers.keep({record.model for record in self._records().values()})
            await trio.sleep(TIDY_INTERVAL_S)

    def _records(self) -> dict[str, ModelRecord]:
        """Return the models in service: those that the swarm shall host, or that somebody hosts."""
        records = self.library.catalogue.records()
        return {
            name: record
            for name, record in records.items()
            if record.hosted or self._hosting.leases(name, record.model)
        }

    # --- looking -------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the models in service."""
        return sorted(self._records())

    def hosted(self) -> list[str]:
        """Return the names of the models of which this node hosts blocks."""
        return self._hosting.names()

    def without_hosts(self) -> list[str]:
        """Return the names of models that shall be hosted, and of which we know nobody who does."""
        records = self._records().items()
        return [name for name, one in records if not self._hosting.leases(name, one.model)]

    def views(self) -> list[shapes.Model]:
        """Return every model in service, by name."""
        return [self._view(name, record) for name, record in sorted(self._records().items())]

    def view(self, name: str) -> shapes.Model:
        """Return one model that the swarm knows, in service or not. Raises NotFound."""
        return self._view(name, self._record(name))

    def choose(self, name: str) -> str:
        """Return the name of the model that is meant; "" is the only one. Raises NotFound."""
        if name:
            self._record(name)
            return name
        names = self.names()
        if not names:
            raise NotFound("no model is served", hint="`shoal serve PATH` serves one")
        if len(names) > 1:
            there = ", ".join(names)
            hint = "name one, in the shell with --model (`shoal chat NAME`)"
            raise NotFound(f"which model? {len(names)} are served: {there}", hint=hint)
        return names[0]

    def traces(self, name: str) -> list[shapes.Trace]:
        """Return how the last answers of a model came about, the newest first."""
        return self._answers.traces(name)

    def candidates(self, name: str) -> list[Candidate]:
        """Return the spans that are ready now, as routing sees them, with delays and penalties."""
        record = self.library.catalogue.find(name)
        manifest = self.library.manifest_here(record) if record is not None else None
        if record is None or manifest is None:
            return []
        return candidates(
            self._hosting.leases(name, record.model),
            layers=manifest.n_layers,
            entry=self.peer,
            rtt_s=self._rtt_s,
            penalty=self.audits.penalty,
        )

    def _record(self, name: str) -> ModelRecord:
        record = self.library.catalogue.find(name)
        if record is None:
            hint = "`shoal map` draws those served, `shoal model ls` lists all"
            raise NotFound(f"there is no model {name[:64]!r}", hint=hint)
        return record

    def _view(self, name: str, record: ModelRecord) -> shapes.Model:
        leases = self._hosting.leases(name, record.model)
        return model_view(name, record, self.library.manifest_here(record), leases)

    # --- serving -------------------------------------------------------------------------------

    async def serve(self, request: shapes.ServeRequest) -> AsyncGenerator[shapes.ServeProgress]:
        """Add a model that the swarm shall host, or have it host one that it knows; yield progress
        until every block is ready somewhere.
        """
        name = request.path
        if self.library.catalogue.find(name) is not None:
            await self.library.catalogue.change(
                name, hosted=True, nodes=request.nodes, replicas=request.replicas
            )
        else:
            adding = library_shapes.AddModel(
                source=request.path,
                name=request.name,
                hosted=True,
                nodes=request.nodes or 0,
                replicas=1 if request.replicas is None else request.replicas,
            )
            async with aclosing(self.library.add(adding)) as steps:
                async for step in steps:
                    name = step.name
                    if step.state != "done":
                        yield shapes.ServeProgress(step.state, name)
        self._answers.warm(lambda: self._served(name))
        while True:
            view = self.view(name)
            yield shapes.ServeProgress("ready" if view.ready else "waiting", name, view)
            if view.ready:
                return
            await trio.sleep(PROGRESS_INTERVAL_S)

    async def unserve(self, name: str) -> None:
        """Take a model out of service; it stays in the library. Raises NotFound.

        Nodes whose people told them to host it go on.
        """
        self._record(name)
        await self.library.catalogue.change(name, hosted=False)

    async def host(self, name: str, wish: Wish) -> shapes.Model:
        """Host a span of a model here from now on, also after a restart.

        Raises NotFound, UsageError if there are no such blocks, Refused if there is no room.
        """
        record = self._record(name)
        manifest = await self.library.manifest(record)
        end = wish.end or manifest.n_layers
        if not 0 <= wish.start < end <= manifest.n_layers:
            raise UsageError(f"no blocks: {wish.start}:{end} of {manifest.n_layers}")
        memory_bytes = wish.memory_bytes or self.offering.memory_bytes
        room_bytes = self.offering.without_cache(memory_bytes)
        shape = shape_of(record.model, manifest)
        least = shape.bytes_of(wish.start, wish.end) if wish.end else min(shape.block_bytes)
        if least > room_bytes:
            raise Refused(
                f"{least / MIB:.1f} MiB are needed, there is room for {room_bytes / MIB:.1f} MiB",
                hint="--memory names another amount; a part of it is kept for sessions",
            )
        wish = structs.replace(wish, model=record.model)
        await trio.to_thread.run_sync(self._wishes.put, name, wish)
        self._hosting.look_soon()
        return self.view(name)

    async def unhost(self, name: str) -> shapes.Model:
        """Host nothing of a model here any more, also if the swarm asks. Raises NotFound."""
        self._record(name)
        await trio.to_thread.run_sync(self._wishes.put, name, Wish(never=True))
        self._hosting.look_soon()
        return self.view(name)

    async def answer(self, name: str, prompt: Prompt, options: Options) -> Answering:
        """Begin to answer a prompt with a model. Raises ShoalError."""
        if options.codec == "auto":
            options = replace(options, codec=self.options.codec)
        if name and self.library.catalogue.find(name) is None:
            await self._find(name)
        return await self._answers.start(await self._served(self.choose(name)), prompt, options)

    async def _find(self, name: str) -> None:
        """Meet somebody who hosts a model; the store brings its record, or it is not there."""
        if not await self.look_for(name):
            return
        with trio.move_on_after(MET_S):
            async with self._store.watch(NAMESPACE) as changes:
                while self.library.catalogue.find(name) is None:
                    await anext(changes)

    async def _ask(self, name: str) -> None:
        """Have a model answer something short and new, for an audit."""
        prompt = Prompt(text=f"{secrets.token_hex(4)}: a model that is split over several machines")
        answering = await self.answer(name, prompt, Options(max_tokens=AUDITED_TOKENS))
        async with aclosing(answering.read()) as pieces:
            async for _ in pieces:
                pass

    async def _served(self, name: str) -> Served:
        record = self._record(name)
        manifest = await self.library.manifest(record)
        folder = await self.library.bring(record, parts_of_front(manifest), lambda _: None)
        return Served(name, record.model, manifest, folder)


async def _nowhere(_: str) -> int:
    return 0
