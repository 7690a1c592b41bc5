"""Real daemons for tests: one process, one state directory each, TCP on loopback only."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import shoal

SHOAL = (sys.executable, "-P", "-m", "node.cli.main")
START_S = 30.0  # a start takes 2 s on a free machine
UP = ("up", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns")


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without options of the developer's own node."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def run(home: Path, *args: str, timeout_s: float = START_S) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end."""
    return subprocess.run(
        [*SHOAL, *args],
        env=clean_environment(SHOAL_HOME=str(home)),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@dataclass
class Daemon:
    """One daemon in the foreground. What it prints is in `said`."""

    home: Path
    args: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict[str, str])
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def said(self) -> str:
        """All it printed, over all its starts."""
        path = self.home.with_name(self.home.name + ".said")
        return path.read_text() if path.exists() else ""

    @property
    def client(self) -> shoal.Client:
        """A client of it."""
        return shoal.connect(self.home)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def start(self, *more: str) -> "Daemon":
        """Start it and wait until it is ready."""
        self.launch(*more)
        self.await_ready()
        return self

    def launch(self, *more: str) -> None:
        """Start it only."""
        with self.home.with_name(self.home.name + ".said").open("ab") as said:
            self.process = subprocess.Popen(
                [*SHOAL, *UP, "--name", self.home.name, *self.args, *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env=clean_environment(SHOAL_HOME=str(self.home), **self.environment),
            )

    def await_ready(self) -> None:
        """Wait until it printed its peer ID, which it does when it is ready."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(b"peer "), self.said

    def wait(self, timeout_s: float = 10.0) -> int:
        """Wait until it has ended; return its exit status."""
        assert self.process is not None
        status = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.wait()


@contextmanager
def daemons(folder: Path, *names: str) -> Generator[list[Daemon]]:
    """Make daemons (not yet started), and leave none of them running."""
    made = [Daemon(folder / name) for name in names]
    try:
        yield made
    finally:
        for daemon in made:
            daemon.kill()
