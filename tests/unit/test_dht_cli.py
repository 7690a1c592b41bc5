"""`shoal dht` without a daemon: what is typed wrong, and what is printed."""

import time
from pathlib import Path

import pytest

from node.cli import dht_text
from node.cli.dht import check_kept, data_of
from shoal.dht_api import (
    DATA_MAX,
    DhtBucket,
    DhtContact,
    DhtEffort,
    DhtHop,
    DhtKept,
    DhtLookedUp,
    DhtOwn,
    DhtProvider,
    DhtProviders,
    DhtServer,
    DhtTable,
    DhtValue,
)
from shoal.errors import ClientError
from tests.unit.fake_node import BOB, EVE, ME, shoal

NONE = DhtEffort(1.5, 3, 1)
DAY_MS = 24 * 3600 * 1000


def value(data: bytes, author: str = BOB, name: str = "bob") -> DhtValue:
    expires_ms = int(time.time() * 1000) + DAY_MS - 125_000
    return DhtValue("/shoal/multi/a", author, name, 7, expires_ms, data)


@pytest.mark.parametrize(
    "args",
    [
        ("lookup",),
        ("get",),
        ("get", "/shoal/multi/a", "--paths", "0"),
        ("providers", "/a", "--paths", "9"),
        ("put", "/shoal/multi/a", "data", "--file", "/etc/hostname"),
        ("put", "/shoal/multi/a", "--file", "/no/such/file"),
        ("put", "/shoal/multi/a", "data", "--stop"),
        ("table", "more"),
    ],
)
async def test_usage_errors_are_exit_2(tmp_path: Path, args: tuple[str, ...]) -> None:
    done = await shoal(tmp_path / "home", "dht", *args)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr


async def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    assert (await shoal(tmp_path, "dht", "table")).returncode == 3


def test_what_is_too_large_is_not_sent() -> None:
    assert data_of("x" * DATA_MAX, None) == b"x" * DATA_MAX
    with pytest.raises(ClientError, match="8192 B") as caught:
        data_of("x" * (DATA_MAX + 1), None)
    assert "shoal add" in caught.value.hint


def test_a_store_that_nobody_keeps_fails_unless_there_is_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_kept(stores=0, kept=0)
    assert "as soon as there is one" in capsys.readouterr().err
    check_kept(stores=3, kept=1)
    with pytest.raises(ClientError, match="none of 3 servers"):
        check_kept(stores=3, kept=0)


def test_one_value_is_printed_byte_for_byte(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    dht_text.echo_values([value(b"\x00\xff\n")], with_all=False)
    assert capfdbinary.readouterr().out == b"\x00\xff\n"


def test_values_of_several_are_a_harmless_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    values = [value(b"a\x1b[2J\nb"), value(b"\xff", EVE, "")]
    dht_text.echo_values(values, with_all=False)
    assert capsys.readouterr().out == (
        f"bob: a?[2J?b\n…{EVE[-8:]}: <1 bytes, binary; --json shows them>\n"
    )
    dht_text.echo_values(values, with_all=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["AUTHOR", "NUMBER", "AGE", "SIZE", "VALUE"]
    assert lines[1].split() == ["bob", "7", "2", "min", "7", "B", "a?[2J?b"]


def test_hops_go_to_standard_error_and_only_if_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dht_text.echo_hops(NONE)
    hop = DhtHop(BOB, "bob", 12, 1, 3, 4.0, 2.5, "answered", 20, 1)
    lost = DhtHop(EVE, "", 9, 0, 0, 0.0, None, "refused: \x1bstale", 0, 0)
    dht_text.echo_hops(DhtEffort(1.5, 2, 1, [hop, lost]))
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line.split() for line in said.err.splitlines()]
    assert lines[1] == ["4.0", "ms", "2.5", "ms", "1", "3", "12", "bob", "20", "1", "answered"]
    assert lines[2][-3:] == ["0", "refused:", "?stale"]
    assert "-" in lines[2]
    assert lines[3] == ["2", "requests,", "1", "unanswered,", "1.5", "ms"]


def test_what_was_found_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    near = DhtServer(BOB, "bob", 3, ["/ip4/10.0.0.1/tcp/1"])
    dht_text.echo_looked_up(DhtLookedUp("/a", "00", "", "", [], [near], NONE))
    dht_text.echo_looked_up(DhtLookedUp(BOB, "00", BOB, "bob", ["/ip4/10.0.0.2/tcp/2"], [], NONE))
    found = [DhtProvider(ME, "me", True, False), DhtProvider(BOB, "bob", False, True)]
    dht_text.echo_providers(DhtProviders("/a", found, NONE))
    dht_text.echo_kept(DhtKept("/a", 3, 1, {"stale": 2}, NONE))
    said = capsys.readouterr()
    words = [line.split() for line in said.out.splitlines()]
    assert words[1] == ["3", "bob", BOB, "/ip4/10.0.0.1/tcp/1"]
    assert words[2] == ["/ip4/10.0.0.2/tcp/2"]
    assert words[4:6] == [["me", ME, "me"], ["bob", BOB, "connected"]]
    assert said.out.splitlines()[-1] == "/a: 1 of 3 servers keep it (2 ms)"
    assert said.err == "  2 do not: stale\n"


def table(*contacts: DhtContact) -> DhtTable:
    buckets = [DhtBucket(4, list(contacts), 1)] if contacts else []
    return DhtTable(
        peer=ME,
        mode="client",
        why="relayed",
        public=False,
        protocol="/shoal/0/kad/1.0.0",
        network_size=40,
        contacts=len(contacts),
        buckets=buckets,
        held=5,
        provided=12,
        provided_first=[f"/key/{number}" for number in range(12)],
        published=[DhtOwn("/shoal/multi/a", 7, 2048)],
    )


def test_the_table_says_what_we_are_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    bob = DhtContact(BOB, "bob", "/ip4/11.0.0.1/tcp/1", [], "11.0.0.0/24", 61.0, None, 0)
    eve = DhtContact(EVE, "", "/ip4/11.0.0.2/tcp/1", [], "11.0.0.0/24", 3.0, 120.0, 1)
    dht_text.echo_table_of(table(bob, eve), with_all=False)
    text = capsys.readouterr().out
    assert "client (relayed: others reach it through a relay only)" in text
    assert "about 41 servers" in text
    assert "/key/9, …" in text
    assert "/shoal/multi/a (2.0 KiB)" in text
    assert text.splitlines()[-1].split() == ["4", "2", "1", "1", "3", "s", "bob,", f"…{EVE[-8:]}"]
    dht_text.echo_table_of(table(bob, eve), with_all=True)
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["4", EVE, "11.0.0.0/24", "3", "s", "2", "min", "1", "/ip4/11.0.0.2/tcp/1"]


def test_an_empty_table_says_what_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    dht_text.echo_table_of(table(), with_all=False)
    assert "shoal peers" in capsys.readouterr().err
