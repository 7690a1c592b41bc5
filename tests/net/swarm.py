"""Real daemons in the lab, and the judgement of how two of them talk: by sockets and byte counters.

What a daemon says of its own connections is not asked. A call that carries `PAYLOAD` bytes goes
from one to the other; the connection whose counter grew by as much is the path.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoal.errors import ClientError
from shoal.rpc import Serving
from tests.daemon.processes import Daemon
from tests.net.lab.lab import Lab

PAYLOAD = 100_000  # bytes: far above what members tell each other meanwhile
METHOD = "lab.swallow"
CALL_S = 10.0
POLL_S = 0.05
PathKind = Literal["direct", "relayed"]


@dataclass
class LabDaemon(Daemon):
    """A daemon in a host of a lab; benchmarks/reach_stage.py starts them."""

    lab: Lab | None = None
    peer: str = ""
    serving: Serving | None = None

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
    """Daemons of one swarm in a lab, by the names of their hosts."""

    lab: Lab
    folder: Path
    nodes: dict[str, LabDaemon] = field(default_factory=dict[str, LabDaemon])
    ticket: str = ""

    def call(self, one: str, other: str, *, timeout_s: float = CALL_S) -> None:
        """Carry `PAYLOAD` bytes from one to the other. Raises ClientError."""
        body = bytes(PAYLOAD)
        peer = self.nodes[other].peer
        answer = self.nodes[one].client.rpc(peer, METHOD, body, timeout_s=timeout_s)
        assert answer == PAYLOAD

    def judge(self, one: str, other: str) -> PathKind:
        """Call, and return by which path the bytes went. Raises ClientError."""
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
            with contextlib.suppress(ClientError):
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
                with contextlib.suppress(ClientError):
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
