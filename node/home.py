"""The state directory: which file is where, and the lock that keeps a second daemon out."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wire.errors import ShoalError, UsageError

_PID_MAX_BYTES = 32  # bytes read from the lock file; a pid has at most 7 digits


class AlreadyRunning(ShoalError):
    """Another daemon holds this state directory."""

    code = "already_running"


@dataclass(frozen=True)
class Home:
    """Where everything of one node lives."""

    path: Path

    @property
    def identity(self) -> Path:
        """The Ed25519 seed, mode 0600."""
        return self.path / "identity.key"

    @property
    def swarm(self) -> Path:
        """The swarm's ticket, mode 0600."""
        return self.path / "swarm.key"

    @property
    def config(self) -> Path:
        """The configuration file, if the user wrote one."""
        return self.path / "node.toml"

    @property
    def store(self) -> Path:
        """The replicated store's database."""
        return self.path / "store.db"

    @property
    def blobs(self) -> Path:
        """The folder of blobs."""
        return self.path / "blobs"

    @property
    def runs(self) -> Path:
        """The folder of training runs, one folder each."""
        return self.path / "runs"

    @property
    def models(self) -> Path:
        """The folder of models."""
        return self.path / "models"

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.path / "control.sock"

    @property
    def lock_file(self) -> Path:
        """Held by the running daemon, with its pid inside."""
        return self.path / "node.lock"

    @property
    def log(self) -> Path:
        """The daemon's log."""
        return self.path / "daemon.log"

    @property
    def startup_log(self) -> Path:
        """What a daemon in the background printed: tracebacks before the log was open."""
        return self.path / "startup.log"

    @property
    def token(self) -> Path:
        """The bearer token of the loopback port, mode 0600."""
        return self.path / "http.token"

    @property
    def peers(self) -> Path:
        """Addresses of peers met before, for a start without a ticket."""
        return self.path / "peers.json"

    @property
    def dht(self) -> Path:
        """The DHT's contacts and our own values, for a start without a bootstrap peer."""
        return self.path / "dht.msgpack"

    @property
    def ports(self) -> Path:
        """The ports that we listened on at the last start."""
        return self.path / "ports.json"

    def make(self) -> None:
        """Create the directory, mode 0700. Raises UsageError if that cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.stat().st_uid == os.getuid():
                self.path.chmod(0o700)  # also if it was there before
        except OSError as error:
            raise UsageError(
                f"cannot use {self.path} as the state directory: {error.strerror}",
                hint="name another one with --home DIR",
            ) from error

    @contextmanager
    def lock(self) -> Generator[None]:
        """Hold the directory. Raises AlreadyRunning, naming the pid of the daemon that has it.

        The kernel drops the lock with the process, so kill -9 leaves nothing to clean up.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid = os.read(descriptor, _PID_MAX_BYTES).decode("ascii", "replace").strip()
                raise AlreadyRunning(
                    f"{self.path} is in use by the daemon with pid {pid or 'unknown'}",
                    hint="`shoal status` shows it, `shoal down` stops it",
                ) from error
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(descriptor)
