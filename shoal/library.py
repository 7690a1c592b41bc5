"""Models as content, for scripts and for the CLI: the JSON of `shoal model`, and its functions.

Fields may be added; none is renamed or changes its meaning within /v1. Spans are [start, end) pairs
of blocks, sizes are bytes.
"""

from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from shoal.client import Client
from shoal.messages import decode_reply

SILENCE_S = 60.0  # seconds without a word after which the daemon is taken to hang

Spans = list[tuple[int, int]]


class _Body(msgspec.Struct, frozen=True):
    """Common options: immutable; unknown fields of newer daemons are ignored."""


class AddModel(_Body, frozen=True):
    """Make a model known to the swarm; its parts are pinned on this node.

    `source`: a path of the daemon's machine (a Hugging Face folder, or a .gguf file), or
    ORG/NAME[@REVISION] on the Hugging Face hub. `dtype`: what it is computed in, "auto" is the
    model's own. `hosted`: nodes that offer room take it up by themselves, over at most `nodes`
    (0: all), each block `replicas` times at least.
    """

    source: str
    name: str = ""
    dtype: str = "auto"
    hosted: bool = False
    nodes: int = 0
    replicas: int = 1


class KnownModel(_Body, frozen=True):
    """A model that the swarm knows, or that is pinned here.

    `here`, `pinned`: blocks whose parts are on this node, and stay. `hosts`: nodes that have a
    ready span; `gaps`: blocks that none of them has; `ready`: hosted without gaps. `listed`: false
    if the swarm knows it no more. Until the manifest has been fetched `layers` is 0.
    """

    name: str
    model: str
    manifest: str
    created_ms: int
    hosted: bool
    listed: bool = True
    nodes: int = 0
    replicas: int = 1
    family: str = ""
    dtype: str = ""
    layers: int = 0
    parameters: int = 0
    hidden_size: int = 0
    vocab_size: int = 0
    context: int = 0
    size_bytes: int = 0
    here_bytes: int = 0
    here: Spans = []
    pinned: Spans = []
    hosts: int = 0
    ready: bool = False
    gaps: Spans = []
    providers: list[str] = []


class ModelPart(_Body, frozen=True):
    """One file of a model: a blob. `block` is -1 but for blocks."""

    role: str
    block: int
    name: str
    cid: str
    size_bytes: int
    here: bool
    pinned: bool


class ModelHost(_Body, frozen=True):
    """A node's word on a span that it has, or is about to have."""

    peer: str
    start: int
    end: int
    state: str
    note: str = ""


class ModelDetail(_Body, frozen=True):
    """One model with its parts, and who computes what."""

    model: KnownModel
    parts: list[ModelPart]
    hosts: list[ModelHost]


class BadPart(_Body, frozen=True):
    """A part that was not what its CID says; `repaired` from another node, or else why not."""

    name: str
    cid: str
    repaired: bool
    why: str = ""


class LibraryProgress(_Body, frozen=True):
    """An event while work on a model goes on; the last one is "done".

    `state`: starting, exporting, downloading, splitting, storing, publishing, fetching, verifying,
    done.
    """

    state: str
    name: str
    done_bytes: int = 0
    total_bytes: int = 0
    model: KnownModel | None = None
    checked: int = 0
    bad: list[BadPart] = []


class PinModel(_Body, frozen=True):
    """Keep blocks [start, end) here; without `end` all of the model, tokenizer included."""

    start: int = 0
    end: int | None = None


class ServeRun(_Body, frozen=True):
    """Make a model of a run's checkpoints here, which the swarm hosts. See `AddModel`."""

    name: str = ""
    dtype: str = "auto"
    nodes: int = 0
    replicas: int = 1


class Removed(_Body, frozen=True):
    """What `rm` has done: bytes that this node has no more."""

    name: str
    freed_bytes: int


def _path(name: str, *rest: str) -> str:
    return "/".join(["/v1/library", quote(name, safe=""), *rest])


def add_model(client: Client, request: AddModel) -> Iterator[LibraryProgress]:
    """Make a model known to the swarm; yields progress, the last one has the model."""
    return _follow(client, "/v1/library", request)


def known_models(client: Client) -> list[KnownModel]:
    """Return the models that the swarm knows, and those pinned here."""
    return client.call("GET", "/v1/library", reply=list[KnownModel])


def model_detail(client: Client, name: str) -> ModelDetail:
    """Return one model with its parts and hosts."""
    return client.call("GET", _path(name), reply=ModelDetail)


def remove_model(client: Client, name: str, *, force: bool = False) -> Removed:
    """Make the swarm forget a model; `force` also ends its hosting."""
    return client.call("DELETE", _path(name) + ("?force=1" if force else ""), reply=Removed)


def pin_model(
    client: Client, name: str, *, start: int = 0, end: int | None = None
) -> Iterator[LibraryProgress]:
    """Fetch blocks (without `end` all parts) and keep them here."""
    return _follow(client, _path(name, "pin"), PinModel(start, end))


def unpin_model(client: Client, name: str) -> KnownModel:
    """Let the parts of a model go when nothing here uses them."""
    return client.call("POST", _path(name, "unpin"), reply=KnownModel)


def verify_model(client: Client, name: str) -> Iterator[LibraryProgress]:
    """Hash all parts that are here, and repair bad ones from other nodes; the last says which."""
    return _follow(client, _path(name, "verify"), None)


def serve_run(client: Client, run: str, request: ServeRun) -> Iterator[LibraryProgress]:
    """Add the model that a run has trained, and let the swarm host it."""
    return _follow(client, f"/v1/runs/{quote(run, safe='')}/serve", request)


def _follow(client: Client, path: str, body: object) -> Iterator[LibraryProgress]:
    for event in client.events("POST", path, body, timeout_s=SILENCE_S):
        yield decode_reply(event.data, LibraryProgress)
