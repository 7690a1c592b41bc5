"""`shoal.Trainer`: learning together with the swarm in a plain PyTorch loop.

    with shoal.Trainer(model, optimizer, run="mine", rounds=10) as trainer:
        while not trainer.done:
            loss = ...; loss.backward(); optimizer.step(); optimizer.zero_grad()
            trainer.step(loss)

That is DiLoCo: every 25 steps the pseudo-gradient goes through shared memory to the daemon, which
averages it over the live members; then every member makes the same outer step. Other strategies by
name, with their options (`shoal.learn.names`): `Trainer(…, strategy="streaming", every=50)`.
The inner optimizer is the user's own and is never sent; neither are buffers such as batch-norm
statistics. Under `torchrun` every process makes a Trainer; rank 0 alone speaks to the daemon.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# torch's annotations are incomplete.

import hashlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from shoal.checks import Recompute
from shoal.client import Client
from shoal.learn.feedback import DECAYS
from shoal.learn.names import options_of, strategy_named
from shoal.learn.strategy import Option, Strategy, Vector
from shoal.lifeline import watch
from shoal.pacing import Pace
from shoal.pytorch import saved
from shoal.pytorch.described import describe
from shoal.pytorch.ranks import Order, Ranks
from shoal.pytorch.staging import Staging, TrainingError, flatten, load_vector
from shoal.pytorch.together import Follower, Leader
from shoal.replica import Replica
from shoal.run_client import RunClient, Shape
from shoal.runs import LaneBody, Report, RoundResult, Tensor, run_root

__all__ = ["Trainer", "TrainingError", "flatten", "load_vector"]

CHECKPOINT_S = 60.0  # seconds between files of the optimizer: writing Adam's costs 8 B a parameter


class Trainer:
    """A model's membership in a run. Use it in one thread; close it, or use `with`.

    model: its trainable parameters are averaged; on return from the constructor they are the
        run's current ones. All members must build it with the same seed, or the first round
        begins with the parameters of one of them.
    optimizer: the inner one; given, its state is in the checkpoints of a run that is resumed.
    rounds: the run ends after so many rounds (of each lane).
    strategy: a name, with its `options` as further keywords, or a strategy made already.
    wire: codec (float32, bfloat16, float16, int8, int4, topk, fedzip), or "auto".
    aggregator: mean; or median, trimmed, clip, flag, which a minority of liars cannot move.
    weight: this member's share in the mean, for example its number of samples.
    recompute: makes a verified run (`shoal.checks`): called with a member and a round, it makes
        that member's local steps of the round, in place. All members need it.
    evaluate: called after each round; its result is recorded as the validation loss.
    tokenizer: of a Hugging Face model: `shoal run export --serve` needs it.
    Raises shoal.errors.ClientError if the daemon is not there or refuses.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        run: str,
        rounds: int,
        strategy: str | Strategy = "diloco",
        wire: str = "int8",
        aggregator: str = "mean",
        min_members: int = 1,
        patience_s: float = 20.0,
        weight: float = 1.0,
        evaluate: Callable[[], float] | None = None,
        recompute: Recompute | None = None,
        checkpoint_s: float = CHECKPOINT_S,
        client: Client | None = None,
        tokenizer: object = None,
        **options: Option,
    ) -> None:
        watch()  # a child of the daemon ends with it
        self.run, self.rounds = run, rounds
        self.last: RoundResult | None = None
        self._optimizer, self._evaluate = optimizer, evaluate
        self._ranks, self._staging = Ranks(), Staging(model)
        if recompute is not None and self._ranks.size > 1:
            raise TrainingError("a verified run has one process a member")
        self._strategy = make_strategy(strategy, wire, options)
        self._strategy.prepare(self._staging.parts, rounds)
        self._loss: torch.Tensor | float = 0.0
        self._losses = self._steps = 0
        self._checkpoint_s, self._saved_at = checkpoint_s, time.monotonic()
        self._measured = -1  # round of the last validation
        self._pace = pace_of(self._strategy) if wire == "auto" else None
        self._client: RunClient | None = None
        self._replica: Replica | None = None
        self._follower: Follower | None = None
        if self._ranks.is_first:
            shape = shape_of(
                self._strategy,
                rounds=rounds,
                wire=wire,
                aggregator=aggregator,
                min_members=min_members,
                patience_s=patience_s,
                verify=recompute is not None,
            )
            part = RunClient(
                run, shape, client=client, on_wait=lambda: self._ranks.tell(Order.WAIT)
            )
            self._lead(part, weight, recompute)
            describe(model, tokenizer, Path(self.directory))
        else:
            self._follower = Follower(
                self._staging, self._ranks, evaluate or (lambda: None), self._save, self._reload
            )
            self._follower.obey()

    # -- what a training loop uses -----------------------------------------------------------

    @property
    def member(self) -> str:
        """This node's peer ID."""
        return (self._client or self._following()).member

    @property
    def directory(self) -> str:
        """The run's folder: HOME/runs/NAME."""
        return (self._client or self._following()).directory

    @property
    def members(self) -> list[str]:
        """Peer IDs of those who made the last round; before the first, whoever was there."""
        if self._client is None:
            return self._following().members
        return self.last.members if self.last is not None else self._client.members

    @property
    def round(self) -> int:
        """Rounds that this model has taken part in or caught up with (every lane has)."""
        return (self._replica or self._following()).round

    @property
    def steps(self) -> int:
        """Local steps made by this process."""
        return self._steps

    @property
    def done(self) -> bool:
        """True once the run has had all its rounds."""
        return self.round >= self.rounds

    @property
    def global_step(self) -> int:
        """Local steps as the run counts them: a member that joins late starts where the run is."""
        if self._replica is not None:
            return self._replica.global_step
        return self._following().offset + self._steps

    @property
    def root(self) -> str:
        """Hash of the run's state: equal on all members, every round. Empty but on rank 0."""
        return run_root([lane.root for lane in self._client.lanes]) if self._client else ""

    @property
    def parameters_hash(self) -> str:
        """SHA-256 of the run's parameters alone. Empty but on rank 0."""
        digest = hashlib.sha256()
        if self._client is None:
            return ""
        for number, lane in enumerate(self._strategy.lanes):
            parameters = self._client.state(number)[: lane.elements]
            digest.update(parameters.astype("<f4", copy=False).data)
        return digest.hexdigest()

    def step(self, loss: torch.Tensor | float | None = None) -> bool:
        """Call it after each optimizer step: it does what the strategy has due.

        Returns True when the run is done. Waits as long as a round has no quorum.
        """
        if self.done:
            return True
        if loss is not None:  # summed where it is: reading it would stop a GPU at every step
            self._loss = self._loss + (loss.detach() if isinstance(loss, torch.Tensor) else loss)
            self._losses += 1
        self._steps += 1
        if self._replica is None:
            if self._steps >= self._following().due:
                self._following().obey()
            return self.done
        is_due = self._replica.remaining() <= 1
        if self._pace is not None:
            if is_due:
                self._staging.finish()  # or the time of a step would be that of launching it
            self._pace.arrive()
        with self._telling(is_due):
            self._replica.step()
        if self._pace is not None:
            self._pace.leave()
        return self.done

    def report(self, *, val_loss: float | None = None, note: str = "", lane: int = 0) -> None:
        """Record a figure in metrics.jsonl, with the mean loss since the last one."""
        loss = float(self._loss) / self._losses if self._losses else None
        self._loss, self._losses = 0.0, 0
        if self._client is not None:
            round_ = self._client.lanes[lane].round
            self._client.report(Report(self.global_step, round_, loss, val_loss, note, lane))

    def close(self) -> None:
        """Leave the run and free the shared memory. A finished run stays served to joiners."""
        if self._client is not None and self._replica is not None:
            try:
                self._replica.close()
                if not self.done and self._ranks.size == 1:
                    self._save()
            finally:
                self._client.leave(finished=self.done)
        self._ranks.settle()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- rank 0 ------------------------------------------------------------------------------

    def _lead(self, client: RunClient, weight: float, recompute: Recompute | None) -> None:
        model = Leader(self._staging, self._ranks)
        replica = Replica(
            self._strategy,
            client,
            model,
            weight=weight,
            on_round=self._on_round,
            on_end=self._measure,
            wish=self._pace.wish if self._pace else lambda: ("float32", 0),
            recompute=recompute,
        )
        with self._telling(is_due=True):
            try:
                replica.attach()
                self._client, self._replica = client, replica
                counters = self._reload() if client.source != "new" else None
                self._ranks.tell(Order.JOINED, int(counters is not None))
                self._ranks.share_text(client.member)
                self._ranks.share_text(client.directory)
                replica.start(counters.steps if counters is not None else 0)
                if self._measured < 0:  # no round yet: where this model begins
                    self._measure(0)
            except BaseException:
                replica.close()
                client.leave(finished=False)
                raise

    @contextmanager
    def _telling(self, is_due: bool) -> Generator[None]:
        """Let the other processes know how it ended, if they wait for it."""
        try:
            yield
        except BaseException:
            if is_due:
                self._ranks.tell(Order.FAILED)
            raise
        replica = self._replica
        if is_due and replica is not None:
            offset = replica.global_step - self._steps
            self._ranks.tell(Order.DONE, self._steps + replica.remaining(), replica.round, offset)
            self._ranks.share_text(",".join(self.members))

    def _on_round(self, lane: int, result: RoundResult) -> None:
        self.last = result
        if self._pace is not None:
            self._pace.finished(result)
        self._measure(lane)
        now = time.monotonic()
        if now - self._saved_at >= self._checkpoint_s and not self.done:
            self._saved_at = now
            self._save()

    def _measure(self, lane: int) -> None:
        """Report a lane's round; once every lane had it, with the validation loss."""
        val_loss, had, self._measured = None, self._measured, self.round
        if self._evaluate is not None and self.round > had:
            self._ranks.tell(Order.EVALUATE)
            val_loss = float(self._evaluate())  # many return a tensor
        self.report(val_loss=val_loss, lane=lane)

    # -- every rank --------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        """Where this process's own things are kept; under FSDP each has a file of its own."""
        is_alone = self._ranks.is_first or not self._staging.is_sharded
        rank = "" if is_alone else f"-{self._ranks.rank}"
        name = f"trainer-{self.member}{rank}.safetensors"
        return Path(self.directory) / "checkpoint" / name

    def _save(self) -> None:
        counters, own = saved.Counters([], 0), dict[str, Vector]()
        if self._replica is not None and self._client is not None:
            if self._staging.is_sharded:
                self._ranks.tell(Order.SAVE)
            rounds = [lane.round for lane in self._client.lanes]
            counters = saved.Counters(rounds, self.global_step)
            own = self._strategy.export()
        try:
            saved.save(self._path, counters, own, self._optimizer)
        except OSError as error:  # a full disk: a resumed run starts with a cold optimizer
            print(f"shoal: {self.run}: no checkpoint: {error}", file=sys.stderr, flush=True)

    def _reload(self) -> saved.Counters | None:
        """Take back what `_save` wrote; of error feedback only what belongs to these rounds."""
        try:
            found = saved.load(self._path, self._optimizer)
            if found is None:
                if not self._ranks.is_first:  # rank 0 has one: we would go on with other moments
                    raise TrainingError(f"{self._path} is not here; rank 0 has one")
                return None
            counters, own = found
            lanes = self._client.lanes if self._client is not None else []
            if lanes and counters.rounds == [lane.round for lane in lanes]:
                self._strategy.restore(own)
        except ValueError as error:
            raise TrainingError(
                str(error), hint="delete that file to go on with a fresh optimizer"
            ) from error
        return counters

    def _following(self) -> Follower:
        assert self._follower is not None, "rank 0 has a replica, the others follow"
        return self._follower


