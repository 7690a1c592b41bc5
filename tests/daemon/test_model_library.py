"""Models as content between real daemons, by the commands that people type."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from shoal.library import (
    known_models,
    model_detail,
    pin_model,
    remove_model,
    unpin_model,
    verify_model,
)
from tests.daemon.processes import Daemon, daemons, run
from tests.unit.sharding_models import LAYERS, save_model
from tests.unit.sharding_tokenizer import save_tokenizer

PATIENCE_S = 60.0  # seconds; the splitter imports torch, and other tests share the cores


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def added_by(daemon: Daemon, source: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return run(
        daemon.home, "model", "add", str(source), "--name", "tiny", *options, timeout_s=PATIENCE_S
    )


def test_a_model_is_added_pinned_mended_and_forgotten(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", vocab_size=256)
    save_tokenizer(tmp_path / "hf")
    with daemons(tmp_path, "one", "two") as (one, two):
        one.start()
        two.start("--join", one.client.ticket())
        until(lambda: len(one.client.members()) == 2)
        done = added_by(one, tmp_path / "hf")
        assert (done.returncode, len(done.stdout)) == (0, 65), done.stderr
        assert f"tiny: llama, {LAYERS} layers" in done.stderr
        until(lambda: [each.layers for each in known_models(two.client)] == [LAYERS])
        done = added_by(two, tmp_path / "hf", "--dtype", "bfloat16")
        assert done.returncode == 2
        assert "the name tiny is taken by a model of" in done.stderr

        *_, last = pin_model(two.client, "tiny", start=1, end=3)
        assert last.model is not None
        assert last.model.here == [(1, 3)]
        *_, last = pin_model(two.client, "tiny")
        assert all(part.here and part.pinned for part in model_detail(two.client, "tiny").parts)

        (part,) = (two.home / "models").glob("*/block-0001.safetensors")
        good = part.read_bytes()
        with part.open("r+b") as file:
            file.write(b"?")
        *_, last = verify_model(two.client, "tiny")
        assert [(bad.name, bad.repaired) for bad in last.bad] == [(part.name, True)]
        assert part.read_bytes() == good

        assert remove_model(one.client, "tiny").freed_bytes > 0
        until(lambda: [each.listed for each in known_models(two.client)] == [False])
        with part.open("r+b") as file:
            file.write(b"?")
        done = run(two.home, "model", "verify", "tiny")  # nobody else has it any more
        assert done.returncode == 1
        assert "block-0001.safetensors was damaged, not repaired" in done.stderr
        unpin_model(two.client, "tiny")
        assert known_models(two.client) == []
        for daemon in (one, two):
            assert not list((daemon.home / "models").glob("*/block-*"))
