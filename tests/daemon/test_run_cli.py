"""`shoal train`, `runs`, `run` and `dashboard` as processes, against a real daemon; no torch."""

import json
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.runs import get_run
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run

PATIENCE_S = 30.0
SCRIPT = """
import json, os, sys, time
with open(os.environ["SHOAL_RUN_CONFIG"]) as file:
    run = json.load(file)["run"]
print("settings", json.dumps(run, sort_keys=True))
for line in range(run.get("lines", 0)):
    print("line", line)
if "waits_for" in run:
    while not os.path.exists(run["waits_for"]):
        time.sleep(0.05)
    print("went on")
if "fails" in run:
    sys.exit(run["fails"])
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemons(tmp_path_factory.mktemp("runs"), "ash") as (one,):
        yield one.start()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    return path


def start(daemon: Daemon, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SHOAL, *args],
        env=clean_environment(SHOAL_HOME=str(daemon.home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_is_run_with_the_settings_of_the_command_line(
    daemon: Daemon, script: Path
) -> None:
    short_ways = ("--strategy", "diloco", "--wire", "int4", "--rounds", "7", "--set", "run.lines=2")
    done = run(daemon.home, "train", str(script), "--name", "settings", *short_ways)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run settings finished\n"
    assert "`shoal run stop settings` stops it" in done.stderr
    log = run(daemon.home, "run", "log", "settings").stdout
    told = '{"lines": 2, "rounds": 7, "strategy": "diloco", "wire": "int4"}'
    assert log == f"settings {told}\nline 0\nline 1\n"
    assert run(daemon.home, "run", "log", "settings", "-n", "1").stdout == "line 1\n"
    assert run(daemon.home, "run", "log", "settings", "-n", "0").stdout == ""
    document = run(daemon.home, "run", "log", "settings", "-n", "1", "--json").stdout
    assert json.loads(document) == {"line": "line 1"}


def test_scripts_get_one_document_a_line(daemon: Daemon, script: Path) -> None:
    done = run(daemon.home, "train", str(script), "--name", "documents", "--json")
    states = [json.loads(line)["state"] for line in done.stdout.splitlines()]
    assert (states[0], states[-1]) == ("starting", "finished")
    shown = json.loads(run(daemon.home, "run", "show", "documents", "--json").stdout)
    assert shown["run"]["state"] == "finished"
    assert (shown["last"], shown["contributions"]) == (None, [])
    listed = json.loads(run(daemon.home, "runs", "--json").stdout)
    assert "documents" in [each["name"] for each in listed]
    assert json.loads(run(daemon.home, "run", "peers", "documents", "--json").stdout) == []


def test_a_script_that_fails_says_why_and_what_to_type(daemon: Daemon, script: Path) -> None:
    done = run(daemon.home, "train", str(script), "--name", "broken", "--set", "run.fails=3")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: run broken failed: settings" in done.stderr  # the script's last words
    assert "`shoal run log broken` has more" in done.stderr
    shown = run(daemon.home, "run", "show", "broken")
    assert "state      failed" in shown.stdout
    assert "broken: settings" in run(daemon.home, "runs").stderr


def test_ctrl_c_ends_the_display_only_and_stop_ends_the_run(
    daemon: Daemon, script: Path, tmp_path: Path
) -> None:
    waits = f"run.waits_for={tmp_path / 'never'}"
    shown = start(daemon, "train", str(script), "--name", "long", "--set", waits)
    assert shown.stderr is not None
    while "stops it" not in shown.stderr.readline():
        pass
    shown.send_signal(signal.SIGINT)
    out, said = shown.communicate(timeout=PATIENCE_S)
    assert (shown.returncode, out) == (130, "")
    assert "Traceback" not in said
    if said.strip():  # if it had begun to follow: what to type next
        assert "`shoal run follow long` shows it again" in said
    assert get_run(daemon.client, "long").state in ("starting", "training")
    again = run(daemon.home, "train", str(script), "--name", "long")
    assert again.returncode == 1
    assert "`shoal run stop long` stops it" in again.stderr
    stopped = run(daemon.home, "run", "stop", "long")
    assert stopped.stdout == "run long stopped at round 0\n"
    assert "`shoal run resume long` goes on" in stopped.stderr
    assert run(daemon.home, "run", "follow", "long").stdout == "run long stopped\n"


def test_a_log_is_followed_to_the_end_of_the_run(
    daemon: Daemon, script: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    settings = ("--set", f"run.waits_for={gate}", "--set", "run.lines=1")
    run(daemon.home, "train", str(script), "--name", "log", "--detach", *settings)
    follower = start(daemon, "run", "log", "log", "-f")
    assert follower.stdout is not None
    lines = [follower.stdout.readline() for _ in range(2)]
    assert lines[1] == "line 0\n"
    gate.touch()
    assert follower.communicate(timeout=PATIENCE_S)[0] == "went on\n"
    assert follower.returncode == 0


@pytest.mark.parametrize(
    "command", ["show", "peers", "stop", "resume", "follow", "log", "curves", "export"]
)
def test_a_run_that_is_not_there_is_one_clear_error(daemon: Daemon, command: str) -> None:
    done = run(daemon.home, "run", command, "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: there is no run 'nowhere'" in done.stderr
    assert "try: `shoal runs` lists them" in done.stderr


def test_an_export_replaces_nothing_by_accident(daemon: Daemon, tmp_path: Path) -> None:
    there = tmp_path / "model.safetensors"
    there.write_bytes(b"precious")
    done = run(daemon.home, "run", "export", "nowhere", "--out", str(there))
    assert done.returncode == 1
    assert "--force replaces it" in done.stderr
    assert there.read_bytes() == b"precious"
    missing = run(daemon.home, "run", "export", "x", "--out", str(tmp_path / "no" / "m"))
    assert f"there is no folder {tmp_path / 'no'}" in missing.stderr


def test_a_name_that_is_none_is_refused_with_a_hint(daemon: Daemon, script: Path) -> None:
    done = run(daemon.home, "train", str(script), "--name", "<img src=x onerror=alert(1)>")
    assert done.returncode == 2
    assert "use lower-case letters" in done.stderr


def fetch(url: str, key: str, method: str = "GET") -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    asked = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_dashboards_address_opens_the_page_and_looks_only(daemon: Daemon) -> None:
    address = run(daemon.home, "dashboard").stdout.strip()
    assert json.loads(run(daemon.home, "dashboard", "--json").stdout) == {"url": address}
    page, _, key = address.partition("#key=")
    root = page.removesuffix("/dashboard")
    status, body = fetch(page, "")
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    for path in ("/v1/status", "/v1/members", "/v1/peers", "/v1/runs", "/metrics"):
        assert fetch(root + path, key)[0] == 200
        assert fetch(root + path, "")[0] == 401
    for path in ("/v1/ticket", "/v1/config", "/v1/logs"):
        assert fetch(root + path, key)[0] == 403
    for method, path in (("POST", "/v1/runs"), ("DELETE", "/v1/runs/a"), ("POST", "/v1/down")):
        assert fetch(root + path, key, method)[0] == 403
    assert run(daemon.home, "status").returncode == 0
