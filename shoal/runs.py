"""Training runs in the control API: the JSON of `shoal train`, `runs` and of the trainer.

Fields may be added; none is renamed or changes its meaning within /v1. Hashes are hexadecimal.
"""

import hashlib
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import msgspec

from shoal.client import Client
from shoal.errors import ApiError

EVENT_SILENCE_S = 60.0  # seconds between two events; the daemon says something every 15 s
EXPORT_WAIT_S = 120.0  # seconds to write a model to disk


class _Body(msgspec.Struct, frozen=True):
    """Common options: immutable; unknown fields of newer daemons are ignored."""


class StartRun(_Body, frozen=True):
    """Start `script` as a supervised child of the daemon; it reads `config` as a JSON file.

    A checkpoint that an earlier run of this name has left is moved aside: to go on from it, resume.
    """

    name: str
    script: str
    config: dict[str, object] = {}


class Run(_Body, frozen=True):
    """One run at this node.

    `state`: starting, training, finished, failed, stopped, or elsewhere (other nodes train it).
    `round`: rounds that all lanes have had; `root`: of the run, from its lanes' roots. `settings`:
    what members must have alike; `waiting_for`: whom a round here waits for; `loading`: the share
    of the run's state that is here, from 0 to 1, while it is downloaded.
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
    strategy: str = ""
    wire: str = ""
    lanes: int = 1
    settings: str = ""
    aggregator: str = ""
    waiting_for: list[str] = []
    loading: float | None = None


class LaneBody(_Body, frozen=True):
    """One lane: float32 that a member brings to a round at most, and that replicas hold alike.

    The state begins with the model's parameters from `start` to `stop`, for exports.
    """

    contribution: int
    state: int
    start: int = 0
    stop: int = 0


class Tensor(_Body, frozen=True):
    """One parameter of the model, in the order of the flat vector."""

    name: str
    shape: list[int]


class Attach(_Body, frozen=True):
    """A trainer's shared memory and the shape of its run.

    `exchange` holds the lanes' contributions one after the other, `sent` (if not empty) the same:
    what has arrived of ours, for error feedback. Each of the two `states` holds the lanes' states
    one after the other; the first now has those before round 0, whose hashes are `roots`.
    `settings` is a text that all members must have alike, such as the rates of the outer step;
    `layout` names the parameters, for exports; `strategy` is for people.
    """

    pid: int
    lanes: list[LaneBody]
    exchange: str
    states: list[str]
    roots: list[str]
    rounds: int
    sent: str = ""
    layout: list[Tensor] = []
    wire: str = "int8"
    min_members: int = 1
    patience_s: float = 20.0
    settings: str = ""
    strategy: str = ""
    every: int = 0
    aggregator: str = "mean"
    sample: int = 0
    replicas_differ: bool = False
    verify: bool = False


class StateAt(_Body, frozen=True):
    """A lane's state: which round it precedes, its hash, in which of the two buffers it is."""

    round: int
    root: str
    buffer: int = 0
    lane: int = 0


class Attached(_Body, frozen=True):
    """Where each lane stands, and where its state came from.

    `source`: new (the trainer's own, before round 0), checkpoint or peers. A lane whose `buffer` is
    1 has its newer state in the second of the trainer's buffers.
    """

    member: str
    lanes: list[StateAt]
    source: str
    directory: str
    members: list[str] = []


class SubmitRound(_Body, frozen=True):
    """The lane's slice of the exchange buffer holds a contribution to a round.

    `fresh` is false to go on waiting for it; `wait_s`: seconds to wait for the end of the round
    before "waiting" is answered, 0 to submit only. `elements`: of this round's contributions,
    alike on all members; 0: as many as the lane has. `is_new`: we joined at this round. `wish_*`:
    what this member would like the next round's codec and local steps to be (wire "auto").
    """

    round: int
    root: str
    weight: float = 1.0
    fresh: bool = True
    lane: int = 0
    topology: str = "all"
    is_new: bool = False
    wish_codec: str = "float32"
    wish_every: int = 0
    wait_s: float = 20.0
    elements: int = 0


class Duty(_Body, frozen=True):
    """Verified runs: make what `target` brought to a round anew, before anything else.

    Posted back, when the lane's slice of the exchange buffer holds what was made.
    """

    target: str
    round: int
    lane: int = 0


