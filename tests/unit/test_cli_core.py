"""The commands, run as real processes against the real core routes over a node of fakes."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

import shoal as library
from node.host.views import Pong
from node.tickets import parse_ticket
from shoal import api as shapes
from shoal.messages import decode_reply
from tests.unit.fake_node import BOB, EVE, ME, SHOAL, running, view


async def test_status_says_it_all_and_json_is_the_declared_struct(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        found = msgspec.convert(await it.json("status"), shapes.Status)
        assert (found.state, found.peer, found.name, found.swarm) == ("ready", ME, "me", "reef")
        assert (found.peers, found.members, found.pid) == (1, 2, os.getpid())
        assert found.clock_skew_ms == 0
        it.node.clock_skew_ms = lambda: -2_500
        text = (await it.shoal("status")).stdout.decode()
        assert "state    ready, up " in text
        assert "clock    2.5 s behind the peers'" in text
        assert ME in text


@pytest.mark.parametrize(
    ("command", "type_"),
    [
        ("id", shapes.Identity),
        ("peers", list[shapes.Peer]),
        ("members", list[shapes.Member]),
        ("health", shapes.Health),
        ("ticket", shapes.Ticket),
        ("wait", shapes.Waited),
    ],
)
async def test_read_commands_print_their_struct(
    tmp_path: Path, command: str, type_: type[object]
) -> None:
    async with running(tmp_path) as it:
        document = await it.json(command)
        assert msgspec.to_builtins(msgspec.convert(document, type_)) == document


async def test_tables_are_for_people(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        lines = (await it.shoal("peers")).stdout.decode().splitlines()
        assert lines[0].split()[:3] == ["PEER", "NAME", "PATH"]
        assert "bob" in lines[1]
        assert "2.0 KiB" in lines[1]
        it.host.views = []
        empty = await it.shoal("peers")
        assert (empty.returncode, empty.stdout) == (0, b"")
        assert b"no peers yet" in empty.stderr
        members = (await it.shoal("members")).stdout.decode()
        assert BOB in members
        assert (await it.shoal("id")).stdout.decode() == f"{ME}\n"


async def test_a_ticket_prefers_addresses_that_others_can_dial(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        ticket = parse_ticket((await it.shoal("ticket")).stdout.decode())
        assert ticket.swarm_name == "reef"
        assert [address.split("/")[2] for address in ticket.bootstrap] == ["10.0.0.1", "127.0.0.1"]


async def test_ping_by_name_and_a_silent_peer_fails(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        done = await it.shoal("ping", "bob", "-c", "2", "--interval", "10ms", "--json")
        pongs = [msgspec.json.decode(line, type=shapes.Pong) for line in done.stdout.splitlines()]
        assert [(pong.sequence, pong.rtt_ms) for pong in pongs] == [(1, 1.23), (2, 1.23)]
        told = await it.shoal("ping", "bob", "-c", "2", "--interval", "10ms")
        assert told.stdout.endswith(b"seq 2  1.23 ms  direct  /ip4/10.0.0.2/tcp/9\n")
        assert told.stderr == b"2/2 answered, 0 % lost, min/avg/max 1.23/1.23/1.23 ms\n"
        it.host.views.append(view(EVE, None))  # connected, its name not heard yet
        silent = await it.shoal("ping", EVE[-8:], "-c", "1")
        assert silent.returncode == 1
        assert b"lost: no answer within 5 s" in silent.stdout
        unknown = await it.shoal("ping", "nobody")
        assert (unknown.returncode, unknown.stdout) == (1, b"")
        assert unknown.stderr == b"error: no member 'nobody'\n  try: `shoal members` lists them\n"


async def test_ping_ends_when_the_path_is_direct(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        relay = "/ip4/10.0.0.9/tcp/1/p2p/12D3KooWRelay/p2p-circuit"
        slow = [Pong(0.2, "relayed", relay, ME), Pong(0.1, "relayed", relay, EVE)]
        it.host.pongs = [*slow, Pong(0.01, "direct", "/ip4/1.2.3.4/tcp/9", None, True)]
        told = await it.shoal("ping", "bob", "--interval", "10ms")
        lines = [line.split("  ", 1)[1] for line in told.stdout.decode().splitlines()]
        assert lines == [
            "seq 1  200.00 ms  relay via me  /ip4/10.0.0.9/tcp/1",
            f"seq 2  100.00 ms  relay via …{EVE[-8:]}  /ip4/10.0.0.9/tcp/1",
            "seq 3  10.00 ms  punched  /ip4/1.2.3.4/tcp/9",
        ]
        assert b"netcheck" not in told.stderr
        it.host.pongs = slow * 5
        told = await it.shoal("ping", "bob", "--interval", "10ms")
        assert told.stdout.count(b"relay via") == 10
        assert told.stderr.endswith(b"still through a relay; `shoal netcheck` says why\n")
        shown = await it.json("ping", "bob")
        assert isinstance(shown, dict)
        assert (shown["path"], shown["relay"]) == ("direct", "")


async def test_peers_shows_how_each_is_reached(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        relay = f"/ip4/10.0.0.9/tcp/1/p2p/{ME}/p2p-circuit"
        bob = replace(view(BOB, 0.4), path="relayed", address=relay, relay=ME, bytes_in_s=3072.0)
        it.host.views = [bob, replace(view(EVE, 9.0), is_punched=True)]
        told = (await it.shoal("peers")).stdout.decode()
        first, second = told.splitlines()[1:]
        assert "relay via me  to /ip4/10.0.0.9/tcp/1  0.4 ms  2.0 KiB" in first
        assert "3.0 KiB" in first
        assert "punched" in second
        found = await it.json("peers")
        assert isinstance(found, list)
        assert [(row["path"], row["relay"]) for row in found] == [
            ("relayed", "me"),
            ("punched", ""),
        ]
        assert found[0]["in_s"] == 3072.0


async def test_wait_returns_when_a_peer_comes(tmp_path: Path) -> None:
    async with running(tmp_path) as it, trio.open_nursery() as nursery:
        assert (await it.shoal("wait", "--peers", "2", "--timeout", "10ms")).returncode == 4
        client = library.connect_async(tmp_path)
        results: list[shapes.Waited] = []

        async def wait() -> None:
            results.append(await client.wait(peers=2, timeout_s=20))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        it.host.views.append(view(EVE, None))
        it.node.life.enter("ready")  # any event makes it look again
        with trio.fail_after(5):
            while not results:  # noqa: ASYNC110 - another task
                await trio.sleep(0.01)
        assert results[0].peers == 2


async def test_health_fails_while_the_daemon_drains(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.node.life.enter("draining")
        done = await it.shoal("health")
        assert (done.returncode, done.stderr) == (1, b"error: the daemon is draining\n")


async def test_logs_by_level_and_followed_until_ctrl_c(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.node.logs.write("info", "one")
        it.node.logs.write("warning", "two")
        assert (await it.shoal("logs", "--level", "warning")).stdout == b"two\n"
        environment = {**os.environ, "SHOAL_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        process = await trio.lowlevel.open_process(
            [*SHOAL, "logs", "-f"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdout, process.stderr:
            with trio.fail_after(20):
                text = b""
                while b"two\n" not in text:
                    text += await process.stdout.receive_some()
                it.node.logs.write("info", "three")
                while b"three\n" not in text:
                    text += await process.stdout.receive_some()
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
                assert (await process.stderr.receive_some()).strip() == b""


async def test_the_readers_end_of_a_pipe_may_close_early(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        for number in range(900):
            it.node.logs.write("info", f"{number} " + "x" * 500)
        command = f"{' '.join(SHOAL)} logs | head -n 1"
        done = await trio.run_process(
            command,
            shell=True,
            capture_stdout=True,
            capture_stderr=True,
            env={**os.environ, "SHOAL_HOME": str(tmp_path)},
        )
        assert done.stdout.startswith(b"0 xxx")
        assert done.stderr == b""


async def test_config_show_tells_the_origin(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        text = (await it.shoal("config", "show", "--origin")).stdout.decode()
        assert "env SHOAL_LOG__LEVEL" in text


async def test_metrics_and_the_openapi_document_are_served(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        done = await trio.run_process(
            [
                *("curl", "-s", "--unix-socket"),
                str(it.node.home.socket),
                "http://localhost/metrics",
            ],
            capture_stdout=True,
        )
        assert b"shoal_peers 1.0" in done.stdout
        assert b"shoal_bytes_in_total 10.0" in done.stdout


def test_a_daemon_of_before_an_upgrade_is_understood_so_that_it_can_be_stopped() -> None:
    said = b"""{"state":"ready","peer":"12D3","name":"ann","swarm":"s","version":"0.1.0","pid":1,
        "uptime_s":1.0,"home":"/h","addresses":[],"peers":0,"members":1,"runs":[],"models":[]}"""
    assert decode_reply(said, shapes.Status).pid == 1
