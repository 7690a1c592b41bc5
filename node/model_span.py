"""One span that this node hosts: fetched, loaded into a process, served, drained, given up."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from node.config import ServeOptions
from node.model_files import Refused
from node.model_lease import Lease
from node.model_library import Library
from node.model_workers import open_worker
from protocols.sharding.link import Link
from protocols.sharding.manifest import Manifest, memory_of_span, parts_of_front, parts_of_span
from protocols.sharding.records import ModelRecord
from protocols.sharding.service import StageService
from protocols.sharding.spans import StageInfo, Usage
from protocols.sharding.worker_wire import WorkerAnswer, worker_answer_decoder
from wire.errors import NotFound, ShoalError

RETRY_FIRST_S = 1.0  # seconds before a failed span is tried again; doubled each time
RETRY_MAX_S = 30.0
STEADY_S = 60.0  # seconds that a worker must live for the next failure to count as a first one
REFUSED_S = 120.0  # seconds that we say that we cannot have a span, before others may ask again
DRAIN_S = 20.0  # seconds for sessions to end by themselves: most answers are shorter

_log = structlog.get_logger("models")


@dataclass(frozen=True)
class Services:
    """What spans use of this node."""

    stages: StageService
    library: Library
    options: ServeOptions
    cache_for: Callable[["HostedSpan"], int]  # bytes for its sessions


class HostedSpan:
    """One span. `run` ends when it is given up."""

    def __init__(
        self,
        services: Services,
        name: str,
        record: ModelRecord,
        manifest: Manifest,
        span: tuple[int, int],
        lease: Lease,
    ) -> None:
        self.name, self.record, self.span, self.lease = name, record, span, lease
        self._services, self._manifest = services, manifest
        self._scope = trio.CancelScope()
        self._attached = False
        self.cache_bytes, self.cache_of = 0, ""  # while it is loaded; out of what, the host knows
        self._leaving = trio.Event()
        self.gone = trio.Event()
        lease.usage = self._usage

    @property
    def size_bytes(self) -> int:
        """What its weights take."""
        return memory_of_span(self._manifest, *self.span)

    @property
    def is_leaving(self) -> bool:
        """Whether it is about to be given up."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Drain it, and give it up."""
        self._leaving.set()

    def stop(self) -> None:
        """Give it up at once."""
        self._scope.cancel()

    async def run(self, *, instead_of: "HostedSpan | None", may_go: Callable[[], bool]) -> None:
        """Host until told to leave.

        `instead_of`: once all is fetched this one is drained, if it `may_go`, or else we give up.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.lease.renew)
                    nursery.start_soon(self._heed)
                    await self._keep_serving(nursery, instead_of, may_go)
                    nursery.cancel_scope.cancel()
        except Exception as error:  # the boundary of one span: a bug ends no other
            _log.error("stage.bug", model=self.name, exc_info=error)
        finally:
            await self.lease.withdraw()
            self.gone.set()

    async def _heed(self) -> None:
        """Drain when told to, then end."""
        await self._leaving.wait()
        await self.lease.say("draining")
        stages, model, start = self._services.stages, self.record.model, self.span[0]
        if self._attached:
            try:
                stages.drain(model, start)
                await stages.drained(model, start, DRAIN_S)
            except NotFound:
                pass  # its worker died meanwhile
        self._scope.cancel()

    async def _keep_serving(
        self,
        nursery: trio.Nursery,
        instead_of: "HostedSpan | None",
        may_go: Callable[[], bool],
    ) -> None:
        retry_s, failures = RETRY_FIRST_S, 0
        while True:
            began = trio.current_time()
            try:
                folder = await self._fetch()
                if instead_of is not None and not instead_of.gone.is_set():
                    if not may_go():
                        return
                    instead_of.leave()
                    await instead_of.gone.wait()
                await self._serve(folder, nursery)
            except Refused as error:
                await self._say_unless_leaving("refused", str(error))
                await trio.sleep(REFUSED_S)
                return
            except (ShoalError, OSError) as error:
                steady = trio.current_time() - began > STEADY_S
                retry_s, failures = (RETRY_FIRST_S, 1) if steady else (retry_s, failures + 1)
                _log.warning("stage.failed", model=self.name, error=str(error), retry_s=retry_s)
                # The first time it is back in seconds: nobody else needs to take it over.
                await self._say_unless_leaving("failed" if failures > 1 else "loading", str(error))
            await trio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _fetch(self) -> Path:
        library, record, lease = self._services.library, self.record, self.lease
        parts = parts_of_span(self._manifest, *self.span)
        parts += [part for part in parts_of_front(self._manifest) if part not in parts]
        lease.total_bytes = sum(part.size_bytes for part in parts)
        if lease.state != "loading":  # (a worker that died is loaded again)
            await self._say_unless_leaving("fetching")

        def progress(done_bytes: int) -> None:
            lease.done_bytes = done_bytes

        return await library.bring(record, parts, progress)

    async def _serve(self, folder: Path, nursery: trio.Nursery) -> None:
        """Load the span and answer for it until its worker is gone. Raises ShoalError then."""
        services, manifest, (start, end) = self._services, self._manifest, self.span
        await self._say_unless_leaving("loading", self.lease.note)
        self.cache_bytes = services.cache_for(self)
        arguments = [
            f"--folder={folder}",
            f"--start={start}",
            f"--end={end}",
            f"--dtype={manifest.dtype}",
            f"--device={services.options.device}",
            f"--threads={services.options.threads}",
            f"--cache-bytes={self.cache_bytes}",
        ]
        try:
            async with open_worker(
                nursery,
                "protocols.sharding.worker",
                arguments,
                worker_answer_decoder,
                log_path=services.library.files.log_path(self.name),
            ) as link:
                await self._answer(link)
        finally:
            self.cache_bytes = 0
        raise ShoalError("the worker process ended; it is started again")

    async def _answer(self, link: Link[WorkerAnswer]) -> None:
        stages, manifest, (start, end) = self._services.stages, self._manifest, self.span
        assert link.readiness is not None, "a worker is ready when its block begins"
        info = StageInfo(
            model=self.record.model,
            name=self.name,
            start=start,
            end=end,
            n_layers=manifest.n_layers,
            hidden_size=manifest.hidden_size,
            vocab_size=manifest.vocab_size,
            dtype=manifest.dtype,
            ready=link.readiness,
            cache_bytes=self.cache_bytes,
        )
        stuck = trio.Event()
        stages.attach(info, link, on_stuck=stuck.set)
        self._attached = True
        try:
            await self._say_unless_leaving("ready")
            _log.info("stage.ready", model=self.name, start=start, end=end)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when, stuck, nursery.cancel_scope)
                await link.gone.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._attached = False
            with suppress(NotFound):  # it takes itself away when the worker is gone
                stages.detach(self.record.model, start)
        if stuck.is_set():
            _log.warning("stage.stuck", model=self.name, start=start, end=end)

    async def _say_unless_leaving(self, state: str, note: str = "") -> None:
        if not self.is_leaving:
            await self.lease.say(state, note)

    def _usage(self) -> Usage | None:
        with suppress(NotFound):
            return self._services.stages.usage(self.record.model, self.span[0])
        return None


async def _end_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