class RoundResult(_Body, frozen=True):
    """How a round ended: committed (the mean is in the exchange buffer), behind, or waiting.

    Behind: fetch the state of at least round `at_least` (hash `root`, if it is not empty).
    `contributors`: whose contributions are in the mean, with their `weights`; the members, unless
    an earlier attempt's result was adopted. `every`: local steps to the next round; 0: as before.
    `rate`: bytes/s of this node's link, measured while the round waited for it; 0: not measured.
    `duties`: whom to check now; who does brings nothing to the next round.
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
    lane: int = 0
    codec: str = ""
    every: int = 0
    contributors: list[str] = []
    rate: float = 0.0
    duties: list[Duty] = []


class Checked(_Body, frozen=True):
    """If `is_same`, its bits were committed to; else the daemon compares, and may accuse."""

    is_same: bool


class FetchState(_Body, frozen=True):
    """Load a lane's state into one of the trainer's two buffers.

    What the buffer holds is used: only chunks that differ are downloaded.
    """

    buffer: int
    at_least: int
    root: str = ""
    lane: int = 0


class AskTurn(_Body, frozen=True):
    """Sampled runs: are we among those who make this round?"""

    round: int
    lane: int = 0


class TurnAnswer(_Body, frozen=True):
    """`turn`: in (train, and submit), out (the round is over without us), waiting (ask again)."""

    turn: str


class Report(_Body, frozen=True):
    """What the trainer tells of its progress, once a round."""

    step: int
    round: int
    loss: float | None = None
    val_loss: float | None = None
    note: str = ""
    lane: int = 0


class Leave(_Body, frozen=True):
    """The trainer is done; `finished` keeps its state for joiners."""

    finished: bool = False


class Export(_Body, frozen=True):
    """Write the run's parameters as one safetensors file to `path` (absolute)."""

    path: str


class Exported(_Body, frozen=True):
    """What was written: the parameters before these rounds of the lanes, with the run's root."""

    path: str
    rounds: list[int]
    root: str
    tensors: int


class Metric(_Body, frozen=True):
    """One line of metrics.jsonl. Bytes and seconds are those of the round before this step, none
    where the run made it without us and its state was loaded.

    `bytes_*` are the tensor bytes of the round; `wire_*` all that crossed the node's sockets
    since the trainer attached. `eta_s` is null until a round was timed. `lane`, `codec` and
    `every` are of that round.
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
    lane: int = 0
    codec: str = ""
    every: int = 0


class CertificateView(_Body, frozen=True):
    """A committed round of a lane. `weights` are those of the `contributors`."""

    round: int
    attempt: int
    proposer: str
    members: list[str]
    weights: list[float]
    codec: str
    base_root: str
    result: str
    signatures: int
    lane: int = 0
    topology: str = "all"
    every: int = 0
    contributors: list[str] = []


class Contribution(_Body, frozen=True):
    """What one peer has done for a run, as this node has seen it.

    `rounds` that it was a member of; `weight`: what it brought in all (samples, if that is the
    weight); `left_out`: attempts that went on without it; bytes are of our exchanges with it;
    `seconds` that we were ready before it was; `banned`: found guilty in a verified run.
    """

    peer: str
    rounds: int = 0
    weight: float = 0.0
    left_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    banned: bool = False


def run_root(roots: Sequence[str]) -> str:
    """Return the root of a run: of one lane its root, else the SHA-256 of the lanes' roots."""
    if len(roots) == 1:
        return roots[0]
    return hashlib.sha256(b"".join(map(bytes.fromhex, roots))).hexdigest()


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


def resume_run(client: Client, run: str) -> Run:
    """Start a stopped or failed run's script again, with its saved settings and checkpoint."""
    return client.call("POST", path_of(run, "resume"), reply=Run)


def export_run(client: Client, run: str, path: str) -> Exported:
    """Write the run's parameters to a safetensors file on the daemon's machine."""
    return client.call(
        "POST", path_of(run, "export"), Export(path), reply=Exported, timeout_s=EXPORT_WAIT_S
    )


def metrics_of(client: Client, run: str) -> list[Metric]:
    """Return all lines of a run's metrics.jsonl at this node."""
    return client.call("GET", path_of(run, "metrics"), reply=list[Metric])


def certificates_of(client: Client, run: str, *, last: int = 0) -> list[CertificateView]:
    """Return the certificates of a run's committed rounds; of them the `last` ones, unless 0."""
    path = path_of(run, f"certificates?last={last}" if last else "certificates")
    return client.call("GET", path, reply=list[CertificateView])


def contributions_of(client: Client, run: str) -> list[Contribution]:
    """Return what each peer has done for a run, as this node has seen it."""
    return client.call("GET", path_of(run, "contributions"), reply=list[Contribution])


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
