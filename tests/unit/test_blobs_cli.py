"""How the commands of blobs show progress: bars for people, lines for logs, JSON for programs."""

import json
import os
import pty
import re
import subprocess
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

from node.cli.context import echo_table
from shoal.blob_api import get_path
from tests.daemon.processes import SHOAL, clean_environment

CID = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
PEER = "12D3KooWBhMbLvQGgUFkUuSTcFkDTwPuh6Fp3xVJBSoDe7oWTfQS"
BLOB = {
    "cid": CID, "name": "", "kind": "file", "size_bytes": 1000, "held_bytes": 1000, "whole": True,
    "pinned": False, "path": "", "added_ms": 1, "used_ms": 1,
}  # fmt: skip


def progress(state: str, done: int, **more: object) -> dict[str, object]:
    peer = {"peer": PEER, "got_bytes": done, "active": True, "note": ""}
    fields = {"state": state, "done_bytes": done, "size_bytes": 1000, "rate": 2e6, "eta_s": 65.0}
    return {**fields, "providers": [peer], **more}


class Script(BaseHTTPRequestHandler):
    """Answers every request with the same story."""

    story: tuple[dict[str, object], ...] = ()

    def do_POST(self) -> None:
        """Tell it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for each in self.story:
            self.wfile.write(f"data: {json.dumps(each)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def home(tmp_path: Path) -> Generator[Path]:
    story = [progress("fetching", done) for done in range(0, 1000, 25)]
    liar = {"peer": PEER, "got_bytes": 5, "active": False, "note": "sent something else"}
    last = progress("done", 1000, blob=BLOB, eta_s=None)
    Script.story = (*story, {**last, "providers": [liar]})
    server = ThreadingUnixStreamServer(str(tmp_path / "control.sock"), Script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


Done = subprocess.CompletedProcess[bytes]


def get(home: Path, *more: str, stderr: int = subprocess.PIPE) -> Done:
    return subprocess.run(
        [*SHOAL, "get", CID, *more],
        env=clean_environment(SHOAL_HOME=str(home), TERM="xterm", COLUMNS="120"),
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=30,
    )


def test_without_a_terminal_there_is_a_line_for_every_tenth(home: Path) -> None:
    done = get(home)
    assert (done.returncode, done.stdout) == (0, f"{CID}\n".encode())
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "fetching 10 %  2.0 MB/s  1 peers"  # what is done at once says nothing
    assert len(lines) == 10
    assert lines[-1] == f"gave up …{PEER[-8:]}: sent something else"


def test_json_is_a_line_for_every_event(home: Path) -> None:
    documents = [json.loads(line) for line in get(home, "--json").stdout.splitlines()]
    assert len(documents) == 41
    assert documents[-1]["blob"] == BLOB
    assert documents[3]["done_bytes"] == 75


def test_a_terminal_gets_a_bar_with_rate_time_and_peers(home: Path) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                shown.extend(data)
        except OSError:  # closed at the other end
            return

    reader = threading.Thread(target=read)
    reader.start()
    done = get(home, stderr=theirs)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, f"{CID}\n".encode())
    text = shown.decode()
    assert "2.0 MB/s" in text
    assert "peers" in text
    assert "━" in text


def test_a_story_that_breaks_off_is_an_error(home: Path) -> None:
    Script.story = Script.story[:5]
    done = get(home)
    assert done.returncode == 1
    assert b"ended the conversation early" in done.stderr


@pytest.mark.parametrize("text", ["a b", "\u00e9", "../x", "a/b", "x?y#z"])
def test_what_is_no_cid_reaches_the_daemon_quoted(text: str) -> None:
    assert re.fullmatch(r"/v1/blobs/[\w.%-]+/get", get_path(text))


def test_a_range_that_does_not_come_leaves_the_file_that_is_there(
    home: Path, tmp_path: Path
) -> None:
    place = tmp_path / "precious"
    place.write_text("mine")
    done = get(home, "--range", "0-5", "-o", str(place))  # the daemon of this test answers 501
    assert (done.returncode, place.read_text()) == (1, "mine")
    assert not list(tmp_path.glob(".shoal-*"))
    place.unlink()
    place.symlink_to("elsewhere")
    done = get(home, "--range", "0-5", "-o", str(place))
    assert (done.returncode, b"in the way" in done.stderr) == (2, True)


def test_bytes_and_json_are_not_mixed(home: Path) -> None:
    done = get(home, "-o", "-", "--json")
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_name_that_no_json_can_hold_is_said(home: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*SHOAL, "add", os.fsencode(tmp_path) + b"/\xff"],
        env=clean_environment(SHOAL_HOME=str(home)),
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert b"is not UTF-8" in done.stderr


def test_names_cannot_break_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    echo_table(("NAME",), [("a\nb\x1b[2J é",)])
    assert capsys.readouterr().out == "NAME\na?b?[2J é\n"
