"""Training runs at this node: scripts as supervised children, and what people ask about runs.

Everything of a run is in HOME/runs/NAME: run.json and config.json, train.log, metrics.jsonl,
certificates.jsonl, and checkpoint/. Trainers are the matter of node.trainers.
"""

import sys
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path

import trio

from node.checkpoints import Exported as Written
from node.checkpoints import export_state
from node.children import open_child
from node.metrics import RunFigures
from node.run_files import CERTIFICATES, METRICS, begin_anew, how_it_ended, read_lines
from node.run_models import export_model
from node.run_records import ACTIVE, Record, Records, load_start, save_start
from node.run_views import certificate_view, contribution_view, merged, run_figures
from node.trainers import Trainers
from protocols.modelsync.service import ModelSync
from shoal.runs import (
    CertificateView,
    Contribution,
    Exported,
    Metric,
    Run,
    StartRun,
    run_root,
)
from wire.errors import UsageError
from wire.ids import PeerId
from wire.ports import OffLoop
from wire.threads import Threads

STOP_WAIT_S = 5.0  # seconds for the farewell to be written after the child has ended
LAST_BYTES = 256 * 1024  # of certificates.jsonl, for the last ones: thirty of 64 members
FILE_THREADS = 2  # checkpoints written and read at a time: disks like few


