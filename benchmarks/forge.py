"""Many daemons at once, one process each: they are forked off one that has the program loaded.

A start of `shoal up` is mostly imports; thirty of them would take a minute of the machine's time
before anything is measured. What is forked is the same command, from its arguments on. `daemons`
starts a swarm that way for a benchmark.
"""

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import shoal
from benchmarks.orders import Answer, Child, answer_orders, say

LISTEN = "/ip4/127.0.0.1/tcp/0"
ON_LOOPBACK = ("--listen", LISTEN)
CLONE_NEWNET = 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h: no daemon outlives its forge
FIRST_WORD = b"peer "  # of what a daemon prints once it is ready
READY_S = 120.0  # for thirty daemons on a machine that has other work
PEERS_MIN = 3  # a member of a swarm need not be connected to all of it


@dataclass(frozen=True)
class Forged:
    """One running daemon."""

    home: Path
    pid: int

    @property
    def client(self) -> shoal.Client:
        """A client of it."""
        return shoal.connect(self.home)

    @property
    def cpu_s(self) -> float:
        """Processor time of the process so far, of all threads that still run."""
        each = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(one.read_text().split()[0]) for one in each) / 1e9

    @property
    def rss_mb(self) -> float:
        """Resident memory in MB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def has_loaded(self, library: str) -> bool:
        """Tell whether a library of that name is mapped into it."""
        return library in Path(f"/proc/{self.pid}/maps").read_text()


@contextmanager
def daemons(count: int, *args: str, first_peers: int = PEERS_MIN) -> Generator[list[Forged]]:
    """Start a swarm of `count` daemons and wait until they are connected.

    The first makes the swarm, is a fresh process like any user's, and has at least `first_peers`;
    the others join it. They are killed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        homes = [Path(folder) / f"d{number}" for number in range(count)]
        with Child("forge", [sys.executable, "-m", "benchmarks.forge"]) as forge:
            up = partial(forge.ask, "up", timeout_s=READY_S)
            first = up(homes=[str(homes[0])], args=args, fresh=True)["pids"]
            joining = [*args, "--join", shoal.connect(homes[0]).ticket()]
            rest = up(homes=[str(home) for home in homes[1:]], args=joining, fresh=False)["pids"]
            made = [Forged(home, pid) for home, pid in zip(homes, first + rest, strict=True)]
            made[0].client.wait(peers=min(count - 1, first_peers), timeout_s=READY_S)
            for daemon in made[1:]:
                daemon.client.wait(peers=min(count - 1, PEERS_MIN), timeout_s=READY_S)
            yield made


def _up(
    said: list[BinaryIO],
    homes: list[str],
    args: list[str],
    fresh: bool,
    inside: list[str] | None = None,
) -> Answer:
    """Fork a daemon for each home and wait until all are ready; fresh: load the program anew.

    said: where their outputs are kept open, for what they say later.
    inside: files of the network namespaces that they live in (tests/net/lab), if not in ours.
    """
    if homes and not fresh:
        import node.cli.core
        import node.cli.daemon
        import node.daemon  # noqa: F401
    pipes = dict[int, int]()
    for at, home in enumerate(homes):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            if inside:
                _enter(inside[at])
            _become_daemon(home, args if inside else [*ON_LOOPBACK, *args], writer, fresh)
        os.close(writer)
        pipes[pid] = reader
    for at, (pid, reader) in enumerate(pipes.items()):
        said.append(os.fdopen(reader, "rb"))
        line = said[-1].readline()
        if not line.startswith(FIRST_WORD):
            words = Path(f"{homes[at]}.said").read_text()[-500:]
            raise RuntimeError(f"daemon {pid} did not start: {line!r}: {words}")
    return {"pids": list(pipes)}


def _enter(namespace: str) -> None:
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None).setns(descriptor, CLONE_NEWNET):
        os._exit(1)  # its parent sees that it says nothing


def _become_daemon(home: str, args: list[str], output: int, fresh: bool) -> None:
    """Run `shoal up` in this process. Never returns."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for key in [key for key in os.environ if key.startswith("SHOAL_")]:
        del os.environ[key]  # options of the developer's own node
    os.environ["SHOAL_HOME"] = home
    said = os.open(f"{home}.said", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (said, 2)):
        os.dup2(source, target)
    words = ["up", "--no-mdns", "--name", Path(home).name, *args]
    if fresh:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "node.cli.main", *words])
    sys.argv = ["shoal", *words]
    from node.cli.main import main as run_command

    try:
        run_command()
    finally:
        os._exit(0)


def main() -> None:
    """Fork daemons off until the input ends."""
    say({})
    answer_orders({"up": partial(_up, [])})


if __name__ == "__main__":
    main()
