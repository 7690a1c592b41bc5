"""What the node keeps of its runs: a record each, found again in its folder after a restart."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
import trio

from node.broadcast import Broadcast
from node.children import Child
from node.run_files import last_metrics, load_contributions
from node.trainer_part import AttachedTrainer
from protocols.modelsync.wire import RunName
from shoal.runs import Contribution, Metric, RoundResult, Run, StartRun, run_root
from wire.errors import Busy, NotFound, UsageError
from wire.ids import PeerId

RUNS_MAX = 256  # runs shown; enough for a year of a person's training
ACTIVE = ("starting", "training")
START_FILE = "run.json"  # how the run was started, for those who resume it

_log = structlog.get_logger("runs")


class Members(Protocol):
    """What is known of a run in the swarm (protocols.modelsync.service.ModelSync)."""

    def members(self, run: str) -> list[PeerId]:
        """Live members."""
        ...

    def run_names(self) -> list[str]:
        """Every run that has a member."""
        ...

    def failure_of(self, run: str) -> str:
        """Why driving an attached run has ended; "" if it has not."""
        ...

    def waiting_for(self, run: str, lane: int) -> list[PeerId]:
        """Members that the round of a lane of an attached run waits for."""
        ...


@dataclass
class Totals:
    """What this node's rounds have taken since the run was begun here."""

    committed: int = 0
    attempts: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0

    def count(self, result: RoundResult) -> None:
        """Add a committed round."""
        self.committed += 1
        self.attempts += result.attempt + 1
        self.bytes_in += result.bytes_in
        self.bytes_out += result.bytes_out
        self.seconds += result.seconds


@dataclass
class Record:
    """One run of this node."""

    name: str
    state: str
    directory: Path
    child: Child | None = None
    trainer: AttachedTrainer | None = None
    metric: Metric | None = None
    loss: float | None = None  # the last ones known: not every metric has them
    val_loss: float | None = None
    rounds: int = 0
    roots: list[str] = field(default_factory=list[str])  # of the lanes' states
    at: list[int] = field(default_factory=list[int])  # rounds that the lanes have had
    strategy: str = ""
    wire: str = ""
    settings: str = ""
    aggregator: str = ""
    loading: float | None = None  # share of the states that is here, while they are downloaded
    totals: Totals = field(default_factory=Totals)
    before: list[Contribution] = field(default_factory=list[Contribution])  # of earlier trainers
    error: str = ""
    stopping: bool = False
    is_supervised: bool = False  # we started it, and say ourselves how it ended
    ended: trio.Event = field(default_factory=trio.Event)
    news: Broadcast[Run | Metric] = field(default_factory=Broadcast[Run | Metric])

    def take(self, metric: Metric) -> None:
        """Remember the last metric."""
        self.metric = metric
        self.loss = self.loss if metric.loss is None else metric.loss
        self.val_loss = self.val_loss if metric.val_loss is None else metric.val_loss


