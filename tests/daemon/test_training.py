"""Four real daemons train the shipped script: what they end with is what one process computes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.cli.run_source import read_run_file
from shoal.runs import Metric, certificates_of, get_run, metrics_of
from tests.daemon.processes import Daemon, clean_environment, daemons, run

CONFIG = Path(__file__).parents[2] / "configs" / "runs" / "shakespeare.toml"
PATIENCE_S = 240.0  # seconds; five processes with torch share two cores with other tests
FROST_S = 20.0  # seconds; a frozen peer's sockets stay open: only its silence shows
COMMIT_S = 10.0  # what a death may cost the others, the bar
ROUNDS, EVERY = 3, 25
SMALL = (
    *(f"run.rounds={ROUNDS}", f"strategy.every={EVERY}", "run.min_members=4"),
    *("model.vocabulary=512", "model.hidden=32", "model.layers=2", "model.heads=2"),
    *("model.intermediate=64", "model.context=32", "training.batch=4", "training.validation=32"),
)


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def train(node: Daemon, name: str, *changes: str) -> None:
    flags = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    done = run(node.home, "train", str(CONFIG), "--detach", "--name", name, *flags)
    assert done.returncode == 0, done.stderr


def finish(node: Daemon, name: str) -> list[Metric]:
    wait_until(f"{name} ends", lambda: get_run(node.client, name).state in ("finished", "failed"))
    view = get_run(node.client, name)
    assert view.state == "finished", (node.home / "runs" / name / "train.log").read_text()
    return metrics_of(node.client, name)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    folder = tmp_path_factory.mktemp("training")
    with daemons(folder, "ash", "birch", "cedar", "dune") as four:
        four[0].start()
        ticket = four[0].client.ticket()
        for node in four[1:]:
            node.start("--join", ticket)
        for node in four:
            node.client.wait(peers=3, timeout_s=PATIENCE_S)
        yield four


@pytest.fixture(scope="module")
def simulated(swarm: list[Daemon], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run by one process, one replica after the other: its last line."""
    folder = tmp_path_factory.mktemp("simulation")
    settings = read_run_file(CONFIG, SMALL)
    (folder / "run.json").write_text(json.dumps(settings))
    peers = [node.client.id().peer for node in swarm]
    done = subprocess.run(
        [sys.executable, str(CONFIG.with_suffix(".py")), "--simulate", *peers],
        env=clean_environment(SHOAL_RUN_CONFIG=str(folder / "run.json"), SHOAL_RUN_DIR=str(folder)),
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert line["round"] == ROUNDS
    return line


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_four_daemons_compute_what_one_process_does(
    swarm: list[Daemon], simulated: dict[str, Any], wire: str
) -> None:
    for node in swarm:
        train(node, f"exact-{wire}", f"run.wire={wire}")
    metrics = [finish(node, f"exact-{wire}") for node in swarm]
    roots = {rows[-1].root for rows in metrics}
    assert len(roots) == 1
    if wire == "float32":
        assert roots == set(simulated["roots"].values())
    for rows in metrics:
        assert rows[-1].val_loss == pytest.approx(simulated["val_loss"], abs=0.01)
    certificates = certificates_of(swarm[0].client, f"exact-{wire}")
    assert [len(c.members) for c in certificates] == [4] * ROUNDS
    assert all(c.signatures == 4 for c in certificates)


def test_kill_nine_of_a_trainer_alone_is_reported_and_it_can_come_back(
    swarm: list[Daemon],
) -> None:
    for node in swarm:
        train(node, "trainer", "run.rounds=60", "strategy.every=2")
    *others, victim = swarm
    wait_until("a round", lambda: get_run(victim.client, "trainer").round >= 3)
    pid = get_run(victim.client, "trainer").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until("a report", lambda: get_run(victim.client, "trainer").state == "failed")
    shown = run(victim.home, "runs")
    assert "failed" in shown.stdout
    assert "signal 9" in shown.stderr
    before = get_run(others[0].client, "trainer").round
    wait_until("the others", lambda: get_run(others[0].client, "trainer").round >= before + 2)
    train(victim, "trainer", "run.rounds=60", "strategy.every=2")
    metrics = [finish(node, "trainer") for node in swarm]
    assert len({rows[-1].root for rows in metrics}) == 1
    assert victim.process is not None
    assert victim.process.poll() is None


def test_a_frozen_member_costs_the_others_seconds_and_catches_up_when_it_thaws(
    swarm: list[Daemon],
) -> None:
    for node in swarm:
        train(node, "frost", "run.rounds=30", "strategy.every=2")
    *others, frozen = swarm
    witness = others[0].client
    wait_until("a round", lambda: get_run(witness, "frost").round >= 3)
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        at, before = time.monotonic(), get_run(witness, "frost").round
        wait_until("a commit", lambda: get_run(witness, "frost").round >= before + 2)
        assert time.monotonic() - at < FROST_S
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    assert len({finish(node, "frost")[-1].root for node in swarm}) == 1
    assert 3 in {len(c.members) for c in certificates_of(witness, "frost")}


def test_kill_nine_of_a_member_in_mid_round_costs_the_others_seconds(swarm: list[Daemon]) -> None:
    for node in swarm:  # short rounds: the kill falls into one
        train(node, "death", "run.rounds=25", "strategy.every=2")
    *others, victim = swarm
    lost = victim.client.id().peer
    wait_until("a round", lambda: get_run(others[0].client, "death").round >= 3)
    victim.kill()
    at = time.monotonic()
    before = get_run(others[0].client, "death").round
    wait_until("a commit", lambda: get_run(others[0].client, "death").round >= before + 2)
    assert time.monotonic() - at < COMMIT_S
    assert all(node.process is not None and node.process.poll() is None for node in others)
    metrics = [finish(node, "death") for node in others]
    assert len({rows[-1].root for rows in metrics}) == 1
    last = certificates_of(others[0].client, "death")[-1]
    assert lost not in last.members
    assert len(last.members) == 3
    assert os.path.exists(others[0].home / "runs" / "death" / "model" / "model.safetensors")
