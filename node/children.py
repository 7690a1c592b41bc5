"""Child processes of the daemon: each in a group of its own, logged to a file, never orphaned.

A child holds the reading end of a pipe (SHOAL_LIFELINE_FD) whose writing end only the daemon has;
`shoal.lifeline.watch()` in the child ends it when the daemon is gone, also after kill -9.
"""

import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from shoal.lifeline import ENVIRONMENT_KEY

GRACE_S = 3.0  # seconds between SIGTERM and SIGKILL; the whole daemon drains within 5
REAP_S = 2.0  # seconds for the kernel to bury a process after SIGKILL
LOG_MAX_BYTES = 8 * 1024 * 1024  # a child's log is moved aside when it starts over this size


class Child:
    """A running child. `returncode` is None while it lives, negative if a signal ended it."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process ID, which is also its group's."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it lives."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        return await self._process.wait()

    async def terminate(self, grace_s: float = GRACE_S) -> int | None:
        """End it and its group: SIGTERM, then SIGKILL after `grace_s`. None if it is stuck."""
        if self.returncode is None:
            self._signal(signal.SIGTERM)
            with trio.move_on_after(grace_s):
                return await self._ended()
        self._signal(signal.SIGKILL)
        with trio.move_on_after(REAP_S):
            await self.wait()
        return self.returncode

    async def _ended(self) -> int:
        status = await self.wait()
        self._signal(signal.SIGKILL)  # what it started and left behind
        return status

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # the group is gone


@asynccontextmanager
async def open_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log_path: Path,
    pass_fds: Sequence[int] = (),
    grace_s: float = GRACE_S,
) -> AsyncGenerator[Child]:
    """Run a child for the length of the block; leaving it terminates the child.

    `env` is added to the daemon's own environment. Both of its outputs are appended to `log_path`.
    """
    lifeline, ours = os.pipe()
    try:
        try:
            process = await _start(argv, env or {}, log_path, lifeline, pass_fds)
        finally:
            os.close(lifeline)
        child = Child(process)
        try:
            yield child
        finally:
            with trio.move_on_after(grace_s + 2 * REAP_S) as burial:
                burial.shield = True
                await child.terminate(grace_s)
    finally:
        os.close(ours)


async def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    log_path: Path,
    lifeline: int,
    pass_fds: Sequence[int],
) -> trio.Process:
    log = _open_log(log_path)
    try:
        return await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **env, ENVIRONMENT_KEY: str(lifeline)},
            start_new_session=True,
            pass_fds=(*pass_fds, lifeline),
        )
    finally:
        os.close(log)


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > LOG_MAX_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