def make_strategy(strategy: str | Strategy, wire: str, options: dict[str, Option]) -> Strategy:
    """Make a strategy by its name; codecs that leave much out get their error feedback.

    Raises TrainingError, in words for a person, for options that it does not take.
    """
    if isinstance(strategy, Strategy):
        if options:
            raise TrainingError(f"a strategy that is made already takes no {', '.join(options)}")
        return strategy
    try:
        decays = {**DECAYS, "auto": min(DECAYS.values())}  # auto may end at any codec
        if wire in decays and "feedback" not in options and "feedback" in options_of(strategy):
            options = {**options, "feedback": decays[wire]}
        return strategy_named(strategy, **options)
    except (ValueError, KeyError) as error:
        raise TrainingError(str(error)) from error


def pace_of(strategy: Strategy) -> Pace:
    """Return what measures for a prepared strategy on the wire `auto`."""
    most = max(lane.contribution for lane in strategy.lanes)
    lanes = len(strategy.lanes)
    return Pace(strategy.every, elements=most, lanes=lanes, now=time.monotonic)


def shape_of(
    strategy: Strategy,
    *,
    rounds: int,
    wire: str = "int8",
    aggregator: str = "mean",
    min_members: int = 1,
    patience_s: float = 20.0,
    verify: bool = False,
) -> Shape:
    """Return a run's shape for a prepared strategy."""
    return Shape(
        [LaneBody(lane.contribution, lane.state, lane.start, lane.stop) for lane in strategy.lanes],
        rounds=rounds,
        wire=wire,
        min_members=min_members,
        patience_s=patience_s,
        needs_sent=strategy.needs_sent,
        settings=strategy.settings,
        strategy=strategy.name,
        every=strategy.every,
        aggregator=aggregator,
        sample=strategy.sample_size,
        replicas_differ=strategy.replicas_differ,
        verify=verify,
        layout=[Tensor(part.name, list(part.shape)) for part in strategy.parts],
    )
