"""Children of the daemon: they end with it, whatever way it goes, and take their own along."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from node.children import Child, open_child
from shoal.lifeline import watch

WAITS = """
import shoal.lifeline, time
shoal.lifeline.watch()
print('up', flush=True)
time.sleep(60)
"""
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN)" + WAITS
PARENT = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).pid, flush=True)
{WAITS}"""
# A "daemon" that starts a child, says its pid and then hangs in the middle of its work.
DAEMON = """
import sys, pathlib, trio
from node.children import open_child
async def main():
    log = pathlib.Path(sys.argv[1])
    async with open_child([sys.executable, "-c", sys.argv[2]], log_path=log) as child:
        while "up" not in log.read_text(): await trio.sleep(0.01)
        print(child.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def until_it_said(path: Path, word: str) -> None:
    with trio.fail_after(10):
        while word not in await trio.Path(path).read_text():  # noqa: ASYNC110 - a process
            await trio.sleep(0.01)


async def until_gone(pid: int) -> None:
    with trio.fail_after(10):
        while is_running(pid):  # noqa: ASYNC110 - another process
            await trio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_a_child_gets_its_environment_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    code = "import os, sys; print(os.environ['WORD']); sys.exit(7)"
    async with open_child(python(code), env={"WORD": "fish"}, log_path=log) as child:
        assert await child.wait() == 7
    assert log.read_text() == "fish\n"
    assert log.stat().st_mode & 0o077 == 0


async def test_leaving_the_block_ends_the_child_and_what_it_left_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_child(python(PARENT), log_path=log) as child:
        await until_it_said(log, "up\nup\n")  # both
        grandchild = int(log.read_text().split()[0])
        assert os.getpgid(child.pid) == child.pid
    assert child.returncode == -signal.SIGTERM
    await until_gone(grandchild)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with open_child(python(STUBBORN), log_path=log) as child:
        await until_it_said(log, "up")
        assert await child.terminate(grace_s=0.1) == -signal.SIGKILL


async def test_cancellation_ends_the_child(tmp_path: Path) -> None:
    children: list[Child] = []
    with trio.CancelScope() as scope:
        async with open_child(python(WAITS), log_path=tmp_path / "log") as child:
            children.append(child)
            scope.cancel()
            await trio.sleep_forever()
    assert children[0].returncode is not None


async def test_children_of_a_killed_daemon_end_by_themselves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    daemon = await trio.lowlevel.open_process(
        [*python(DAEMON), str(log), WAITS], stdout=subprocess.PIPE
    )
    assert daemon.stdout is not None
    async with daemon.stdout:
        pid = int(await daemon.stdout.receive_some())
        assert is_running(pid)
        daemon.kill()
        await daemon.wait()
    await until_gone(pid)


async def test_the_lifeline_ends_a_process_in_a_group_of_others_alone(tmp_path: Path) -> None:
    lifeline, ours = os.pipe()
    process = await trio.lowlevel.open_process(
        python(WAITS),
        pass_fds=[lifeline],
        env={**os.environ, "SHOAL_LIFELINE_FD": str(lifeline)},
        stdout=subprocess.PIPE,
    )
    os.close(lifeline)
    assert process.stdout is not None
    async with process.stdout:
        await process.stdout.receive_some()
        os.close(ours)
        with trio.fail_after(10):
            assert await process.wait() == 1


def test_without_a_lifeline_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_LIFELINE_FD", raising=False)
    assert not watch()


async def test_a_program_that_is_not_there_leaks_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    try:
        async with open_child(["/no/such/program"], log_path=tmp_path / "log"):
            raise AssertionError
    except FileNotFoundError:
        pass
    assert len(os.listdir("/proc/self/fd")) == before