class Records:
    """The runs of this node, in HOME/runs/NAME each."""

    def __init__(self, directory: Path, swarm: Members) -> None:
        self._directory, self._swarm = directory, swarm
        self._records: dict[str, Record] = {}

    def names(self) -> list[str]:
        """Names of the runs that are going on here."""
        return [r.name for r in self._records.values() if r.state in ACTIVE]

    def views(self) -> list[Run]:
        """Every run: of this node, and those that other members train."""
        here = {name: self.view(record) for name, record in self._records.items()}
        for name in self._swarm.run_names():
            if name not in here:
                here[name] = Run(name, "elsewhere", members=list(self._swarm.members(name)))
        return [here[name] for name in sorted(here)]

    def here(self) -> list[Record]:
        """The runs that this node has trained since it started."""
        return list(self._records.values())

    def tell(self, record: Record) -> None:
        """Show a run to those who follow it."""
        record.news.send(self.view(record))

    def find(self, name: str) -> Record | None:
        """Return a run's record, if this node has trained it: also before its last restart."""
        record = self._records.get(name)
        if record is None and is_run_name(name) and (self._directory / name).is_dir():
            record = recalled(self._directory / name)
            self._remember(record)
        return record

    def recall(self) -> None:
        """Find the runs again that this node trained before its last start, the latest ones."""
        if not self._directory.is_dir():
            return
        folders = sorted(self._directory.iterdir(), key=lambda each: -each.lstat().st_mtime)
        for folder in reversed(folders[:RUNS_MAX]):  # the latest is forgotten last
            self.find(folder.name)

    def get(self, name: str) -> Record:
        """Return a run's record. Raises NotFound."""
        record = self.find(name)
        if record is None:
            raise NotFound(f"there is no run {name[:64]!r} here", hint="`shoal runs` lists them")
        return record

    def attached(self, name: str) -> tuple[Record, AttachedTrainer]:
        """Return a run and its trainer. Raises NotFound."""
        record = self.get(name)
        if record.trainer is None:
            raise NotFound(f"no trainer of run {name} is attached here")
        return record, record.trainer

    def new(self, name: str) -> Record:
        """Begin a run here, or begin it again. Raises UsageError, or Busy if it is going on."""
        if not is_run_name(name):
            raise UsageError(
                f"{name[:64]!r} is no name for a run",
                hint="use lower-case letters, digits, dots and dashes",
            )
        old = self._records.get(name)
        if old is not None and old.state in ACTIVE:
            raise Busy(f"run {name} is going on here", hint=f"`shoal run stop {name}` stops it")
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = Record(name, "starting", directory, before=load_contributions(directory))
        self._remember(record)
        return record

    def enter(self, record: Record, state: str) -> None:
        """Put a run into another state, and say so to those who follow it."""
        record.state = state
        _log.info("run", run=record.name, state=state, error=record.error)
        self.tell(record)

    def view(self, record: Record) -> Run:
        """A run as the control API shows it."""
        metric, child, trainer = record.metric, record.child, record.trainer
        failure = self._swarm.failure_of(record.name) if trainer is not None else ""
        pid = child.pid if child is not None else trainer.pid if trainer is not None else None
        return Run(
            name=record.name,
            state="failed" if failure else record.state,
            round=min(record.at, default=0),
            rounds=record.rounds,
            step=metric.step if metric else 0,
            loss=record.loss,
            val_loss=record.val_loss,
            members=list(self._swarm.members(record.name)),
            root=run_root(record.roots) if record.roots and all(record.roots) else "",
            pid=pid,
            error=record.error or failure,
            directory=str(record.directory),
            strategy=record.strategy,
            wire=record.wire,
            lanes=max(1, len(record.at)),
            settings=record.settings,
            aggregator=record.aggregator,
            waiting_for=self._waiting_for(record),
            loading=record.loading,
        )

    def _waiting_for(self, record: Record) -> list[str]:
        if record.trainer is None or record.state != "training":
            return []
        lanes = range(len(record.at))
        return sorted({p for lane in lanes for p in self._swarm.waiting_for(record.name, lane)})

    def _remember(self, record: Record) -> None:
        """Keep a record; when there are too many, the oldest that is over is forgotten."""
        if len(self._records) >= RUNS_MAX and record.name not in self._records:
            over = next((r.name for r in self._records.values() if r.state not in ACTIVE), None)
            if over is None:
                raise Busy(f"{RUNS_MAX} runs are going on here", hint="stop one of them")
            del self._records[over]
        self._records[record.name] = record


def recalled(directory: Path) -> Record:
    """Return the record of an earlier run, as its last metric left it."""
    before = load_contributions(directory)
    record = Record(directory.name, "stopped", directory, before=before)
    for metric in last_metrics(directory):
        record.take(metric)
        record.rounds, record.at, record.wire = metric.rounds, [metric.round], metric.codec
        record.roots = [metric.root]
        record.state = "finished" if 0 < metric.rounds <= metric.round else "stopped"
    return record


def is_run_name(name: str) -> bool:
    """True for what may name a run, and its folder."""
    try:
        msgspec.convert(name, RunName)
    except msgspec.ValidationError:
        return False
    return True


def save_start(directory: Path, request: StartRun) -> Path:
    """Write down how a run is started; return the file with its settings."""
    config = directory / "config.json"
    config.write_text(json.dumps(request.config, indent=1))
    (directory / START_FILE).write_bytes(msgspec.json.encode(request))
    return config


def load_start(directory: Path) -> StartRun:
    """Return how a run was started. Raises UsageError if it was not by this node."""
    path = directory / START_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=StartRun)
    except FileNotFoundError:
        raise UsageError(
            f"run {directory.name} was not started with `shoal train`",
            hint="start its script again: it goes on from the checkpoint by itself",
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
