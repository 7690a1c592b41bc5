"""Served models, for scripts and for the CLI: the JSON of `--json`, and functions to use them.

Fields may be added; none is renamed or changes its meaning within /v1.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

import msgspec

from shoal.client import Client
from shoal.errors import ClientError
from shoal.messages import api_error, decode_reply

SILENCE_S = 60.0  # seconds without a word after which the daemon is taken to hang


class _Reply(msgspec.Struct, frozen=True):
    """Common options of replies: immutable; unknown fields of newer daemons are ignored."""


class ServeRequest(_Reply, frozen=True):
    """Serve the model at a path of the daemon's machine: a Hugging Face folder, or a .gguf file.

    Or the name of one that the swarm knows. `nodes` bounds over how many nodes it is split, 0 is
    all that offer room; each block is on `replicas` nodes at least. Null is as before: 0, and 1.
    """

    path: str
    name: str = ""
    nodes: int | None = None
    replicas: int | None = None


class Stage(_Reply, frozen=True):
    """A span of layers on a node.

    `state`: claimed, fetching, loading, ready, draining, failed, refused. Times are measured there:
    one token through the whole span, and each further token of a prompt. `load` is the share of the
    last seconds that it computed.
    """

    peer: str
    start: int
    end: int
    state: str
    note: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    decode_ms: float = 0.0
    prefill_ms: float = 0.0
    free_tokens: int = 0
    sessions: int = 0
    load: float = 0.0


class Model(_Reply, frozen=True):
    """A served model. `ready`: a route through all of its layers exists now."""

    name: str
    model: str
    layers: int
    ready: bool
    created_ms: int
    stages: list[Stage]


class ServeProgress(_Reply, frozen=True):
    """An event while a model is brought into service.

    `state`: splitting, storing, placing, waiting, ready.
    """

    state: str
    name: str
    model: Model | None = None


class Hop(_Reply, frozen=True):
    """One stage of the route that an answer took. Times are means over its decoding steps.

    `codec` is that of the rows that it gives, `link_ms` half the round trip to it.
    """

    peer: str
    start: int
    end: int
    codec: str = ""
    link_ms: float = 0.0
    compute_ms: float = 0.0


class Trace(_Reply, frozen=True):
    """How an answer came about: in the field `shoal` of the last chunk of a completion.

    `tokens_per_s` counts everything from the question on, `decode_tokens_per_s` what came after the
    first token. `step_ms` is the mean time from one round trip's tokens to the next one's; what its
    hops do not explain is `rest_ms`. `reused_tokens` of the prompt were still computed from before;
    of `drafted` guesses `accepted` were right.
    """

    model: str
    route: list[Hop]
    replaced_hops: int
    first_token_s: float
    tokens_per_s: float
    decode_tokens_per_s: float = 0.0
    step_ms: float = 0.0
    rest_ms: float = 0.0
    reused_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class CachedTokens(_Reply, frozen=True):
    """Of a prompt's tokens, those that did not have to be computed again."""

    cached_tokens: int = 0


class Usage(_Reply, frozen=True):
    """How many tokens went in and came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = CachedTokens()


class Candidate(_Reply, frozen=True):
    """A token that could have come, and its log-probability. `bytes` are those of its text."""

    token: str
    logprob: float
    bytes: list[int]


class Said(_Reply, frozen=True):
    """A token that came; `offset` is where its text begins in the answer, in characters."""

    token: str
    logprob: float
    bytes: list[int]
    offset: int
    top: list[Candidate]


class Answer(_Reply, frozen=True):
    """A piece of an answer; the last one has the reason, the usage and the trace.

    `index` tells several answers to one question apart. `said`: its tokens, if asked for.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    trace: Trace | None = None
    index: int = 0
    said: list[Said] = []


class Map(_Reply, frozen=True):
    """What `shoal map` draws: a model's stages, and how the last answers of this node came about,
    the newest first.
    """

    model: Model
    answers: list[Trace]


def serve(
    client: Client,
    path: str,
    *,
    name: str = "",
    nodes: int | None = None,
    replicas: int | None = None,
) -> Iterator[ServeProgress]:
    """Bring a model into service; yield progress until every layer is ready."""
    body = ServeRequest(path, name, nodes, replicas)
    for event in client.events("POST", "/v1/served", body, timeout_s=SILENCE_S):
        yield decode_reply(event.data, ServeProgress)


def models(client: Client) -> list[Model]:
    """Return the models that the swarm serves."""
    return client.call("GET", "/v1/served", reply=list[Model])


def unserve(client: Client, name: str) -> None:
    """Take a model out of service on all nodes."""
    client.call("DELETE", f"/v1/served/{quote(name, safe='')}")


def model_map(client: Client, name: str) -> Map:
    """Return who computes what of a model, and how this node's last answers came about."""
    return client.call("GET", f"/v1/served/{quote(name, safe='')}/map", reply=Map)


class AnswerOptions(TypedDict, total=False):
    """How to answer. `model` may be left out when one model is served.

    Temperature 0 (the default) is greedy; a seed makes sampling repeatable. `codec`: of the
    activations between stages; `speculate`: guess tokens ahead, which changes no answer.
    """

    model: str
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: list[str]
    codec: str
    speculate: bool


def generate(
    client: Client, prompt: str, *, chat: bool = False, **options: Unpack[AnswerOptions]
) -> Iterator[Answer]:
    """Let a model continue `prompt`, or with `chat` answer it; yield the text as it comes.

    64 tokens unless `max_tokens` says another number.
    """
    limited: AnswerOptions = {"max_tokens": 64}
    limited.update(options)
    if chat:
        return converse(client, [("user", prompt)], **limited)
    return _ask(client, "/v1/completions", {"prompt": prompt}, limited)


def converse(
    client: Client, messages: list[tuple[str, str]], **options: Unpack[AnswerOptions]
) -> Iterator[Answer]:
    """Let a model answer a conversation of (role, text): system, user, assistant.

    Closing the iterator ends the work on all nodes.
    """
    said = [{"role": role, "content": text} for role, text in messages]
    return _ask(client, "/v1/chat/completions", {"messages": said}, options)


def _ask(
    client: Client, path: str, question: dict[str, Any], options: AnswerOptions
) -> Generator[Answer]:
    given: dict[str, Any] = dict(options)
    own = {name: given.pop(name) for name in ("codec", "speculate") if name in given}
    body = {
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **given,
        **question,
        "shoal": own,
    }
    end = Answer("")
    with closing(client.events("POST", path, body, timeout_s=SILENCE_S)) as events:
        for event in events:
            if event.data == b"[DONE]":
                yield end
                return
            chunk = decode_reply(event.data, _Chunk)
            if chunk.error is not None:
                raise api_error(500, event.data)
            piece = _answer(chunk)
            if piece.text:
                yield Answer(piece.text)
            reason = piece.finish_reason or end.finish_reason
            end = Answer("", reason, piece.usage or end.usage, piece.trace or end.trace)
    raise ClientError("the daemon ended the answer early", hint="`shoal logs` may say why")


class _Delta(_Reply, frozen=True):
    content: str | None = None


class _Choice(_Reply, frozen=True):
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(_Reply, frozen=True):
    """What we read of OpenAI's chunks, of chats and of plain completions."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    shoal: Trace | None = None
    error: dict[str, object] | None = None


def _answer(chunk: _Chunk) -> Answer:
    choice = chunk.choices[0] if chunk.choices else _Choice()
    text = choice.text if choice.delta is None else choice.delta.content or ""
    return Answer(text, choice.finish_reason, chunk.usage, chunk.shoal)
