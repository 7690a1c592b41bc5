"""Trainers that are attached to runs of this node: what they may ask, and their end.

Numbers pass through shared memory; what comes here is small. Certificates of the rounds that a
trainer took part in go to HOME/runs/NAME/certificates.jsonl, figures to metrics.jsonl, states to
checkpoint/ (node.checkpoints).
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial

import structlog
import trio

from node.checkpoints import Checkpoints, Layout, Shape, Slice, load_checkpoint, save_layout
from node.run_files import (
    CERTIFICATES,
    METRICS,
    append_line,
    kept_states,
    save_contributions,
)
from node.run_records import ACTIVE, Record, Records
from node.run_views import certificate_view, contribution_view, merged
from node.trainer_part import (
    AttachedTrainer,
    check_weight,
    hash_of,
    open_trainer,
    round_result,
)
from protocols.modelsync.download import Progress
from protocols.modelsync.part import Wish
from protocols.modelsync.service import ModelSync
from protocols.modelsync.verify_wire import Case
from shoal.runs import (
    AskTurn,
    Attach,
    Attached,
    CertificateView,
    Checked,
    Duty,
    FetchState,
    Leave,
    Metric,
    Report,
    RoundResult,
    Run,
    StateAt,
    SubmitRound,
    TurnAnswer,
)
from wire.errors import Busy, ShoalError, UsageError
from wire.ids import PeerId
from wire.ports import OffLoop

ROUND_WAIT_S = 20.0  # seconds that one request waits at most; the trainer then asks again
LOOK_S = 0.1  # seconds between two looks at who is there

_log = structlog.get_logger("runs")


class Trainers:
    """The trainers' side of the control API. `nursery` is that of the runs, while they run."""

    def __init__(
        self,
        records: Records,
        sync: ModelSync,
        *,
        member: PeerId,
        traffic: Callable[[], tuple[int, int]],
        off_loop: OffLoop,
    ) -> None:
        self._records, self._sync, self._member = records, sync, member
        self._traffic, self._off_loop = traffic, off_loop
        self.nursery: trio.Nursery | None = None

    # -- coming and going --------------------------------------------------------------------

    async def attach(self, name: str, shape: Attach) -> Attached:
        """Map the trainer's memory, join the run, load the state that is furthest ahead."""
        record = self._records.find(name)
        if record is not None and record.trainer is not None:
            raise Busy(f"a trainer of run {name} is attached already (pid {record.trainer.pid})")
        if record is None or record.state not in ACTIVE:
            record = self._records.new(name)
        checkpoints = Checkpoints(record.directory, off_loop=self._off_loop)
        trainer = open_trainer(shape, checkpoints, wire_at=self._traffic(), now=time.monotonic())
        self._take(record, trainer)
        assert self.nursery is not None, "the service does not run"
        self.nursery.start_soon(self._watch, record, trainer)
        try:
            await self._sync.attach(trainer.attachment(name))
            await self._save_layout(record, shape)
            source, lanes = "new", list[StateAt]()
            for lane in range(len(shape.lanes)):
                came_from, at = await self._enter_lane(record, trainer, lane)
                lanes.append(at)
                source = max(source, came_from, key=("new", "checkpoint", "peers").index)
        except BaseException as error:  # also when the trainer has hung up in a long download
            with trio.CancelScope(shield=True):
                await self.detach(record, trainer)
            if record.child is None:
                gone = "it went away before it was attached"
                record.error = str(error) if isinstance(error, ShoalError) else gone
                self._records.enter(record, "failed")
            raise
        self._records.enter(record, "training")
        folder, members = str(record.directory), self._members(name)
        return Attached(self._member, lanes, source, folder, members)

    async def leave(self, name: str, request: Leave) -> Run:
        """The trainer is done; keep its states for others if it has finished the run."""
        record, trainer = self._records.attached(name)
        await self.detach(record, trainer)
        if record.child is None:
            self._records.enter(record, "finished" if request.finished else "stopped")
        return self._records.view(record)

    async def detach(self, record: Record, trainer: AttachedTrainer) -> None:
        """Let a trainer go, also one that crashed: others may need what it knew."""
        if record.trainer is not trainer:
            return  # somebody else did: the descriptor may have a new owner
        record.trainer = None
        trainer.close()
        name, lanes = record.name, range(len(trainer.shape.lanes))
        await trainer.checkpoints.flush()
        states = [state for lane in lanes if (state := self._sync.state_of(name, lane))]
        kept = None
        if len(states) == len(lanes):
            kept = await self._off_loop(partial(kept_states, record.directory, states))
        table = [contribution_view(each) for each in self._sync.contributions(name)]
        await self._sync.leave(name, keep=kept)
        record.before = merged(record.before, table)
        try:
            save_contributions(record.directory, record.before)
        except OSError as error:  # a full disk: the table is shown until the daemon ends
            _log.warning("contributions_lost", run=name, error=str(error))

    def _members(self, name: str) -> list[str]:
        """Who is in a run by lease, ourselves included."""
        return sorted({*map(str, self._sync.members(name)), str(self._member)})

    def _take(self, record: Record, trainer: AttachedTrainer) -> None:
        shape = trainer.shape
        record.trainer, record.rounds, record.error = trainer, shape.rounds, ""
        record.strategy, record.wire = shape.strategy, shape.wire
        record.settings, record.aggregator = shape.settings, shape.aggregator
        record.at, record.roots = [0] * len(shape.lanes), list(shape.roots)

    async def _watch(self, record: Record, trainer: AttachedTrainer) -> None:
        """Write checkpoints; free what a trainer holds when its process ends without saying so."""
        if record.trainer is not trainer:
            return  # it was refused, and its descriptor is closed, before we began
        with trainer.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trainer.checkpoints.run)
                with suppress(trio.ClosedResourceError):  # it has left by itself
                    await trio.lowlevel.wait_readable(trainer.pidfd)
                nursery.cancel_scope.cancel()
        if record.trainer is trainer:
            _log.warning("trainer_gone", run=record.name, pid=trainer.pid)
            await self.detach(record, trainer)
            if not record.is_supervised:
                record.error = "the trainer's process ended"
                self._records.enter(record, "failed")

    async def _enter_lane(
        self, record: Record, trainer: AttachedTrainer, lane: int
    ) -> tuple[str, StateAt]:
        """Find the latest state of a lane: the trainer's, the checkpoint's or the others'."""
        source, at = "new", StateAt(0, trainer.shape.roots[lane], 0, lane)
        name, target = record.name, trainer.state(lane, 1)
        load = partial(load_checkpoint, record.directory, name, lane, target)
        saved = await self._off_loop(load)
        if saved is not None and saved.round > 0:
            self._sync.adopt(name, lane, saved.certificate)
            source, at = "checkpoint", StateAt(saved.round, saved.root.hex(), 1, lane)
        with self._loading(record, lane, len(trainer.shape.lanes)) as progress:
            fetched = await self._sync.join(name, lane, at.round, target, progress)
        if fetched is not None:
            source, at = "peers", StateAt(fetched.round, fetched.root.hex(), 1, lane)
        return source, at

    @contextmanager
    def _loading(self, record: Record, lane: int = 0, lanes: int = 1) -> Generator[Progress]:
        """Show how much of the lanes' states is here, to those who follow the run."""

        def progress(right: int, chunks: int) -> None:
            share = (lane + right / max(1, chunks)) / lanes
            if record.loading is None or int(100 * share) != int(100 * record.loading):
                record.loading = share
                self._records.tell(record)

        try:
            yield progress
        finally:
            record.loading = None

    async def _save_layout(self, record: Record, shape: Attach) -> None:
        if not shape.layout:
            return
        tensors = [Shape(tensor.name, tensor.shape) for tensor in shape.layout]
        layout = Layout(tensors, [Slice(lane.start, lane.stop) for lane in shape.lanes])
        try:
            await self._off_loop(partial(save_layout, record.directory, layout))
        except OSError as error:
            raise UsageError(f"cannot write in {record.directory}: {error}") from error

    # -- rounds and states -------------------------------------------------------------------

    async def round(self, name: str, request: SubmitRound) -> RoundResult:
        """Submit a contribution and wait a while for the round to end."""
        record, trainer = self._records.attached(name)
        lane = request.lane
        if request.fresh:
            await self._sync.submit(
                name,
                lane,
                request.round,
                hash_of(request.root),
                check_weight(request.weight),
                topology=request.topology,
                wish=Wish(request.wish_codec, request.wish_every),
                is_new=request.is_new,
                elements=request.elements,
            )
        wait_s = min(max(request.wait_s, 0.0), ROUND_WAIT_S)
        outcome = await self._sync.outcome(name, lane, timeout_s=wait_s) if wait_s else None
        if outcome is None:
            waiting_for = [str(peer) for peer in self._sync.waiting_for(name, lane)]
            if wait_s:
                self._records.tell(record)
            return RoundResult("waiting", request.round, waiting_for=waiting_for, lane=lane)
        duties = [
            Duty(str(duty.case.target), duty.case.round, lane)
            for duty in self._sync.duties(name, lane)
        ]
        result = round_result(lane, request.round, outcome, duties)
        if outcome.certificate is not None:
            trainer.last[lane] = result
            trainer.rounds_done += 1
            record.totals.count(result)
            record.at[lane] = result.round + 1
            self._write(record, CERTIFICATES, certificate_view(outcome.certificate))
            members = len(result.members)
            _log.info(
                "round", run=name, lane=lane, round=result.round, members=members, s=result.seconds
            )
        return result

    async def turn(self, name: str, request: AskTurn) -> TurnAnswer:
        """Of a sampled run: wait a while until it is known whether we make this round."""
        _, trainer = self._records.attached(name)
        lane, round_, is_ours = request.lane, request.round, None
        with trio.move_on_after(ROUND_WAIT_S):
            # A sample of those who are early would be another one than that of all.
            while round_ == 0 and len(self._members(name)) < trainer.shape.min_members:  # noqa: ASYNC110 - leases
                await trio.sleep(LOOK_S)
            is_ours = await self._sync.turn(name, lane, round_, timeout_s=ROUND_WAIT_S)
        return TurnAnswer({True: "in", False: "out", None: "waiting"}[is_ours])

    async def verdict(self, name: str, duty: Duty) -> Checked:
        """Compare what a trainer has made anew with what its member had committed to."""
        self._records.attached(name)
        case = Case(duty.lane, duty.round, PeerId(duty.target))
        return Checked(await self._sync.verdict(name, case))

    async def fetch(self, name: str, request: FetchState) -> StateAt:
        """Load the run's state of a lane into the trainer's buffer."""
        record, trainer = self._records.attached(name)
        lane, target = request.lane, trainer.state(request.lane, request.buffer)
        root, at_least = hash_of(request.root) if request.root else None, request.at_least
        with self._loading(record) as progress:
            fetched = await self._sync.fetch(
                name, lane, target, at_least=at_least, root=root, progress=progress
            )
        return StateAt(fetched.round, fetched.root.hex(), request.buffer, lane)

    def announce(self, name: str, at: StateAt) -> None:
        """Offer the state in one of the trainer's buffers to joiners, and to the checkpoint."""
        record, trainer = self._records.attached(name)
        vector = trainer.state(at.lane, at.buffer)
        self._sync.announce(name, at.lane, at.round, hash_of(at.root), vector)
        record.at[at.lane], record.roots[at.lane] = at.round, at.root
        state = self._sync.state_of(name, at.lane)
        if state is not None and state.round > 0:
            trainer.checkpoints.offer(at.lane, state)

    async def report(self, name: str, report: Report) -> Metric:
        """Add what the node knows to the trainer's figures; record them."""
        record, trainer = self._records.attached(name)
        last, none = trainer.last.get(report.lane), RoundResult("waiting", 0)
        if last is None or last.round + 1 != report.round:  # a state that others made was loaded
            last = none
        wire, eta_s = self._traffic(), None
        if trainer.rounds_done:
            each = (time.monotonic() - trainer.since) / trainer.rounds_done
            left = sum(max(0, record.rounds - round_) for round_ in record.at)
            eta_s = round(each * left, 1)
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
            root=self._records.view(record).root,
            wire_in=wire[0] - trainer.wire_at[0],
            wire_out=wire[1] - trainer.wire_at[1],
            note=report.note,
            lane=report.lane,
            codec=last.codec,
            every=last.every or trainer.shape.every,
        )
        record.take(metric)
        self._write(record, METRICS, metric)
        record.news.send(metric)
        return metric

    @staticmethod
    def _write(record: Record, name: str, line: Metric | CertificateView) -> None:
        try:
            append_line(record.directory / name, line)
        except OSError as error:  # a full disk ends no training
            _log.warning("line_lost", run=record.name, file=name, error=str(error))
