"""Training runs at this node: scripts as supervised children, and the trainers that attach.

Everything of a run is in HOME/runs/NAME: config.json, train.log, metrics.jsonl, and after the end
state.f32 (parameters, then outer momentum, raw float32) with state.json beside it.
"""

import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog
import trio

from node.children import open_child
from node.run_files import how_it_ended, read_metrics, save_state
from node.run_records import (
    AttachedTrainer,
    Record,
    buffer_index,
    check_shape,
    check_weight,
    hash_of,
    round_result,
)
from node.segments import map_segment, unlink_segment
from protocols.modelsync.part import Attachment, LaneShape
from protocols.modelsync.service import ModelSync
from protocols.modelsync.wire import RunName
from shoal.runs import (
    Attach,
    Attached,
    CertificateView,
    FetchState,
    Leave,
    Metric,
    Report,
    RoundResult,
    Run,
    StartRun,
    StateAt,
    SubmitRound,
)
from wire.errors import Busy, NotFound, ShoalError, UsageError
from wire.ids import PeerId

ROUND_WAIT_S = 20.0  # seconds that one request waits for its round; the trainer then asks again
STOP_WAIT_S = 5.0  # seconds for the farewell to be written after the child has ended
RUNS_MAX = 256  # runs remembered; enough for a year of a person's training
ACTIVE = ("starting", "training")

_log = structlog.get_logger("runs")


