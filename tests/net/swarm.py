"""Real daemons in the lab, and the judgement of how two of them talk: by sockets and byte counters.

What a daemon says of its own connections is not asked. A call that carries `PAYLOAD` bytes goes
from one to the other; the connection whose counter grew by as much is the path.
"""

import contextlib
import subprocess
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import shoal
from tests.daemon.processes import SHOAL, Daemon, clean_environment
from tests.net.lab.lab import Lab

ROOT = Path(__file__).parents[2]
PAYLOAD = 100_000  # bytes: far above what members tell each other meanwhile
METHOD = "lab.swallow"
CALL_S = 10.0
AT_ONCE = 3  # daemons that start at the same time; each takes a second of a core
POLL_S = 0.05
PathKind = Literal["direct", "relayed"]


@dataclass
class LabDaemon(Daemon):
    """A daemon in a host of a lab."""

    lab: Lab | None = None
    peer: str = ""
    serving: "shoal.Serving | None" = None

    @property
    def host(self) -> str:
        """Where it runs."""
        return self.home.name

    def launch(self, *more: str) -> None:
        """Start it only."""
        assert self.lab is not None
        words = ["up", "--no-mdns", "--no-offer", "--name", self.host, *self.args, *more]
        with self.home.with_name(self.home.name + ".said").open("ab") as said:
            self.process = self.lab.popen(
                self.host,
                [*SHOAL, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=ROOT,
                env=clean_environment(
                    SHOAL_HOME=str(self.home), PYTHONPATH=str(ROOT), **self.environment
                ),
            )

    def serve(self) -> None:
        """Answer the calls by which paths are judged."""
        self.peer = self.client.id().peer
        self.serving = self.client.serve({METHOD: len}, places=2)

    def kill(self) -> None:
        """kill -9, or the end of what was killed with its host."""
        if self.serving is not None:
            self.serving.close()
            self.serving = None
        super().kill()


@dataclass
class Swarm:
    """Daemons of one swarm in a lab. The first to start begins it, the others join by ticket."""

    lab: Lab
    folder: Path
    nodes: dict[str, LabDaemon] = field(default_factory=dict[str, LabDaemon])
    ticket: str = ""

    def start(self, hosts: Iterable[str], *args: str) -> None:
        """Start daemons in these hosts, some at a time; return when all are ready."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda host: self.start_one(host, *args), hosts))

    def start_one(self, host: str, *args: str) -> LabDaemon:
        """Start a daemon, or one that was killed again."""
        node = self.nodes.get(host) or LabDaemon(self.folder / host, lab=self.lab)
        is_first, is_new = not self.nodes, host not in self.nodes
        self.nodes[host] = node
        node.start(*args, *(["--join", self.ticket] if is_new and not is_first else []))
        node.serve()
        if is_first:
            self.ticket = node.client.ticket()
        return node

    def call(self, one: str, other: str, *, timeout_s: float = CALL_S) -> None:
        """Carry `PAYLOAD` bytes from one to the other. Raises shoal.ApiError."""
        body = bytes(PAYLOAD)
        peer = self.nodes[other].peer
        answer = self.nodes[one].client.rpc(peer, METHOD, body, timeout_s=timeout_s)
        assert answer == PAYLOAD

    def judge(self, one: str, other: str) -> PathKind:
        """Call, and return by which path the bytes went. Raises shoal.ApiError."""
        before = self._direct_bytes(one, other)
        self.call(one, other)
        after = self._direct_bytes(one, other)
        grown = sum(after.values()) - sum(before.get(key, 0) for key in after)
        return "direct" if grown >= PAYLOAD else "relayed"

    def has_socket(self, one: str, other: str) -> bool:
        """Whether a TCP connection leads from one to the other, whatever for."""
        return bool(self._direct_bytes(one, other))

    def await_talk(self, one: str, other: str, *, timeout_s: float) -> float | None:
        """Call until it succeeds; return the seconds that took, None if it never did."""
        begun = time.monotonic()
        while (spent := time.monotonic() - begun) < timeout_s:
            with contextlib.suppress(shoal.ApiError):
                self.call(one, other, timeout_s=timeout_s - spent)
                return time.monotonic() - begun
            time.sleep(POLL_S)
        return None

    def await_direct(self, one: str, other: str, *, timeout_s: float) -> float | None:
        """Wait for a socket between the two over which calls go; seconds, or None."""
        begun = time.monotonic()
        while time.monotonic() - begun < timeout_s:
            seen = time.monotonic() - begun
            if self.has_socket(one, other):
                with contextlib.suppress(shoal.ApiError):
                    if self.judge(one, other) == "direct":
                        return seen
            time.sleep(POLL_S)
        return None

    def sever(self, one: str, other: str) -> None:
        """End all direct connections between the two (the kernel resets them)."""
        for ip in self._ips(other):
            self.lab.run(one, ["ss", "-K", "-tnH", "dst", ip])

    def close(self) -> None:
        """Kill all."""
        for node in self.nodes.values():
            node.kill()

    def _direct_bytes(self, one: str, other: str) -> dict[Any, int]:
        ips = self._ips(other)
        return {
            (each.local, each.remote): each.sent
            for each in self.lab.connections(one)
            if each.remote[0] in ips and each.state == "ESTAB"
        }

    def _ips(self, host: str) -> set[str]:
        return {*self.lab.outside_ips(host)}


@contextlib.contextmanager
def swarm(lab: Lab, folder: Path, *relays: str) -> Generator[Swarm]:
    """A swarm whose public members are these; nothing of it is left at the end."""
    made = Swarm(lab, folder)
    try:
        for relay in relays[:1]:
            made.start_one(relay)
        made.start(relays[1:])
        yield made
    finally:
        made.close()
