"""`shoal netcheck` and `shoal doctor`, as real processes: over a node of fakes, and without one."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from node import doctor
from node.home import Home
from node.reach.views import Held, ReachView
from shoal.reach import Check, Doctor, NetCheck
from tests.unit.fake_node import BOB, EVE, running, shoal, view

HIDDEN = ReachView(
    "relayed",
    ["Outside we are seen at 11.1.0.2:40001: a router translates our address."],
    [],
    ip4="relayed",
    behaviour="random",
    outside=1,
    held=[Held(BOB, "11.9.0.2", 20.4, 3000.0, [])],
)


async def test_netcheck_is_lines_for_people_and_one_struct_as_json(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.node.reach = lambda: HIDDEN
        it.node.life.started -= 60.0
        document = await it.json("netcheck")
        found = msgspec.convert(document, NetCheck)
        assert msgspec.to_builtins(found) == document
        assert (found.reachability, found.mapping, found.outside) == ("relayed", "random", 1)
        assert [(one.name, one.rtt_ms) for one in found.relays] == [("bob", 20.4)]
        assert [(one.name, one.path) for one in found.paths] == [("bob", "direct")]
        lines = (await it.shoal("netcheck")).stdout.decode().splitlines()
        at = next(n for n, line in enumerate(lines) if line.startswith("WARN  reachability"))
        assert lines[at + 1].strip().startswith("try: turn on UPnP or NAT-PMP")
        assert lines[at + 2].strip() == f"- {HIDDEN.evidence[0]}"
        assert any(line.startswith("OK    interfaces") for line in lines)


async def test_netcheck_fails_when_nobody_can_reach_the_node(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.node.reach = lambda: msgspec.structs.replace(HIDDEN, held=[])
        it.node.life.started -= 60.0
        done = await it.shoal("netcheck", "--json")
        assert done.returncode == 1
        levels = {one["name"]: one["level"] for one in json.loads(done.stdout)["checks"]}
        assert levels["relays"] == "fail"


async def test_what_peers_say_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        evil = "\x1b[2J\nOK    reachability"
        it.node.reach = lambda: msgspec.structs.replace(HIDDEN, evidence=[evil])
        it.host.views.append(view(EVE, None))
        shown = (await it.shoal("netcheck")).stdout.decode()
        assert "\x1b" not in shown
        assert "?[2J?OK    reachability" in shown


async def test_netcheck_needs_a_daemon(tmp_path: Path) -> None:
    assert (await shoal(tmp_path, "netcheck")).returncode == 3


async def test_doctor_checks_the_rest_without_a_daemon_and_fails(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[net]\nmdsn = false\n")
    done = await shoal(tmp_path, "doctor", "--json")
    assert done.returncode == 1
    found = msgspec.json.decode(done.stdout, type=Doctor)
    checks = {one.name: one for one in found.checks}
    assert (found.state, found.net) == ("", None)
    assert list(checks) == ["daemon", "home", "disk", "configuration", "torch"]
    assert checks["daemon"].level == "fail"
    assert "did you mean 'net.mdns'?" in checks["configuration"].fix


async def test_doctor_shows_the_daemon_and_all_of_netcheck(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.node.life.enter("draining")
        done = await it.shoal("doctor", "--json")
        found = msgspec.json.decode(done.stdout, type=Doctor)
        assert found.net is not None
        assert found.checks[0].text.startswith("draining, version 0.1")
        assert {one.name for one in found.net.checks} < {one.name for one in found.checks}
        assert done.returncode == 0


def test_loose_permissions_fail_with_the_command_that_mends_them(tmp_path: Path) -> None:
    home = Home(tmp_path)
    tmp_path.chmod(0o700)
    home.identity.write_bytes(bytes(32))
    home.identity.chmod(0o644)
    found = doctor.check_home(home)
    assert (found.level, found.fix) == ("fail", f"chmod go= {home.identity}")
    home.identity.chmod(0o600)
    assert doctor.check_home(home).level == "ok"


def test_a_full_disk_fails_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "not" / "yet")
    assert doctor.check_disk(home).text.endswith(str(tmp_path))
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(doctor, "DISK_WARN_BYTES", free * 2)
    assert doctor.check_disk(home).level == "warn"
    monkeypatch.setattr(doctor, "DISK_FAIL_BYTES", free * 2)
    assert doctor.check_disk(home).level == "fail"


@pytest.mark.parametrize(
    ("said", "device", "level"),
    [
        ('print(\'["2.13", 0, "", 2]\')', "auto", "ok"),
        ('print(\'["2.13", 0, "", 2]\')', "cuda", "fail"),
        ('print(\'["2.13", 1, "H100", 2]\')', "cuda", "ok"),
        ("import torch_is_not_here", "auto", "warn"),
        ("import time; time.sleep(60)", "auto", "warn"),
    ],
)
def test_torch_is_asked_in_a_process_of_its_own(
    said: str, device: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", said)
    monkeypatch.setattr(doctor, "TORCH_S", 2.0)
    assert doctor.check_torch(device).level == level


def test_a_daemon_that_lags_or_is_of_another_version_is_warned_about() -> None:
    assert doctor.check_daemon("ready", 3.0, "1", "1").level == "ok"
    lagging = doctor.check_daemon("ready", 400.0, "1", "1")
    assert isinstance(lagging, Check)
    assert "serve.threads" in lagging.fix
    assert "shoal down" in doctor.check_daemon("ready", 3.0, "1", "2").fix
