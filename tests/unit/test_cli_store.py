"""The commands of the store without a daemon: what is typed wrong, and when one is needed."""

import time
from datetime import datetime
from pathlib import Path

import click
import pytest

from node.cli.main import cli
from node.cli.store_rules import moment
from node.cli.store_text import echo_cut
from tests.unit.fake_node import shoal


@pytest.mark.parametrize(
    "args",
    [
        ("put", "key", "--jsn"),
        ("put", "key", "value", "--file", "file"),
        ("put", "key", "--file", "/no/such/file"),
        ("put", "key", "value", "--ttl", "soon"),
        ("put", "key", "value", "--ttl", "0"),
        ("put", "key", "value", "--ttl", "9000h"),
        ("put", "", "value"),
        ("get", "two words"),
        ("del", "k" * 257),
        ("put", "key", "1e999"),
        ("put", "key", "[1, 1e999]"),
        ("add", "key", "--jsn"),
        ("put", "key", '{"$base64": "?"}'),
        ("incr", "key", "many"),
        ("log", "--limit", "0"),
        ("grant", "ns", "bob", "--kinds", "register,songs"),
        ("grant", "ns", "bob", "--kinds", "grant"),
        ("grant", "ns", "bob", "--until", "soon"),
        ("grant", "ns", "bob", "--until", "2020-01-01"),
        ("grant", "ns", "bob", "--from", "2h", "--until", "1h"),
        ("grant", "ns", "bob", "--depth", "4"),
        ("ns", "create", "name", "--write", "nobody"),
        ("ns", "create", "name", "--clock-bound", "soon"),
        ("ns", "create", "name", "--clock-bound", "1h"),
        ("ns", "create", "name", "--keep", "0"),
        ("ns", "create", "name", "--author-entries", "0"),
        ("ns", "create", "Two Words"),
        ("verify", "/no/such/file", "--ns-id", "00" * 32),
        ("verify", "-", "--ns-id", "xyz"),
        ("verify", "-"),
        ("verify", "-", "--ns", "kv", "--ns-id", "00" * 32),
        ("restore", "/no/such/file"),
    ],
)
async def test_usage_errors_are_exit_2_and_leave_no_trace(
    tmp_path: Path, args: tuple[str, ...]
) -> None:
    done = await shoal(tmp_path / "home", "store", *args)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()


async def test_commands_that_need_the_daemon_say_how_to_start_it(tmp_path: Path) -> None:
    for args in (
        ("get", "key"),
        ("put", "key", "-5"),
        ("incr", "key", "-5"),
        ("add", "key", "-5"),
        ("watch",),
    ):
        done = await shoal(tmp_path, "store", *args)
        assert (done.returncode, done.stdout) == (3, b"")
        assert b"start it with `shoal up`" in done.stderr


def test_every_command_has_a_help_with_an_example() -> None:
    lacking = list[str]()

    def look(command: click.Command | None) -> None:
        assert command is not None
        if "shoal store" not in (command.help or ""):
            lacking.append(str(command.name))
        if isinstance(command, click.Group):
            for each in command.commands.values():
                look(each)

    look(cli.get_command(click.Context(cli), "store"))
    assert lacking == []


def test_a_moment_is_a_date_or_a_time_from_now() -> None:
    assert moment("2026-12-24T18:00+00:00") == 1_798_135_200_000
    local = datetime(2026, 12, 24, 18, 0)
    assert moment("2026-12-24 18:00") == local.timestamp() * 1000
    assert abs(moment("2h") - (time.time() + 7200) * 1000) < 60_000
    with pytest.raises(click.BadParameter):
        moment("soon")


def test_the_last_column_is_cut_where_it_would_break_the_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    echo_cut(("KEY", "VALUE"), [("a", "x" * 1000), ("bb", "y")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) == 200
    assert lines[1].endswith("x…")