class Runs:
    """The runs of this node, and what people may do with them; `trainers` for their trainers.

    `traffic` returns the bytes that came in and went out over the node's sockets so far.
    """

    def __init__(
        self,
        directory: Path,
        sync: ModelSync,
        *,
        member: PeerId,
        env: dict[str, str],
        traffic: Callable[[], tuple[int, int]],
        off_loop: OffLoop | None = None,
    ) -> None:
        self._sync, self._env, self._off_loop = sync, env, off_loop or Threads(FILE_THREADS)
        self._records, self._member = Records(directory, sync), member
        self.trainers = Trainers(
            self._records, sync, member=member, traffic=traffic, off_loop=self._off_loop
        )
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise children and trainers until cancelled; cancelling ends the children."""
        async with trio.open_nursery() as nursery:
            self._nursery = self.trainers.nursery = nursery
            self._records.recall()
            task_status.started()
            await trio.sleep_forever()

    # -- looking -----------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the runs that are going on here."""
        return self._records.names()

    def alone(self) -> list[str]:
        """Names of the runs going on here of which we know no other member."""
        return [name for name in self.names() if {*self._sync.members(name)} <= {self._member}]

    def views(self) -> list[Run]:
        """Every run: of this node, and those that other members train."""
        return self._records.views()

    def view(self, name: str) -> Run:
        """One run. Raises NotFound."""
        return self._records.view(self._records.get(name))

    async def follow(self, name: str) -> AsyncGenerator[Run | Metric]:
        """Yield the run and its metrics as they come, until it ends."""
        record = self._records.get(name)
        yield self._records.view(record)
        async with record.news.read() as news:
            if record.state in ACTIVE:
                async for item in news:
                    yield item
                    if isinstance(item, Run) and item.state not in ACTIVE:
                        return

    async def metrics(self, name: str) -> list[Metric]:
        """Every line of the run's metrics.jsonl."""
        path = self._records.get(name).directory / METRICS
        return await trio.to_thread.run_sync(read_lines, path, Metric)

    async def certificates(self, name: str, *, last: int = 0) -> list[CertificateView]:
        """Committed rounds by lane: all that this node was in, and the last ones in the store.

        last: so many of the latest only, of all lanes; what asks again and again needs no more.
        """
        record, found = self._records.find(name), dict[tuple[int, int], CertificateView]()
        if record is not None:
            path = record.directory / CERTIFICATES
            tail_bytes = LAST_BYTES if last else None
            ours = await trio.to_thread.run_sync(read_lines, path, CertificateView, tail_bytes)
            found = {(c.lane, c.round): c for c in ours}
        for certificate in self._sync.certificates(name):
            found[certificate.lane, certificate.round] = certificate_view(certificate)
        if last:
            return sorted(found.values(), key=lambda c: (c.round, c.lane))[-last:]
        return [found[key] for key in sorted(found)]

    def contributions(self, name: str) -> list[Contribution]:
        """What each peer has done for a run, as this node has seen it."""
        return self._table(self._records.get(name))

    def figures(self) -> list[RunFigures]:
        """What Prometheus is shown of each run."""
        return [
            run_figures(record, self._records.view(record), self._table(record))
            for record in self._records.here()
        ]

    # -- doing -------------------------------------------------------------------------------

    def start(self, request: StartRun) -> Run:
        """Start a run's script. Raises UsageError, or Busy if the run is going on."""
        self._check_script(request)
        record = self._records.new(request.name)
        record.before = []
        return self._launch(record, request, is_anew=True)

    def resume(self, name: str) -> Run:
        """Start a run's script again, as it was started; it goes on from the checkpoint.

        Raises NotFound, UsageError, or Busy if the run is going on.
        """
        request = load_start(self._records.get(name).directory)
        self._check_script(request)
        return self._launch(self._records.new(name), request)

    async def stop(self, name: str) -> Run:
        """Stop this node's part in a run; the others go on."""
        record = self._records.get(name)
        record.stopping = True
        if record.child is not None or record.is_supervised:
            if record.child is not None:
                await record.child.terminate()
            with trio.move_on_after(STOP_WAIT_S):
                await record.ended.wait()
        elif record.trainer is not None:
            await self.trainers.detach(record, record.trainer)
            self._records.enter(record, "stopped")
        return self._records.view(record)

    async def drain(self) -> None:
        """The daemon is about to end: let what trainers have announced be on disk."""
        for record in self._records.here():
            if record.trainer is not None:
                await record.trainer.checkpoints.flush()

    async def export(self, name: str, path: Path) -> Exported:
        """Write the model of a run's checkpoints. Raises NotFound, UsageError, BadFile."""
        record = self._records.get(name)
        if not path.is_absolute() or not path.name:
            raise UsageError(f"{path} is not an absolute path of a file")
        work = partial(export_state, record.directory, name, path)
        return await self._export(record, path, work)

    async def export_model(self, name: str, folder: Path) -> Exported:
        """Write the model of a run's checkpoints as a Hugging Face folder.

        Raises UsageError if its trainer did not say what model it is, else what `export` raises.
        """
        record = self._records.get(name)
        work = partial(export_model, record.directory, name, folder)
        return await self._export(record, folder, work)

    async def _export(self, record: Record, path: Path, work: Callable[[], Written]) -> Exported:
        if record.trainer is not None:
            await record.trainer.checkpoints.flush()
        try:
            done = await self._off_loop(work)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        root = run_root([root.hex() for root in done.roots])
        return Exported(str(done.path), done.rounds, root, done.tensors)

    # -- inside ------------------------------------------------------------------------------

    def _table(self, record: Record) -> list[Contribution]:
        now = [contribution_view(each) for each in self._sync.contributions(record.name)]
        return merged(record.before, now)

    @staticmethod
    def _check_script(request: StartRun) -> None:
        if not Path(request.script).is_file():
            raise UsageError(f"there is no script {request.script}")

    def _launch(self, record: Record, request: StartRun, *, is_anew: bool = False) -> Run:
        try:
            if is_anew:
                begin_anew(record.directory)
            config = save_start(record.directory, request)
        except OSError as error:
            record.error = f"cannot write in {record.directory}: {error}"
            self._records.enter(record, "failed")
            raise UsageError(record.error) from error
        record.is_supervised = True
        env = {
            **self._env,
            "SHOAL_RUN_NAME": record.name,
            "SHOAL_RUN_CONFIG": str(config),
            "SHOAL_RUN_DIR": str(record.directory),
            "PYTHONUNBUFFERED": "1",
        }
        assert self._nursery is not None, "the service does not run"
        self._nursery.start_soon(self._supervise, record, Path(request.script), env)
        return self._records.view(record)

    async def _supervise(self, record: Record, script: Path, env: dict[str, str]) -> None:
        log_path = record.directory / "train.log"
        try:
            argv = [sys.executable, str(script)]
            async with open_child(argv, env=env, log_path=log_path) as child:
                record.child = child
                if record.stopping:  # before it was there
                    await child.terminate()
                status = await child.wait()
        except OSError as error:
            record.error, status = f"cannot start it: {error}", 1
        record.child = None
        if record.trainer is not None:
            await self.trainers.detach(record, record.trainer)
        if record.stopping:
            self._records.enter(record, "stopped")
        elif status == 0:
            self._records.enter(record, "finished")
        else:
            record.error = record.error or how_it_ended(status, log_path)
            self._records.enter(record, "failed")
        record.ended.set()
