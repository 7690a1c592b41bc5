"""The commands, run as real processes against the real core routes over a node of fakes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import pytest
import trio

from node.cli import main
from node.config import load
from node.control.api import Api
from node.control.core import routes
from node.control.server import ControlServer
from node.home import Home
from node.host.views import Counters, PeerView
from node.logs import LogBook
from node.membership import Member
from node.metrics import Metrics, core_figures
from node.parts import Life, Node
from node.tickets import fresh_swarm, parse_ticket
from shoal import api as shapes
from wire.errors import DeadlineExceeded, NotFound
from wire.ids import PeerId, peer_id_of

ME, BOB, EVE = (peer_id_of(bytes([number]) * 32) for number in (1, 2, 3))
SHOAL = (sys.executable, "-P", "-m", "node.cli.main")


class FakeHost:
    """A host with a list of peers; EVE never answers pings."""

    def __init__(self) -> None:
        self.views = [view(BOB, 0.4)]

    @property
    def peer(self) -> PeerId:
        return ME

    def addresses(self) -> list[str]:
        return [f"/ip4/127.0.0.1/tcp/1/p2p/{ME}", f"/ip4/10.0.0.1/tcp/1/p2p/{ME}"]

    def connected(self) -> list[PeerId]:
        return [each.peer for each in self.views]

    def peers(self) -> list[PeerView]:
        return list(self.views)

    def counters(self) -> Counters:
        return Counters(10, 20, 1, 2, 3, 4, 5, 6)

    async def ping(self, peer: PeerId, *, timeout_s: float) -> float:
        if peer == EVE:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s")
        return 0.00123


class FakeMembers:
    """Ourselves and Bob."""

    def members(self) -> list[Member]:
        return [
            Member(ME, "me", ["/a"], "0.1", {}, 1, True, False),
            Member(BOB, "bob", ["/b"], "0.1", {}, 2, True, True),
        ]

    def resolve(self, name: str, /) -> PeerId:
        for member in self.members():
            if name in (member.name, member.peer):
                return member.peer
        raise NotFound(f"no member {name!r}", hint="`shoal members` lists them")


def view(peer: PeerId, rtt_ms: float | None) -> PeerView:
    return PeerView(peer, "/ip4/10.0.0.2/tcp/9", "out", "direct", rtt_ms, 2048, 1, 0.0, 1)


@dataclass
class Running:
    """A served node of fakes."""

    node: Node
    host: FakeHost

    async def shoal(self, *args: str) -> "subprocess.CompletedProcess[bytes]":
        return await shoal(self.node.home.path, *args)

    async def json(self, *args: str) -> object:
        done = await self.shoal(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


async def shoal(home: Path, *args: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "SHOAL_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment.pop("SHOAL_SOCKET", None)
    with trio.fail_after(30):
        return await trio.run_process(
            [*SHOAL, *args], capture_stdout=True, capture_stderr=True, check=False, env=environment
        )


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncIterator[Running]:
    host = FakeHost()
    node = Node(
        home=Home(path),
        loaded=load(file=None, environment={"SHOAL_LOG__LEVEL": "debug"}, flags={}),
        swarm=fresh_swarm("reef"),
        name="me",
        version="0.1",
        logs=LogBook(None, stream=None),
        life=Life(),
        host=host,
        membership=FakeMembers(),
    )
    node.logs.attach()
    metrics, api = Metrics(), Api()
    metrics.add(*core_figures(node))
    routes(api, node, metrics)
    async with trio.open_nursery() as nursery:
        await nursery.start(ControlServer(api).serve_unix, node.home.socket)
        node.life.enter("ready")
        yield Running(node, host)
        nursery.cancel_scope.cancel()


async def test_status_says_it_all_and_json_is_the_declared_struct(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        found = msgspec.convert(await it.json("status"), shapes.Status)
        assert (found.state, found.peer, found.name, found.swarm) == ("ready", ME, "me", "reef")
        assert (found.peers, found.members, found.pid) == (1, 2, os.getpid())
        text = (await it.shoal("status")).stdout.decode()
        assert "state    ready, up " in text
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
        assert lines[0].split()[:3] == ["PEER", "NAME", "ADDRESS"]
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
        it.host.views.append(view(EVE, None))  # connected, its name not heard yet
        silent = await it.shoal("ping", EVE[-8:], "-c", "1")
        assert silent.returncode == 1
        assert b"lost: no answer within 5 s" in silent.stdout
        unknown = await it.shoal("ping", "nobody")
        assert (unknown.returncode, unknown.stdout) == (1, b"")
        assert unknown.stderr == b"error: no member 'nobody'\n  try: `shoal members` lists them\n"


async def test_wait_returns_when_a_peer_comes(tmp_path: Path) -> None:
    async with running(tmp_path) as it, trio.open_nursery() as nursery:
        assert (await it.shoal("wait", "--peers", "2", "--timeout", "10ms")).returncode == 4
        client = await trio.to_thread.run_sync(shapes_of_client, tmp_path)
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


def shapes_of_client(home: Path):
    import shoal as library

    return library.connect_async(home)


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
    assert (await shoal(home, "init", "--force", "--join", other)).returncode == 0
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
