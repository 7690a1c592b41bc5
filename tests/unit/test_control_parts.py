"""Home, lock, log book, broadcast, tokens and known peers: the small parts of the daemon."""

import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from node import logs
from node.broadcast import Broadcast
from node.home import AlreadyRunning, Home
from node.known_peers import PEERS_MAX, read_known, write_known
from node.logs import LINES_MAX, LogBook, open_logs
from node.token import load_or_make_token
from wire.errors import UsageError
from wire.ids import PeerId, peer_id_of


def peer(number: int) -> PeerId:
    return peer_id_of(number.to_bytes(32))


def test_a_home_is_made_for_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    home.make()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    with home.lock():
        assert home.lock_file.read_text() == f"{os.getpid()}\n"


def test_a_home_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot use"):
        Home(tmp_path / "file" / "home").make()


def test_a_second_daemon_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from node.home import Home\n"
        "with Home(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match=f"pid {holder.pid}"), Home(tmp_path).lock():
            pass
        holder.kill()
    with Home(tmp_path).lock():  # the kernel has let go of it
        pass


def test_a_token_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "http.token"
    token = load_or_make_token(path)
    assert len(token) == 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make_token(path) == token
    path.write_text("short")
    with pytest.raises(UsageError, match="is no token"):
        load_or_make_token(path)


async def test_a_slow_reader_loses_the_oldest_and_holds_up_nobody() -> None:
    channel = Broadcast[int](queue_max=3)
    async with channel.read() as slow, channel.read() as quick:
        for number in range(10):
            channel.send(number)
            if number >= 7:
                assert await anext(quick) == number - 2
        assert [await anext(slow) for _ in range(3)] == [7, 8, 9]
    channel.send(99)  # nobody reads any more


async def test_readers_of_a_closed_channel_end_after_what_is_there() -> None:
    channel = Broadcast[int]()
    async with channel.read() as early:
        channel.send(1)
        channel.close()
        assert [number async for number in early] == [1]
    async with channel.read() as late:
        assert [number async for number in late] == []


async def test_a_reader_sleeps_until_something_comes(nursery: trio.Nursery) -> None:
    channel = Broadcast[int]()
    async with channel.read() as reader:
        nursery.start_soon(lambda: trio.to_thread.run_sync(lambda: None))
        with trio.move_on_after(0.01):
            await anext(reader)
            raise AssertionError
        channel.send(1)
        assert await anext(reader) == 1


@pytest.fixture
def book(tmp_path: Path):
    """A log book in a file; the process's logging is put back afterwards."""
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    level = root.level
    yield open_logs(tmp_path / "daemon.log", level="info", stream=None)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_events_of_ours_and_of_libraries_become_lines(book: LogBook, tmp_path: Path) -> None:
    structlog.get_logger().debug("too quiet")
    structlog.get_logger("x").info("peer.up", peer="12D3", path=tmp_path)
    logging.getLogger("libp2p.yamux").info("too quiet")
    logging.getLogger("libp2p.yamux").warning("odd %s", "frame\nline")
    logging.getLogger("node.host").info("listening")
    assert [(line.number, line.level) for line in book.lines] == [
        (1, "info"),
        (2, "warning"),
        (3, "info"),
    ]
    text = (tmp_path / "daemon.log").read_text()
    assert "event=peer.up" in text
    assert f"path={tmp_path}" in text
    assert "source=libp2p.yamux" in text
    assert len(text.splitlines()) == 3
    assert stat.S_IMODE((tmp_path / "daemon.log").stat().st_mode) == 0o600


def test_lines_can_be_json(tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    book = open_logs(None, format_="json", stream=None)
    structlog.get_logger().info("up", peers=3)
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()
    document = json.loads(book.lines[0].line)
    assert (document["event"], document["peers"], document["level"]) == ("up", 3, "info")


def test_the_file_is_moved_aside_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 1000)
    book = LogBook(tmp_path / "daemon.log", stream=None)
    for _ in range(LINES_MAX * 2):
        book.write("info", "x" * 99)
    assert len(book.lines) == LINES_MAX
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1200


def test_a_line_that_is_not_text_can_still_be_read(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "daemon.log", stream=None)
    book.write("info", "no such file: \udcff")
    assert msgspec.json.encode(list(book.lines)).endswith(b'no such file: ?"}]')
    assert (tmp_path / "daemon.log").read_text() == "no such file: ?\n"


def test_a_file_that_cannot_be_written_does_not_stop_the_log(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "missing" / "daemon.log", stream=None)
    book.write("error", "still here")
    assert book.lines[0].line == "still here"


def test_known_peers_survive_a_restart_and_join_the_tickets(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_known(path, {peer(1): ["/ip4/10.0.0.1/tcp/1"], peer(2): []})
    write_known(path, {peer(3): [f"/ip4/10.0.0.3/tcp/3/p2p/{peer(3)}"]})
    known = read_known(path, (f"/ip4/10.0.0.9/tcp/9/p2p/{peer(9)}", "/ip4/10.0.0.8/tcp/8"))
    assert known == {
        peer(9): [f"/ip4/10.0.0.9/tcp/9/p2p/{peer(9)}"],
        peer(3): [f"/ip4/10.0.0.3/tcp/3/p2p/{peer(3)}"],
        peer(1): [f"/ip4/10.0.0.1/tcp/1/p2p/{peer(1)}"],
    }


def test_known_peers_may_be_behind_relays(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    circuit = f"/ip4/10.0.0.1/tcp/1/p2p/{peer(2)}/p2p-circuit"
    write_known(path, {peer(1): [circuit, f"{circuit}/p2p/{peer(1)}"]})
    assert read_known(path, ()) == {peer(1): [f"{circuit}/p2p/{peer(1)}"]}


def test_known_peers_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_known(path, {peer(n): ["/ip4/10.0.0.1/tcp/1"] for n in range(PEERS_MAX * 2)})
    assert len(read_known(path, ())) == PEERS_MAX


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_bytes_as_known_peers(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-peers.json"
    path.write_bytes(data)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    assert read_known(path, ()) == {}
    structlog.reset_defaults()
