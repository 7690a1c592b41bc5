"""A swarm of real daemons on one machine, for the demo: started, killed and stopped by the CLI.

Each node is `shoal up` in a process of its own, with a state directory of its own, on loopback TCP.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from shoal import Client, connect
from shoal.errors import ClientError

READY_WITHIN_S = 20.0  # seconds; a daemon is ready in under 2, the machine may be busy
DOWN_WITHIN_S = 8.0  # seconds; a daemon drains within 5


class DemoFailed(Exception):
    """A fact that the demo shows is not so."""


@dataclass
class DemoNode:
    """One daemon of the demo."""

    name: str
    home: Path
    http_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> Client:
        """Return a client of this node's daemon."""
        return connect(home=self.home)

    def up(self, *, ticket: str | None = None) -> None:
        """Start the daemon and wait until it is ready."""
        argv = [
            *(sys.executable, "-P", "-m", "node.cli.main", "--home", str(self.home)),
            *("up", "--name", self.name, "--listen", "/ip4/127.0.0.1/tcp/0"),
            *("--http", f"127.0.0.1:{self.http_port}"),
            *(("--join", ticket) if ticket else ()),
        ]
        with (self.home.parent / f"{self.name}.out").open("ab") as out:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env={**os.environ, "SHOAL_NET__MDNS": "false"}, start_new_session=True,
            )  # fmt: skip
        self._wait_ready()

    def shoal(self, *command: str) -> str:
        """Run a command of the command line; return what it prints. Raises DemoFailed."""
        argv = [sys.executable, "-P", "-m", "node.cli.main", "--home", str(self.home), *command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoFailed(f"`shoal {' '.join(command[:2])}` failed: {done.stderr.strip()}")
        return done.stdout

    def kill(self) -> None:
        """End the daemon as a power cut would: SIGKILL, no goodbye."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(DOWN_WITHIN_S)
        self.process = None

    def down(self) -> None:
        """Stop the daemon; kill it if it does not stop in time."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(DOWN_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(DOWN_WITHIN_S)
            raise DemoFailed(f"{self.name} did not stop within {DOWN_WITHIN_S:g} s") from None
        finally:
            self.process = None

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise DemoFailed(f"{self.name} ended at its start; see {self.name}.out")
            with contextlib.suppress(ClientError):
                if self.client.status().state == "ready":
                    return
            time.sleep(0.05)
        raise DemoFailed(f"{self.name} was not ready within {READY_WITHIN_S:g} s")


@dataclass
class DemoSwarm:
    """The nodes, and the certainty that none is left running."""

    folder: Path
    nodes: list[DemoNode] = field(default_factory=list[DemoNode])

    def start(self, names: list[str]) -> None:
        """Start the first node, then the others with its ticket."""
        ticket = None
        for name in names:
            node = DemoNode(name, self.folder / name, _free_port())
            self.nodes.append(node)
            node.up(ticket=ticket)
            ticket = ticket or node.client.ticket()

    def node(self, name: str) -> DemoNode:
        """Return a node by its name."""
        return next(node for node in self.nodes if node.name == name)

    def stop(self) -> None:
        """Stop every daemon, all at once, whatever happened before."""
        for node in self.nodes:
            if node.process is not None:
                node.process.terminate()
        for node in self.nodes:
            node.down()


@contextlib.contextmanager
def demo_swarm(folder: Path) -> Generator[DemoSwarm]:
    """Give an empty swarm in a fresh folder; leaving the block stops what was started."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    swarm = DemoSwarm(folder)
    try:
        yield swarm
    finally:
        swarm.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
