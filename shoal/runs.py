"""Training runs in the control API: the JSON of `shoal train`, `runs` and of the trainer.

Fields may be added; none is renamed or changes its meaning within /v1. Hashes are hexadecimal.
"""

from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from shoal.client import Client
from shoal.errors import ApiError

EVENT_SILENCE_S = 60.0  # seconds between two events; the daemon says something every 15 s


class _Body(msgspec.Struct, frozen=True):
    """Common options: immutable; unknown fields of newer daemons are ignored."""


class StartRun(_Body, frozen=True):
    """Start `script` as a supervised child of the daemon; it reads `config` as a JSON file."""

    name: str
    script: str
    config: dict[str, object] = {}


class Run(_Body, frozen=True):
    """One run at this node.

    `state`: starting, training, finished, failed, stopped, or elsewhere (other nodes train it).
    """

    name: str
    state: str
    round: int = 0
    rounds: int = 0
    step: int = 0
    loss: float | None = None
    val_loss: float | None = None
    members: list[str] = []
    root: str = ""
    pid: int | None = None
    error: str = ""
    directory: str = ""


class Attach(_Body, frozen=True):
    """A trainer's shared memory and the shape of its run.

    `exchange` holds `elements` float32; each of `states` twice as many: parameters, momentum.
    `settings` is a text that all members must have alike, such as the rates of the outer step.
    """

    pid: int
    exchange: str
    states: list[str]
    elements: int
    wire: str
    rounds: int
    min_members: int
    patience_s: float
    round: int
    root: str
    settings: str = ""


class Attached(_Body, frozen=True):
    """`fetched`: the run is ahead, its state is now in the second of the trainer's buffers."""

    member: str
    round: int
    root: str
    fetched: bool
    directory: str


class SubmitRound(_Body, frozen=True):
    """The exchange buffer holds a contribution. `fresh` is false to go on waiting for it."""

    round: int
    root: str
    weight: float = 1.0
    fresh: bool = True


class RoundResult(_Body, frozen=True):
    """How a round ended: committed (the mean is in the exchange buffer), behind, or waiting.

    Behind: fetch the state of at least round `at_least` (hash `root`, if it is not empty).
    """

    outcome: str
    round: int
    attempt: int = 0
    members: list[str] = []
    weights: list[float] = []
    result: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    at_least: int = 0
    root: str = ""
    waiting_for: list[str] = []


class FetchState(_Body, frozen=True):
    """Load the run's state into one of the trainer's two buffers."""

    buffer: int
    at_least: int
    root: str = ""


class StateAt(_Body, frozen=True):
    """A state: which round it precedes and its hash; for announcements, in which buffer it is."""

    round: int
    root: str
    buffer: int = 0


class Report(_Body, frozen=True):
    """What the trainer tells of its progress, once a round."""

    step: int
    round: int
    loss: float | None = None
    val_loss: float | None = None
    note: str = ""


class Leave(_Body, frozen=True):
    """The trainer is done; `finished` keeps its state for joiners."""

    finished: bool = False


class Metric(_Body, frozen=True):
    """One line of metrics.jsonl. Bytes and seconds are those of the round before this step.

    `bytes_*` are the tensor bytes of the round; `wire_*` all that crossed the node's sockets
    since the trainer attached. `eta_s` is null until a round was timed.
    """

    time_ms: int
    run: str
    member: str
    step: int
    round: int
    rounds: int
    loss: float | None = None
    val_loss: float | None = None
    peers: int = 0
    attempt: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    eta_s: float | None = None
    root: str = ""
    wire_in: int = 0
    wire_out: int = 0
    note: str = ""


class CertificateView(_Body, frozen=True):
    """A committed round as the store has it."""

    round: int
    attempt: int
    proposer: str
    members: list[str]
    weights: list[float]
    codec: str
    base_root: str
    result: str
    signatures: int


def path_of(run: str, *rest: str) -> str:
    """Return the path of a run's route."""
    return "/".join(["/v1/runs", quote(run, safe=""), *rest])


def start_run(client: Client, request: StartRun) -> Run:
    """Start a run's script on the daemon's machine."""
    return client.call("POST", "/v1/runs", request, reply=Run)


def list_runs(client: Client) -> list[Run]:
    """Return the runs that this node knows of."""
    return client.call("GET", "/v1/runs", reply=list[Run])


def get_run(client: Client, run: str) -> Run:
    """Return one run."""
    return client.call("GET", path_of(run), reply=Run)


def stop_run(client: Client, run: str) -> Run:
    """Stop this node's part in a run."""
    return client.call("DELETE", path_of(run), reply=Run)


def metrics_of(client: Client, run: str) -> list[Metric]:
    """Return all lines of a run's metrics.jsonl at this node."""
    return client.call("GET", path_of(run, "metrics"), reply=list[Metric])


def certificates_of(client: Client, run: str) -> list[CertificateView]:
    """Return the certificates of a run's committed rounds."""
    return client.call("GET", path_of(run, "certificates"), reply=list[CertificateView])


def follow_run(client: Client, run: str) -> Iterator[Run | Metric]:
    """Yield each new metric, and the run itself whenever its state changes; ends with the run."""
    for event in client.events("GET", path_of(run, "events"), timeout_s=EVENT_SILENCE_S):
        kind: type[Run] | type[Metric] = Run if event.name == "run" else Metric
        try:
            yield msgspec.json.decode(event.data, type=kind)
        except msgspec.DecodeError as error:
            raise ApiError(
                f"event of run {run}: {error}", code="bad_message", status=502
            ) from error