class Runs:
    """The runs of this node, and what the control API may do with them.

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
    ) -> None:
        self._directory, self._sync, self._member = directory, sync, member
        self._env, self._traffic = env, traffic
        self._records: dict[str, Record] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise children and trainers until cancelled; cancelling ends the children."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # -- for people --------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the runs that are going on here."""
        return [r.name for r in self._records.values() if r.state in ACTIVE]

    def views(self) -> list[Run]:
        """Every run: of this node, and those that other members train."""
        here = {name: self._view(record) for name, record in self._records.items()}
        for name in self._sync.run_names():
            if name not in here:
                here[name] = Run(name, "elsewhere", members=list(self._sync.members(name)))
        return [here[name] for name in sorted(here)]

    def view(self, name: str) -> Run:
        """One run. Raises NotFound."""
        return self._view(self._record(name))

    def start(self, request: StartRun) -> Run:
        """Start a run's script. Raises UsageError, or Busy if the run is going on."""
        script = Path(request.script)
        if not script.is_file():
            raise UsageError(f"there is no script {script}")
        record = self._new_record(request.name)
        config = record.directory / "config.json"
        config.write_text(json.dumps(request.config, indent=1))
        env = {
            **self._env,
            "SHOAL_RUN_NAME": record.name,
            "SHOAL_RUN_CONFIG": str(config),
            "SHOAL_RUN_DIR": str(record.directory),
            "PYTHONUNBUFFERED": "1",
        }
        assert self._nursery is not None, "the service does not run"
        self._nursery.start_soon(self._supervise, record, script, env)
        return self._view(record)

    async def stop(self, name: str) -> Run:
        """Stop this node's part in a run; the others go on."""
        record = self._record(name)
        record.stopping = True
        if record.child is not None:
            await record.child.terminate()
            with trio.move_on_after(STOP_WAIT_S):
                await record.ended.wait()
        elif record.trainer is not None:
            await self._detach(record, record.trainer)
            self._enter(record, "stopped")
        return self._view(record)

    async def follow(self, name: str) -> AsyncGenerator[Run | Metric]:
        """Yield the run and its metrics as they come, until it ends."""
        record = self._record(name)
        yield self._view(record)
        async with record.news.read() as news:
            if record.state in ACTIVE:
                async for item in news:
                    yield item
                    if isinstance(item, Run) and item.state not in ACTIVE:
                        return

    async def metrics(self, name: str) -> list[Metric]:
        """Every line of the run's metrics.jsonl."""
        return await trio.to_thread.run_sync(read_metrics, self._record(name).directory)

    def certificates(self, name: str) -> list[CertificateView]:
        """Committed rounds, as the store has them."""
        return [
            CertificateView(
                round=c.round,
                attempt=c.attempt,
                proposer=c.proposer,
                members=list(c.members),
                weights=c.weights,
                codec=c.codec,
                base_root=c.base_root.hex(),
                result=c.result.hex(),
                signatures=len(c.signatures),
            )
            for c in self._sync.certificates(name)
        ]

    # -- for the trainer ---------------------------------------------------------------------

    async def attach(self, name: str, shape: Attach) -> Attached:
        """Map the trainer's memory, join the run, load its state if it is ahead."""
        check_shape(shape)
        record = self._records.get(name)
        if record is None or record.state not in ACTIVE:
            record = self._new_record(name)
        if record.trainer is not None:
            raise Busy(f"a trainer of run {name} is attached already (pid {record.trainer.pid})")
        exchange = map_segment(shape.exchange, shape.elements)
        states = [map_segment(segment, 2 * shape.elements) for segment in shape.states]
        try:
            pidfd = os.pidfd_open(shape.pid)
        except (OSError, OverflowError) as error:
            raise UsageError(f"there is no process {shape.pid}") from error
        since = time.monotonic()
        trainer = AttachedTrainer(shape.pid, pidfd, shape, states, self._traffic(), since)
        record.trainer, record.rounds = trainer, shape.rounds
        assert self._nursery is not None, "the service does not run"
        self._nursery.start_soon(self._watch_trainer, record, trainer)
        attachment = Attachment(
            run=name,
            lanes=(LaneShape(shape.elements, 2 * shape.elements),),
            codec=shape.wire,
            rounds=shape.rounds,
            min_members=shape.min_members,
            patience_s=shape.patience_s,
            exchange=exchange,
            settings=shape.settings,
        )
        try:
            await self._sync.attach(attachment)
            fetched = await self._sync.join(name, 0, shape.round, states[1])
        except ShoalError as error:
            await self._detach(record, trainer)
            if record.child is None:
                record.error = str(error)
                self._enter(record, "failed")
            raise
        self._enter(record, "training")
        round_, root = (fetched.round, fetched.root.hex()) if fetched else (shape.round, shape.root)
        folder = str(record.directory)
        return Attached(self._member, round_, root, fetched is not None, folder)

    async def round(self, name: str, request: SubmitRound) -> RoundResult:
        """Submit a contribution and wait a while for the round to end."""
        record, trainer = self._attached(name)
        if request.fresh:
            weight, root = check_weight(request.weight), hash_of(request.root)
            await self._sync.submit(name, 0, request.round, root, weight)
        outcome = await self._sync.outcome(name, 0, timeout_s=ROUND_WAIT_S)
        if outcome is None:
            waiting_for = [str(peer) for peer in self._sync.waiting_for(name, 0)]
            return RoundResult("waiting", request.round, waiting_for=waiting_for)
        result = round_result(request.round, outcome)
        if outcome.certificate is not None:
            trainer.last = result
            trainer.rounds_done += 1
            record.round = result.round + 1
            members = len(result.members)
            _log.info("round", run=name, round=result.round, members=members, s=result.seconds)
        return result

    async def fetch(self, name: str, request: FetchState) -> StateAt:
        """Load the run's state into the trainer's buffer."""
        _, trainer = self._attached(name)
        target = trainer.states[buffer_index(request.buffer)]
        root = hash_of(request.root) if request.root else None
        fetched = await self._sync.fetch(name, 0, target, at_least=request.at_least, root=root)
        return StateAt(fetched.round, fetched.root.hex(), request.buffer)

    def announce(self, name: str, state: StateAt) -> None:
        """Offer the state in one of the trainer's buffers to joiners."""
        record, trainer = self._attached(name)
        vector = trainer.states[buffer_index(state.buffer)]
        self._sync.announce(name, 0, state.round, hash_of(state.root), vector)
        record.round, record.root = state.round, state.root

    async def report(self, name: str, report: Report) -> Metric:
        """Add what the node knows to the trainer's figures; record them."""
        record, trainer = self._attached(name)
        last, wire = trainer.last or RoundResult("waiting", 0), self._traffic()
        eta_s = None
        if trainer.rounds_done:
            each = (time.monotonic() - trainer.since) / trainer.rounds_done
            eta_s = round(each * max(0, record.rounds - report.round), 1)
        metric = Metric(
            time_ms=time.time_ns() // 1_000_000,
            run=name,
            member=self._member,
            step=report.step,
            round=report.round,
            rounds=record.rounds,
            loss=report.loss,
            val_loss=report.val_loss,
            peers=len(last.members),
            attempt=last.attempt,
            bytes_in=last.bytes_in,
            bytes_out=last.bytes_out,
            seconds=round(last.seconds, 3),
            eta_s=eta_s,
            root=record.root,
            wire_in=wire[0] - trainer.wire_at[0],
            wire_out=wire[1] - trainer.wire_at[1],
            note=report.note,
        )
        record.metric = metric
        with (record.directory / "metrics.jsonl").open("ab") as lines:
            lines.write(msgspec.json.encode(metric) + b"\n")
        record.news.send(metric)
        return metric

    async def leave(self, name: str, request: Leave) -> Run:
        """The trainer is done; keep its state for others if it has finished the run."""
        record, trainer = self._attached(name)
        await self._detach(record, trainer)
        if record.child is None:
            self._enter(record, "finished" if request.finished else "stopped")
        return self._view(record)

    # -- inside ------------------------------------------------------------------------------

    async def _supervise(self, record: Record, script: Path, env: dict[str, str]) -> None:
        log_path, record.is_supervised = record.directory / "train.log", True
        try:
            argv = [sys.executable, str(script)]
            async with open_child(argv, env=env, log_path=log_path) as child:
                record.child = child
                status = await child.wait()
        except OSError as error:
            record.error, status = f"cannot start it: {error}", 1
        record.child = None
        if record.trainer is not None:
            await self._detach(record, record.trainer)
        if record.stopping:
            self._enter(record, "stopped")
        elif status == 0:
            self._enter(record, "finished")
        else:
            record.error = record.error or how_it_ended(status, log_path)
            self._enter(record, "failed")
        record.ended.set()

    async def _watch_trainer(self, record: Record, trainer: AttachedTrainer) -> None:
        """Free what a trainer holds when its process ends without saying so."""
        if record.trainer is not trainer:
            return  # it was refused, and its descriptor is closed, before we began
        with suppress(trio.ClosedResourceError):  # it has left by itself
            await trio.lowlevel.wait_readable(trainer.pidfd)
        if record.trainer is trainer:
            _log.warning("trainer_gone", run=record.name, pid=trainer.pid)
            await self._detach(record, trainer)
            if not record.is_supervised:
                record.error = "the trainer's process ended"
                self._enter(record, "failed")

    async def _detach(self, record: Record, trainer: AttachedTrainer) -> None:
        if record.trainer is not trainer:
            return  # somebody else did: the descriptor may have a new owner
        record.trainer = None
        trio.lowlevel.notify_closing(trainer.pidfd)
        os.close(trainer.pidfd)
        kept = None
        state = self._sync.state_of(record.name, 0)
        if state is not None:  # also of a trainer that crashed: others may need what it knew
            try:
                kept = await trio.to_thread.run_sync(save_state, record.directory, state)
            except OSError as error:  # a full disk: others lose a donor, the node nothing
                _log.warning("state_lost", run=record.name, error=str(error))
        await self._sync.leave(record.name, keep=None if kept is None else [kept])
        for segment in (trainer.shape.exchange, *trainer.shape.states):
            unlink_segment(segment)

    def _enter(self, record: Record, state: str) -> None:
        record.state = state
        _log.info("run", run=record.name, state=state, error=record.error)
        record.news.send(self._view(record))

    def _new_record(self, name: str) -> Record:
        try:
            msgspec.convert(name, RunName)
        except msgspec.ValidationError as error:
            raise UsageError(
                f"{name[:64]!r} is no name for a run",
                hint="use lower-case letters, digits, dots and dashes",
            ) from error
        old = self._records.get(name)
        if old is not None and old.state in ACTIVE:
            raise Busy(f"run {name} is going on here", hint=f"`shoal runs --stop {name}` stops it")
        if len(self._records) >= RUNS_MAX:
            raise Busy(f"{RUNS_MAX} runs are remembered", hint="restart the daemon")
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = Record(name, "starting", directory)
        self._records[name] = record
        return record

    def _record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            raise NotFound(f"there is no run {name[:64]!r} here", hint="`shoal runs` lists them")
        return record

    def _attached(self, name: str) -> tuple[Record, AttachedTrainer]:
        record = self._record(name)
        if record.trainer is None:
            raise NotFound(f"no trainer of run {name} is attached here")
        return record, record.trainer

    def _view(self, record: Record) -> Run:
        metric, child, trainer = record.metric, record.child, record.trainer
        failure = self._sync.failure_of(record.name) if trainer is not None else ""
        pid = child.pid if child is not None else trainer.pid if trainer is not None else None
        return Run(
            name=record.name,
            state="failed" if failure else record.state,
            round=record.round,
            rounds=record.rounds,
            step=metric.step if metric else 0,
            loss=metric.loss if metric else None,
            val_loss=metric.val_loss if metric else None,
            members=list(self._sync.members(record.name)),
            root=record.root,
            pid=pid,
            error=record.error or failure,
            directory=str(record.directory),
        )
