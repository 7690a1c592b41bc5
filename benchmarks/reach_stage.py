"""The NAT lab with a swarm of real daemons in it, forked off one process: a start is 0.2 s.

What a path is, sockets and their byte counters say (tests/net/swarm.py), never a daemon.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.orders import Child
from benchmarks.report import progress
from tests.net.lab.lab import Lab, Site, missing
from tests.net.swarm import LabDaemon, Swarm

RELAYS = ("pub1", "pub2")
DELAY_MS = 10.0  # one way, of each private site
READY_S = 120.0  # for twenty daemons on a machine that has other work
FORGE = [sys.executable, "-m", "benchmarks.forge"]


class Unavailable(Exception):
    """There is no lab on this machine; the message says why."""


@dataclass
class Forged(LabDaemon):
    """A daemon that a forge made."""

    forged_pid: int = 0

    def kill(self) -> None:
        """kill -9; its forge is the parent, and reaps it."""
        if self.serving is not None:
            self.serving.close()
            self.serving = None
        if self.forged_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.forged_pid, signal.SIGKILL)
        self.forged_pid = 0


@dataclass
class Stage(Swarm):
    """A swarm in a lab, whose daemons a forge makes."""

    forge: Child = field(kw_only=True)

    def up(self, hosts: Iterable[str], *args: str) -> None:
        """Start daemons in these hosts, all at once; return when they serve."""
        names = list(hosts)
        made = {name: Forged(self.folder / name, lab=self.lab) for name in names}
        joining = ["--join", self.ticket] if self.ticket else []
        answer = self.forge.ask(
            "up",
            timeout_s=READY_S,
            homes=[str(self.folder / name) for name in names],
            args=["--no-offer", *args, *joining],
            fresh=False,
            inside=[self.lab.hosts[name].box.path for name in names],
        )
        for name, pid in zip(names, answer["pids"], strict=True):
            made[name].forged_pid = pid
            self.nodes[name] = made[name]
            made[name].serve()
        if not self.ticket:
            self.ticket = made[names[0]].client.ticket()


@contextlib.contextmanager
def stage(
    sites: Iterable[Site], *, relays: Sequence[str] = RELAYS, public_ipv6: bool = False
) -> Generator[Stage]:
    """Build a lab, start its public members; nothing is left of it at the end.

    Raises Unavailable.
    """
    reason = missing()
    if reason is not None:
        raise Unavailable(reason)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        lab = stack.enter_context(Lab(list(sites), publics=len(relays), public_ipv6=public_ipv6))
        forge = stack.enter_context(Child("forge", FORGE))
        made = Stage(lab, folder, forge=forge)
        stack.callback(made.close)
        first, *rest = relays
        made.up([first])
        if rest:
            made.up(rest)
        progress(f"a lab of {len(lab.sites)} sites; {1 + len(rest)} public members")
        yield made
