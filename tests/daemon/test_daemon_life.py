"""A whole daemon as a process: start, stop, signals, kill -9, second starts, bad input."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

import shoal
from node.host.addresses import parse_address
from node.tickets import SwarmKey, parse_ticket
from shoal.client import connect_unix
from tests.daemon.processes import SHOAL, UP, Daemon, clean_environment, daemons, run


def test_up_status_down(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        status = a.client.status()
        assert (status.state, status.name, status.pid) == ("ready", "a", a.pid)
        assert status.addresses == [
            f"{status.addresses[0].partition('/p2p/')[0]}/p2p/{status.peer}"
        ]
        down = run(a.home, "down")
        assert (down.returncode, down.stdout) == (0, "")
        assert a.process is not None
        assert a.process.poll() == 0  # `down` returns when it has ended
        assert not (a.home / "control.sock").exists()
        assert "Traceback" not in a.said
        assert run(a.home, "status").returncode == 3


def test_the_home_is_private_whatever_the_umask(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        before = os.umask(0)
        try:
            a.start()
        finally:
            os.umask(before)
        assert a.home.stat().st_mode & 0o777 == 0o700
        for path in a.home.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_daemon_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        second = run(a.home, *UP)
        assert second.returncode == 1
        assert f"in use by the daemon with pid {a.pid}" in second.stderr
        assert a.client.status().state == "ready"


def test_after_kill_9_it_starts_again_as_the_same_node(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        before = a.start().client.status()
        a.kill()
        assert (a.home / "control.sock").exists()  # nobody cleaned up
        after = a.start().client.status()
        assert (after.peer, after.swarm) == (before.peer, before.swarm)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_it_and_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        os.kill(a.pid, number)
        assert a.wait(timeout_s=5.5) == 0
        assert "state=draining" in a.said
        assert "state=stopped" in a.said


def test_a_stopped_reader_of_events_does_not_keep_it(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        follower = subprocess.Popen(
            [*SHOAL, "logs", "-f"],
            env=clean_environment(SHOAL_HOME=str(a.home)),
            stdout=subprocess.PIPE,
        )
        assert follower.stdout is not None
        with follower.stdout:
            follower.stdout.readline()
            follower.send_signal(signal.SIGSTOP)
            os.kill(a.pid, signal.SIGTERM)
            assert a.wait(timeout_s=5.5) == 0
            follower.send_signal(signal.SIGCONT)
            follower.stdout.read()
        assert follower.wait(10) == 0


def test_a_second_signal_ends_a_hanging_drain_at_once(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        os.kill(a.pid, signal.SIGSTOP)  # so that both signals are there when it goes on
        os.kill(a.pid, signal.SIGTERM)
        os.kill(a.pid, signal.SIGINT)
        os.kill(a.pid, signal.SIGCONT)
        assert a.wait(timeout_s=5.5) in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_events_tell_the_states_to_the_end(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        states: list[str] = []
        for event in a.client.events("GET", "/v1/events", timeout_s=20):
            if event.name == "state":
                states.append(json.loads(event.data)["state"])
            if states == ["ready"]:
                a.client.down()
            if states[-1] == "draining":
                break
        assert states == ["ready", "draining"]
        assert a.wait() == 0


def test_a_mebibyte_of_garbage_on_the_control_socket(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        with connect_unix(a.home / "control.sock", timeout_s=10) as link:
            link.sendall(os.urandom(1024 * 1024))
            link.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: link.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert a.client.status().state == "ready"


def test_two_hundred_idle_clients_do_not_keep_others_out(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        idle = [connect_unix(a.home / "control.sock", timeout_s=10) for _ in range(200)]
        assert a.client.status().state == "ready"
        for link in idle:
            link.close()


def test_the_loopback_port_wants_its_token(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start("--http", "127.0.0.1:0")
        line = next(line for line in a.said.splitlines() if "event=http" in line)
        place = line.partition("listen=")[2].split()[0]
        token = (a.home / "http.token").read_text().strip()
        assert token not in a.said
        curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{place}/v1/status"]
        bearer = ["-H", f"Authorization: Bearer {token}"]
        codes = [
            subprocess.run([*curl, *more], capture_output=True, text=True).stdout
            for more in ([], bearer, [*bearer, "-H", "Origin: http://evil.example"])
        ]
        assert codes == ["401", "200", "403"]


def test_detach_returns_when_ready_and_says_what_failed(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)  # its socket's path is over the kernel's limit
    try:
        up = run(home, *UP, "--detach")
        assert up.returncode == 0, up.stderr
        assert up.stdout.startswith("peer     12D3KooW")
        assert shoal.connect(home).status().state == "ready"
        again = run(home, *UP, "--detach")
        assert again.returncode == 1
        assert "is in use by the daemon with pid" in again.stderr
        assert "Traceback" not in again.stderr
    finally:
        assert run(home, "down").returncode == 0


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path / "a", "up", "--no-mdns", "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{port}" in done.stderr


def test_a_damaged_key_is_one_line(tmp_path: Path) -> None:
    home = tmp_path / "a"
    home.mkdir(mode=0o700)
    (home / "identity.key").write_bytes(b"short")
    (home / "identity.key").chmod(0o600)
    done = run(home, *UP)
    assert done.returncode == 2
    assert "is not an identity" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_starts_within_two_seconds(tmp_path: Path, record_property: object) -> None:
    with daemons(tmp_path, "a") as (a,):
        begun = time.monotonic()
        a.start()
        took_s = time.monotonic() - begun
        a.client.down()
        a.wait()
    assert callable(record_property)
    record_property("ready_after_s", round(took_s, 2))  # measured, not asserted: CI is shared
    assert took_s < 20


def test_the_openapi_document_and_the_metrics_cover_all_parts(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        socket_path = os.fspath(a.home / "control.sock")
        pages = [
            subprocess.run(
                ["curl", "-sf", "--unix-socket", socket_path, f"http://localhost{path}"],
                capture_output=True,
                check=True,
            ).stdout
            for path in ("/v1/openapi.json", "/metrics")
        ]
    document = json.loads(pages[0])
    for path in ("/v1/status", "/v1/runs/{run}/round", "/v1/served", "/v1/chat/completions"):
        assert path in document["paths"]
    references = re.findall(rb'"#/components/schemas/([^"]+)"', pages[0])
    assert {name.decode() for name in references} <= set(document["components"]["schemas"])
    assert b"shoal_store_entries 1.0" in pages[1]


def test_two_daemons_join_by_ticket_and_again_without_it(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b") as (a, b):
        a.start()
        b.start("--join", a.client.ticket())
        assert a.client.wait(peers=1, timeout_s=10).peers == 1
        names(a, b)
        pongs = list(a.client.ping(b.client.id().peer[-8:], count=2, interval_s=0.01))
        assert all(pong.rtt_ms is not None for pong in pongs)
        b.client.down()
        assert b.wait() == 0
        b.start()  # no ticket: it remembers
        assert b.client.wait(peers=1, timeout_s=10).peers == 1
        a.client.down()
        assert a.wait() == 0
        b.client.down()
        assert b.wait() == 0
        b.start()
        a.start()  # all were away: each is where it was
        assert b.client.wait(peers=1, timeout_s=10).peers == 1
        a.kill()
        b.client.down()


def names(a: Daemon, b: Daemon) -> None:
    assert [peer.peer for peer in a.client.peers()] == [b.client.id().peer]
    assert [peer.peer for peer in b.client.peers()] == [a.client.id().peer]


def test_a_stranger_with_another_key_gets_no_further_than_admission(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b") as (a, b):
        a.start()
        b.start()
        address = a.client.id().addresses[0]
        (b.home / "peers.json").write_text(json.dumps({a.client.id().peer: [address]}))
        b.client.down()
        b.wait()
        (b.home / "peers.json").write_text(json.dumps({a.client.id().peer: [address]}))
        b.start()
        with pytest.raises(shoal.ApiError, match="0 of 1 peers"):
            b.client.wait(peers=1, timeout_s=1.0)
        assert a.client.peers() == []


def test_a_ticket_of_another_swarm_is_refused_and_a_forged_one_leads_nowhere(
    tmp_path: Path,
) -> None:
    with daemons(tmp_path, "a", "b", "c") as (a, b, c):
        a.start()
        b.start()
        ticket = a.client.ticket()
        b.client.down()
        b.wait()
        refused = run(b.home, *UP, "--join", ticket)
        assert refused.returncode == 2
        assert "belongs to swarm" in refused.stderr
        assert "Traceback" not in refused.stderr
        forged = replace(parse_ticket(ticket), key=SwarmKey(b"f" * 32))
        c.start("--join", forged.text())
        with pytest.raises(shoal.ApiError, match="0 of 1 peers"):
            c.client.wait(peers=1, timeout_s=1.0)
        assert a.client.peers() == []
        assert a.client.status().state == "ready"


def test_a_mebibyte_of_garbage_on_the_peers_port(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b") as (a, b):
        a.start()
        place = parse_address(a.client.id().addresses[0])
        for opening in (b"", b"\x13/multistream/1.0.0\n\x07/noise\n"):
            with socket.create_connection((place.host, place.port), timeout=10) as link:
                with contextlib.suppress(OSError):  # it hangs up before the end
                    link.sendall(opening + os.urandom(1024 * 1024))
                    link.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while link.recv(65536):
                        pass
        assert a.client.status().state == "ready"
        assert "Traceback" not in a.said
        b.start("--join", a.client.ticket())
        assert a.client.wait(peers=1, timeout_s=10).peers == 1


def test_who_goes_down_is_no_member_for_the_others_at_once(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b") as (a, b):
        a.start()
        b.start("--join", a.client.ticket())
        assert a.client.wait(peers=1, timeout_s=10).peers == 1
        deadline = time.monotonic() + 10
        while [one.name for one in a.client.members()] != ["a", "b"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert run(b.home, "down").returncode == 0
        members = json.loads(run(a.home, "members", "--json").stdout)
        assert [one["name"] for one in members] == ["a"]  # its lease had 20 s to go, or more
