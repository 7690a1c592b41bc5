"""Real daemons audit each other: an answer, recomputed by another, and what all hear of it."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shoal import hosting, models
from shoal.audits import audits
from tests.daemon.processes import Daemon, daemons, run
from tests.unit.sharding_models import save_model
from tests.unit.sharding_tokenizer import save_tokenizer

PATIENCE_S = 120.0  # seconds; processes that import torch share the cores with other tests


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_hosted_by(daemon: Daemon, count: int) -> bool:
    found = [model for model in models.models(daemon.client) if model.name == "tiny"]
    states = [stage.state for model in found for stage in model.stages]
    return states.count("ready") == count


def test_an_honest_answer_passes_and_everybody_hears_of_it(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", vocab_size=256)
    save_tokenizer(tmp_path / "hf", template=True)
    with daemons(tmp_path, "one", "two", "three") as swarm:
        one, two, three = swarm
        for daemon in swarm:
            daemon.environment = {"SHOAL_SERVE__OFFER": "false"}
        one.start()
        for daemon in (two, three):
            daemon.start("--join", one.client.ticket())
        wait_until(lambda: len(one.client.members()) == 3)
        added = run(one.home, "model", "add", str(tmp_path / "hf"), "--name", "tiny")
        assert added.returncode == 0, added.stderr
        for daemon in (two, three):
            known = partial(run, daemon.home, "model", "show", "tiny")
            wait_until(lambda known=known: known().returncode == 0)  # type: ignore[misc]
            hosting.host(daemon.client, "tiny", memory_bytes=1 << 30)
        wait_until(partial(is_hosted_by, one, 2))
        done = run(one.home, "model", "audit", "tiny", "--now", "--json", timeout_s=PATIENCE_S)
        found = json.loads(done.stdout)
        assert [(stage["state"], len(stage["auditors"])) for stage in found] == [("passed", 1)]
        (stage,) = found
        assert {stage["peer"], *stage["auditors"]} == {two.client.id().peer, three.client.id().peer}
        wait_until(lambda: bool(audits(two.client, "tiny").audited))
        (row,) = audits(two.client, "tiny").audited
        assert (row.peer, row.passed_by, row.failed_by) == (
            stage["peer"],
            [one.client.id().peer],
            [],
        )
