"""Commands without a daemon: usage errors, configuration, new swarms, and what they import."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from node.cli import main
from node.cli.rpc import JSON_MAX
from node.tickets import fresh_swarm, parse_ticket
from shoal.channels import PUBLISH_MAX
from tests.unit.fake_node import SHOAL, shoal


async def test_no_daemon_is_exit_3_with_what_to_type(tmp_path: Path) -> None:
    done = await shoal(tmp_path, "status")
    assert done.returncode == 3
    assert b"  try: start it with `shoal up`" in done.stderr
    assert (await shoal(tmp_path, "down")).returncode == 3


@pytest.mark.parametrize(
    "args",
    [
        ("peerz",),
        ("wait", "--timeout", "soon"),
        ("ping",),
        ("ping", "bob", "-c", "0"),
        ("status", "--nope"),
        ("up", "--join", "shoal1garbage"),
        ("up", "--join", ""),
        ("up", "--join", "tskey-auth-abc"),
        ("up", "--detach", "--join", "shoal1garbage"),
        ("up", "--listen", "here"),
        ("up", "--config", "/no/such/file"),
        ("up", "--http", "0.0.0.0:1"),
        ("config", "check", "/no/such/file"),
    ],
)
async def test_usage_errors_are_exit_2_and_leave_no_trace(
    tmp_path: Path, args: tuple[str, ...]
) -> None:
    home = tmp_path / "home"
    done = await shoal(home, *args)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 4
    assert not home.exists()


async def test_garbage_as_configuration_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(os.urandom(1024 * 1024))
    for args in (("config", "check", str(file)), ("up", "--config", str(file)), ("up",)):
        done = await shoal(tmp_path, *args)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {file}".encode())
        assert len(done.stderr.splitlines()) == 2


async def test_config_init_writes_a_file_that_checks(tmp_path: Path) -> None:
    assert (await shoal(tmp_path, "config", "init")).returncode == 0
    assert (await shoal(tmp_path, "config", "init")).returncode == 2
    file = tmp_path / "node.toml"
    assert (await shoal(tmp_path, "config", "check", str(file))).returncode == 0
    file.write_text("[net]\nmdsn = false\n")
    wrong = await shoal(tmp_path, "config", "check", str(file))
    assert b"unknown option 'net.mdsn'" in wrong.stderr
    assert b"did you mean 'net.mdns'?" in wrong.stderr


async def test_init_makes_a_swarm_and_force_leaves_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert (await shoal(home, "init", "--name", "reef")).returncode == 0
    first = (home / "swarm.key").read_text()
    assert parse_ticket(first).swarm_name == "reef"
    again = await shoal(home, "init")
    assert again.returncode == 2
    assert b"belongs to swarm 'reef' already" in again.stderr
    (home / "store.db").write_text("old")
    other = fresh_swarm("atoll").text()
    (home / "dht.msgpack").write_bytes(b"contacts in the swarm that is left")
    assert (await shoal(home, "init", "--force", "--join", other)).returncode == 0
    assert not (home / "dht.msgpack").exists()
    assert (home / "swarm.key").read_text().strip() == other
    assert not (home / "store.db").exists()


async def test_a_ticket_of_another_swarm_is_refused(tmp_path: Path) -> None:
    assert (await shoal(tmp_path, "init", "--name", "reef")).returncode == 0
    done = await shoal(tmp_path, "up", "--join", fresh_swarm("atoll").text())
    assert done.returncode == 2
    assert b"belongs to swarm 'reef'; the ticket is for 'atoll'" in done.stderr


HEAVY = ("torch", "transformers", "libp2p", "trio", "structlog", "node.daemon", "rich", "h11")


@pytest.mark.parametrize("args", [("status",), ("--help",), ("--version",), ("peers", "--help")])
def test_quick_commands_import_nothing_heavy(tmp_path: Path, args: tuple[str, ...]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['shoal', *{args!r}]\n"
        "try: runpy.run_module('node.cli.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "SHOAL_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=True
    )
    assert done.stderr.splitlines()[-1] == b""


def test_help_lists_commands_environment_and_exit_codes() -> None:
    done = subprocess.run([*SHOAL, "--help"], capture_output=True, check=True)
    for word in (b"train", b"generate", b"SHOAL_HOME", b"3 no daemon is running"):
        assert word in done.stdout


@pytest.mark.parametrize("name", list(main.TABLE))
def test_every_command_of_the_table_is_where_it_says(name: str) -> None:
    command = main.cli.get_command(click.Context(main.cli), name)
    assert command is not None
    assert command.name == name
    assert command.help


@pytest.mark.parametrize(
    ("args", "size", "way_out"),
    [
        (("pub", "news", "-"), PUBLISH_MAX, b"`shoal add -`"),
        (("rpc", "call", "bob", "m", "-"), JSON_MAX, b"`--stream`"),
    ],
)
def test_more_than_fits_on_standard_input_is_refused_before_it_is_all_read(
    args: tuple[str, ...], size: int, way_out: bytes, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*SHOAL, "--home", str(tmp_path), *args], input=bytes(size + 1), capture_output=True
    )
    assert done.returncode == 1
    assert f"over the limit of {size} B".encode() in done.stderr
    assert way_out in done.stderr
