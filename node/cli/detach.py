"""`shoal up --detach`: the same command again in a session of its own, until it is ready."""

import os
import secrets
import select
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from node.home import Home
from shoal.errors import ClientError, TimedOut

READY_WAIT_S = 30.0  # a start takes 2 s; a machine that swaps may take longer
SAID_MAX_BYTES = 4096  # of what a daemon that failed had to say


def start_in_background(path: Path) -> None:
    """Start the daemon with this process's own arguments; return once it is ready.

    Raises StartFailed with what it said, and with its exit status, if it ended before.
    """
    home = Home(path.absolute())
    home.make()
    address = f"shoal-{os.getpid()}-{secrets.token_hex(8)}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as ready:
        ready.bind("\0" + address)  # Linux's abstract names: nothing to clean up
        with home.startup_log.open("wb") as said:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "node.cli.main", *sys.argv[1:], "--in-background"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, "NOTIFY_SOCKET": "@" + address},
                start_new_session=True,
            )
        _await_ready(child, ready, home)


def _await_ready(child: "subprocess.Popen[bytes]", ready: socket.socket, home: Home) -> None:
    process = os.pidfd_open(child.pid)
    try:
        heard, _, _ = select.select([ready.fileno(), process], [], [], READY_WAIT_S)
    finally:
        os.close(process)
    if ready.fileno() in heard:
        child.returncode = 0  # it lives on without us: nothing to wait for
        return
    if not heard:
        child.returncode = 0
        raise TimedOut(
            f"the daemon is not ready after {READY_WAIT_S:g} s (pid {child.pid})",
            hint=f"look into {home.log}",
        )
    status = child.wait()
    said = home.startup_log.read_bytes()[-SAID_MAX_BYTES:].decode("utf-8", "replace").strip()
    raise StartFailed(said, status)


class StartFailed(ClientError):
    """The daemon in the background ended before it was ready."""

    def __init__(self, said: str, status: int) -> None:
        first, _, rest = said.removeprefix("error: ").partition("\n  try: ")
        super().__init__(first or f"the daemon ended with status {status}", hint=rest)
        self.exit_code = status if 0 < status < 128 else 1
