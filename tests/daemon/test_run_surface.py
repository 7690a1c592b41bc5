"""Two daemons train a tiny model: what the commands, the metrics and the dashboard's routes say."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shoal.client import connect_unix
from shoal.runs import certificates_of, get_run
from tests.daemon.processes import Daemon, daemons, run

PATIENCE_S = 120.0  # seconds; the scripts import torch, on two cores that others use
ROUNDS = 4
SCRIPT = """
import torch
import shoal
from tests.tiny_learner import Learner

torch.set_num_threads(1)
learner = Learner()
options = shoal.run_options(rounds=4, min_members=2, strategy="diloco", every=2, wire="int8")
with shoal.Trainer(learner.model, learner.optimizer, evaluate=lambda: 0.5, **options) as trainer:
    while not trainer.done:
        trainer.step(learner.step(trainer.member, trainer.global_step))
print("trained", trainer.round)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Two daemons that have trained the run `tiny` together; the second one's name is hostile."""
    folder = tmp_path_factory.mktemp("surface")
    script = folder / "tiny.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    with daemons(folder, "ash", "birch") as (ash, birch):
        for node in (ash, birch):
            node.environment["PYTHONPATH"] = os.pathsep.join(
                [root, os.environ.get("PYTHONPATH", "")]
            )
        birch.args = ("--name", "<b>birch\u202e")
        ash.start()
        birch.start("--join", ash.client.ticket())
        birch.client.wait(peers=1, timeout_s=PATIENCE_S)
        begun = run(birch.home, "train", str(script), "--name", "tiny", "--detach")
        assert begun.returncode == 0, begun.stderr
        done = run(ash.home, "train", str(script), "--name", "tiny", timeout_s=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line.split("  ")[0] for line in lines[-ROUNDS - 1 : -1]] == [
            f"round {number}/{ROUNDS}" for number in range(1, ROUNDS + 1)
        ]
        assert "2 members" in lines[-2]
        assert "int8" in lines[-2]
        assert lines[-1].startswith("run tiny finished: root ")
        yield [ash, birch]


def test_a_run_is_shown_with_its_certificate_and_who_brought_what(trained: list[Daemon]) -> None:
    ash, birch = trained
    shown = run(ash.home, "run", "show", "tiny")
    assert shown.returncode == 0, shown.stderr
    assert "\u202e" not in shown.stdout
    told = dict(line.split(maxsplit=1) for line in shown.stdout.split("\n\n")[0].splitlines())
    assert told["round"].startswith(f"{ROUNDS} of {ROUNDS}, step {2 * ROUNDS}, loss ")
    assert told["strategy"] == "diloco"
    assert told["settings"].startswith("diloco every=2 ")
    assert "signed by 2 of 2" in told["last"]
    found = json.loads(run(ash.home, "run", "show", "tiny", "--json").stdout)
    assert found["run"]["root"] == told["root"] == get_run(birch.client, "tiny").root
    assert found["last"]["round"] == ROUNDS - 1
    rounds = [c.round for c in certificates_of(ash.client, "tiny")]
    assert rounds == list(range(ROUNDS))
    assert [c.round for c in certificates_of(ash.client, "tiny", last=2)] == rounds[-2:]


def test_the_contribution_table_has_both(trained: list[Daemon]) -> None:
    ash, birch = trained
    peers = {node.client.id().peer for node in trained}
    found = json.loads(run(ash.home, "run", "peers", "tiny", "--json").stdout)
    assert {row["peer"] for row in found} == peers
    assert {row["rounds"] for row in found} == {ROUNDS}
    assert [row["left_out"] for row in found] == [0, 0]
    table = run(ash.home, "run", "peers", "tiny").stdout
    assert "<b>birch?" in table
    assert "50%" in table
    assert birch.home.name == "birch"


def test_curves_metrics_log_and_export(trained: list[Daemon], tmp_path: Path) -> None:
    ash, birch = trained
    picture = tmp_path / "curves.png"
    other = str(birch.home / "runs" / "tiny" / "metrics.jsonl")
    drawn = run(ash.home, "run", "curves", "tiny", other, "--out", str(picture), "--terminal")
    assert drawn.returncode == 0, drawn.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for node in trained:
        assert f"tiny …{node.client.id().peer[-8:]}" in drawn.stdout
    points = run(ash.home, "run", "curves", "tiny", "--json").stdout.splitlines()
    assert [json.loads(line)["round"] for line in points][-1] == ROUNDS
    assert run(ash.home, "run", "log", "tiny").stdout.splitlines()[-1] == f"trained {ROUNDS}"
    model = tmp_path / "model.safetensors"
    exported = run(ash.home, "run", "export", "tiny", "--out", str(model), "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["root"] == get_run(ash.client, "tiny").root
    data = model.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= set(header)


def test_prometheus_sees_the_run(trained: list[Daemon]) -> None:
    with closing(connect_unix(trained[0].client.path, timeout_s=10.0)) as link:
        link.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with link.makefile("rb") as reply:
            lines = reply.read().decode().splitlines()
    assert f'shoal_run_committed_total{{run="tiny"}} {float(ROUNDS)}' in lines
    assert 'shoal_run_active{run="tiny"} 0.0' in lines


def test_after_a_restart_the_run_is_still_listed_and_can_be_resumed(trained: list[Daemon]) -> None:
    ash, _ = trained
    root = get_run(ash.client, "tiny").root
    assert run(ash.home, "down").returncode == 0
    ash.wait()
    ash.start()
    listed = json.loads(run(ash.home, "runs", "--json").stdout)
    mine = next(each for each in listed if each["name"] == "tiny")
    assert (mine["state"], mine["round"], mine["root"]) == ("finished", ROUNDS, root)
    resumed = run(ash.home, "run", "resume", "tiny", timeout_s=PATIENCE_S)
    assert resumed.returncode == 0, resumed.stderr
    assert "run tiny finished" in resumed.stdout
