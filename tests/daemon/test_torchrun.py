"""Inside `torchrun` rank 0 alone speaks to the daemon, and all ranks end with its parameters."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.pytorch.staging import flatten
from shoal.runs import certificates_of
from shoal.trainer import Trainer
from tests.daemon import torchrun_script
from tests.daemon.processes import Daemon, clean_environment, daemons

SCRIPT = Path(torchrun_script.__file__)
PATIENCE_S = 120.0  # seconds; torch starts three times on two busy cores
ROUNDS = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    torch.set_num_threads(1)
    with daemons(tmp_path_factory.mktemp("torchrun"), "ash", "birch") as two:
        two[0].start()
        two[1].start("--join", two[0].client.ticket())
        for node in two:
            node.client.wait(peers=1, timeout_s=PATIENCE_S)
        yield two


def torchrun(node: Daemon, kind: str, out: Path, **options: Any) -> list[dict[str, Any]]:
    out.mkdir()
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *argv, str(SCRIPT), kind],
        env=clean_environment(
            SHOAL_HOME=str(node.home), OUT=str(out), OPTIONS=json.dumps(options),
            OMP_NUM_THREADS="1", PYTHONFAULTHANDLER="1",
        ),
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:6000]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def alone(node: Daemon, **options: Any) -> tuple[str, str]:
    model = torchrun_script.make("plain")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with Trainer(model, optimizer, client=node.client, **options) as trainer:
        while not trainer.done:
            trainer.step(torchrun_script.step(model, optimizer, [2, trainer.global_step]))
        return flatten(model).tobytes().hex(), trainer.root


@pytest.mark.parametrize(("kind", "strategy"), [("ddp", "diloco"), ("fsdp", "streaming")])
def test_ranks_of_a_machine_are_one_member(
    pair: list[Daemon], tmp_path: Path, kind: str, strategy: str
) -> None:
    options: dict[str, Any] = {
        "run": f"{kind}-{strategy}", "rounds": ROUNDS, "every": 3, "strategy": strategy,
        "wire": "float32", "min_members": 2,
    }  # fmt: skip
    if strategy == "streaming":
        options |= {"fragments": 3, "delay": 2}
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(alone, pair[1], **options)
        ranks = torchrun(pair[0], kind, tmp_path / "out", **options)
        parameters, root = other.result(PATIENCE_S)
    assert ranks[0]["root"] == root
    assert ranks[1]["root"] == ""
    assert ranks[0]["parameters"] == ranks[1]["parameters"] == parameters
    assert ranks[0]["names"][0] == "0.weight"
    for rank in ranks:
        assert (rank["round"], rank["member"]) == (ROUNDS, pair[0].client.id().peer)
        assert rank["evaluated"] == ROUNDS + 1
    assert ranks[0]["step"] == ranks[1]["step"]
    signed = certificates_of(pair[0].client, options["run"])
    assert all(len(c.members) == 2 for c in signed)


def test_a_machine_that_comes_back_has_its_shards_of_the_optimizer(
    pair: list[Daemon], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"run": "back", "every": 2, "wire": "float32", "rounds": 2}
    torchrun(pair[0], "fsdp", tmp_path / "first", **options)
    folder = pair[0].home / "runs" / "back" / "checkpoint"
    names = sorted(path.name for path in folder.glob("trainer-*.safetensors"))
    peer = pair[0].client.id().peer
    assert names == [f"trainer-{peer}-1.safetensors", f"trainer-{peer}.safetensors"]
    later = torchrun(pair[0], "fsdp", tmp_path / "second", **options | {"rounds": 5})
    assert all(rank["round"] == 5 for rank in later)
    fresh = np.float64(4 * 4)  # four tensors, as many steps as two rounds have
    assert all(rank["moments"] > fresh for rank in later)
