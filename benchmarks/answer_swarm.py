# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (transformers is annotated in part)
"""Swarms that serve a model, and how they are asked: real daemons, each with its worker processes.

A daemon is a `shoal up` process with its own state directory: libp2p identity, encrypted TCP on
loopback or in a network namespace, no mDNS. Spans are told with `shoal host --blocks`, as a person
would. Questions go to the endpoint that OpenAI's clients use, over the control socket.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.delay_line import IPS
from benchmarks.learn_swarm import MEET_S, Node, wait_until
from benchmarks.orders import Failed
from shoal import library, models
from wire.ids import PeerId

NAME = "bench"  # of the model
ROOM_GIB = "2"  # that a host offers
READY_S = 180.0  # to bring parts over and load them, with torch, on a machine with other work
COMMAND_S = 150.0
SHOAL = (sys.executable, "-P", "-m", "node.cli.main")

Span = tuple[int, int]


@dataclass
class Asked:
    """An answer: its text or its tokens, and when each piece of it came."""

    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    at: list[float] = field(default_factory=list[float])
    count: int = 0  # of tokens
    trace: models.Trace | None = None

    @property
    def rate(self) -> float:
        """Tokens a second from the first to the last."""
        count = self.count or len(self.tokens)
        return (count - 1) / (self.at[-1] - self.at[0])

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two pieces."""
        return max(after - before for before, after in itertools.pairwise(self.at))


@dataclass
class Serving:
    """Some nodes with a model, and the one that is asked."""

    entry: Node
    hosts: list[Node]
    spans: list[Span]  # of the hosts, in their order
    ticket: str
    tokenizer: Any

    def ask(
        self,
        prompt: str,
        tokens: int,
        *,
        on_piece: Callable[[int], None] = lambda _: None,
        at: Node | None = None,
        speculate: bool = True,
    ) -> Asked:
        """Ask for so many tokens, greedily; `on_piece` is told of each piece of the answer."""
        asked = Asked()
        client = (at or self.entry).client
        for piece in models.generate(
            client, prompt, model=NAME, max_tokens=tokens, speculate=speculate
        ):
            if piece.text:
                asked.text += piece.text
                asked.at.append(time.perf_counter())
                on_piece(len(asked.at))
            if piece.usage is not None:
                asked.count, asked.trace = piece.usage.completion_tokens, piece.trace
        if asked.count != tokens:
            raise Failed(f"{asked.count} tokens of {tokens}")
        return asked

    def token_ids(self, text: str) -> list[int]:
        """Return a prompt's tokens, as the model's tokenizer makes them."""
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def text(self, tokens: list[int]) -> str:
        """Return what tokens read."""
        decode = self.tokenizer.decode
        return str(decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def model(self) -> models.Model:
        """Return what the entry knows of the model."""
        return next(one for one in models.models(self.entry.client) if one.name == NAME)

    def ready(self, spans: Sequence[tuple[Node, Span]]) -> bool:
        """Whether these nodes compute these spans now, as the entry sees it."""
        return all(set(range(*span)) <= self.layers_of(node) for node, span in spans)

    def has_all(self, node: Node) -> bool:
        """Whether a node computes the whole model by itself now."""
        return self.layers_of(node) == set(range(self.model().layers))

    def layers_of(self, node: Node) -> set[int]:
        """Return the blocks that a node computes now, as the entry sees it."""
        spans = [
            range(stage.start, stage.end)
            for one in models.models(self.entry.client)  # it may not know of the model yet
            for stage in (one.stages if one.name == NAME else [])
            if stage.state == "ready" and stage.peer == node.peer
        ]
        return {layer for span in spans for layer in span}

    def await_hosts(self) -> None:
        """Wait until every host computes its span. Raises Failed."""
        placed = list(zip(self.hosts, self.spans, strict=True))
        wait_until("all spans are ready", lambda: self.ready(placed), within_s=READY_S)

    def restart(self, node: Node) -> None:
        """Bring a killed node back: same identity, same span."""
        node.start("--join", self.ticket)


def shoal(node: Node, *command: str) -> str:
    """Run a command of `shoal` against a node; return what it prints. Raises Failed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    done = subprocess.run(
        [*SHOAL, *command],
        env={**environment, "SHOAL_HOME": str(node.home)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode:
        raise Failed(f"`shoal {' '.join(command)}`: {done.stderr.strip()[-500:]}")
    return done.stdout


def workers_of(node: Node) -> list[int]:
    """Find a daemon's stage workers: their folder is in its home."""
    found = list[int]()
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"protocols.sharding.worker" in command and f"={node.home}/".encode() in command:
            found.append(int(folder.name))
    return found


@contextmanager
def serving(
    folder: Path,
    model: Path,
    spans: Sequence[Span],
    *,
    entry: bool = True,
    pinned: bool = True,
    namespaces: Sequence[str] = (),
    **environment: str,
) -> Generator[Serving]:
    """Start a daemon for each span, and one that hosts nothing for the entry, or the first host.

    pinned: each is told its span; else they place the model by themselves, as `spans` should be.
    namespaces: of the network, one for each node in the order of `IPS`, the entry first. None is
    left running.
    """
    folder.mkdir(exist_ok=True)
    names = [*(["entry"] if entry else []), *(f"host-{n}" for n in range(len(spans)))]
    nodes = [Node(folder / name, environment=dict(environment)) for name in names]
    for node, namespace, ip in zip(nodes, namespaces, IPS, strict=False):
        node.namespace, node.ip = namespace, ip
    hosts = nodes[1:] if entry else nodes
    for node in hosts:
        node.environment["SHOAL_SERVE__MEMORY_GIB"] = ROOM_GIB
    if entry:
        nodes[0].environment["SHOAL_SERVE__OFFER"] = "false"
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.kill)
        nodes[0].start()
        ticket = nodes[0].client.ticket()
        for node in nodes[1:]:
            node.launch("--join", ticket)
        for node in nodes[1:]:
            node.await_ready()
        for node in nodes:
            node.client.wait(peers=len(nodes) - 1, timeout_s=MEET_S)
            node.peer = PeerId(node.client.id().peer)
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        made = Serving(nodes[0], hosts, list(spans), ticket, tokenizer)
        if not pinned:
            _place(made, model)
            yield made
            return
        shoal(nodes[0], "model", "add", str(model), "--name", NAME)
        for node, (start, end) in zip(hosts, spans, strict=True):
            wait_until("the model is known", partial(_knows, node))
            shoal(node, "host", NAME, "--blocks", f"{start}:{end}")
        made.await_hosts()
        yield made


def _place(made: Serving, model: Path) -> None:
    """Let the hosts share the model; `made` then has them in the order of their spans."""
    steps = list(models.serve(made.entry.client, str(model), name=NAME))
    if steps[-1].model is None or not steps[-1].model.ready:
        raise Failed("the model did not come into service")

    def placed() -> bool:
        return {(stage.start, stage.end) for stage in made.model().stages} == set(made.spans)

    wait_until("each host has a span", placed, within_s=READY_S)
    starts = {stage.peer: stage.start for stage in made.model().stages}
    made.hosts.sort(key=lambda node: starts[node.peer])


def _knows(node: Node) -> bool:
    return any(model.name == NAME for model in library.known_models(node.client))
