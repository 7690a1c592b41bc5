"""How the commands of blobs show progress: bars for people, lines for logs, JSON for programs."""

import json
import os
import pty
import subprocess
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

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
    assert lines[:2] == ["fetching 0 %  2.0 MB/s  1 peers", "fetching 10 %  2.0 MB/s  1 peers"]
    assert len(lines) == 11
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
