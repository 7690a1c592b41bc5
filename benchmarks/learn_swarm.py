"""Swarms that are measured: real daemons with a trainer process each, and groups of rivals.

A daemon is a `shoal up` process with its own state directory: libp2p identity, encrypted TCP on
loopback, no mDNS. A trainer is a child (`learn_member.py`), so the two share memory as a user's do.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shoal
from benchmarks.orders import Answer, Child, Failed
from benchmarks.systems import LOOPBACK, inside, rival_python
from wire.ids import PeerId

RIVALS = Path(__file__).parents[1] / ".rivals"
TORCH = "torch==2.13.0"  # the Makefile's: the build for processors
HIVEMIND = ("hivemind==1.1.12", "numpy==2.2.6")  # with numpy 2.4 its 8-bit codecs average nothing
UP = (sys.executable, "-P", "-m", "node.cli.main", "up", "--no-mdns")
NOBODY = PeerId("")
LEAD_S = 0.1  # between the order and the moment at which all begin
READY_S = 60.0
MEET_S = 60.0


@dataclass
class Node:
    """A daemon and its trainer. `namespace` is of the network, "" where we are."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    namespace: str = ""
    ip: str = LOOPBACK
    process: "subprocess.Popen[bytes] | None" = None
    trainer: Child | None = None
    peer: PeerId = NOBODY  # known once it has started

    def start(self, *options: str) -> None:
        """Start the daemon; it is ready on return."""
        self.launch(*options)
        self.await_ready()

    def launch(self, *options: str) -> None:
        """Start the daemon only."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        with self.home.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *inside(self.namespace),
                    *UP,
                    *("--listen", f"/ip4/{self.ip}/tcp/0", "--name", self.home.name),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**environment, **self.environment, "SHOAL_HOME": str(self.home)},
            )

    def await_ready(self) -> None:
        """Wait until it says who it is."""
        assert self.process is not None
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith(b"peer "):
            raise Failed(f"the daemon of {self.home} did not start")

    def train(self) -> Child:
        """Start a trainer; the one before is gone."""
        if self.trainer is not None:
            self.trainer.kill()
        self.trainer = self.python("trainer", ["-m", "benchmarks.learn_member", str(self.home)])
        return self.trainer

    def python(self, what: str, argv: list[str]) -> Child:
        """Start a child of ours that speaks to this daemon."""
        return Child(f"{what} of {self.home.name}", [sys.executable, *argv])

    @property
    def child(self) -> Child:
        """Its trainer."""
        assert self.trainer is not None, "has a trainer"
        return self.trainer

    @property
    def client(self) -> shoal.Client:
        """The daemon's control API."""
        return shoal.connect(self.home)

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send a signal to the daemon and to its trainer."""
        for pid in (self.pid, self.child.pid):
            self.send(pid, number)

    @staticmethod
    def send(pid: int, number: int) -> None:
        """Send a signal to a process that may be gone."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self) -> None:
        """kill -9 of both."""
        if self.trainer is not None:
            self.trainer.kill()
            self.trainer = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None


@dataclass
class Swarm:
    """Some nodes, connected with each other."""

    nodes: list[Node] = field(default_factory=list[Node])
    ticket: str = ""

    def attach(self, run: str, elements: int, **shape: Any) -> list[Answer]:
        """Let all trainers join a run that begins when all have."""
        for node in self.nodes:
            node.child.tell("attach", run=run, elements=elements, min_members=self.size, **shape)
        return [node.child.wait(READY_S) for node in self.nodes]

    def leave(self) -> None:
        """Let all trainers leave."""
        everybody(self.children, "leave")

    def restart(self, node: Node) -> None:
        """Bring a killed node back: same identity, no trainer's memory."""
        node.start()
        node.client.wait(peers=self.size - 1, timeout_s=MEET_S)
        node.train()

    @property
    def children(self) -> list[Child]:
        """The trainers."""
        return [node.child for node in self.nodes]

    @property
    def size(self) -> int:
        """How many nodes."""
        return len(self.nodes)


@contextmanager
def swarm(folder: Path, size: int) -> Generator[Swarm]:
    """Start daemons that know each other, with a trainer each; none is left running."""
    folder.mkdir(exist_ok=True)
    made = Swarm([Node(folder / f"node-{number}") for number in range(size)])
    try:
        made.nodes[0].start()
        made.ticket = made.nodes[0].client.ticket()
        for node in made.nodes[1:]:
            node.launch("--join", made.ticket)
        for node in made.nodes:
            node.train()  # it needs its daemon when it attaches
        for node in made.nodes[1:]:
            node.await_ready()
        for node in made.nodes:
            node.client.wait(peers=size - 1, timeout_s=MEET_S)
            node.peer = PeerId(node.client.id().peer)
            _ = node.child.hello
        yield made
    finally:
        for node in made.nodes:
            node.kill()


@contextmanager
def hivemind(size: int, elements: int, compression: str) -> Generator[list[Child]]:
    """Start a group of hivemind averagers. Raises Missing, Failed."""
    python = rival_python(RIVALS / "hivemind", *HIVEMIND, before=(TORCH,))
    argv = [python, "-m", "benchmarks.rivals.hivemind_node", str(size), str(elements), compression]
    with ExitStack() as stack:

        def start(*initial: str) -> Child:
            child = Child("hivemind", [*argv, *initial], has_children=True)
            return stack.enter_context(child)

        first = start()
        group = [first, *(start(str(first.hello["address"])) for _ in range(size - 1))]
        for child in group:
            _ = child.hello
        yield group


@contextmanager
def gloo(size: int, elements: int) -> Generator[list[Child]]:
    """Start a gloo process group. Raises Missing, Failed."""
    python = rival_python(RIVALS / "gloo", "numpy==2.2.6", before=(TORCH,))
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        argv = [python, "-m", "benchmarks.rivals.gloo_node"]
        sizes = (str(size), str(port), str(elements))
        group = [
            stack.enter_context(Child("gloo", [*argv, str(rank), *sizes])) for rank in range(size)
        ]
        for child in group:
            _ = child.hello
        yield group


def everybody(group: Sequence[Child], order: str, **arguments: Any) -> list[Answer]:
    """Give all an order and wait for all answers."""
    for child in group:
        child.tell(order, **arguments)
    return [child.wait() for child in group]


def step(group: Sequence[Child], *, wait_s: float = 150.0) -> list[Answer]:
    """Let all begin one round at the same moment."""
    at = time.monotonic() + LEAD_S
    for child in group:
        child.tell("step", at=at)
    return [child.wait(wait_s) for child in group]


def seconds(answers: Sequence[Answer], name: str = "seconds") -> float:
    """How long the slowest took."""
    return max(float(answer[name]) for answer in answers)


def wait_until(what: str, condition: Callable[[], bool], *, within_s: float = READY_S) -> None:
    """Look again and again. Raises Failed."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
