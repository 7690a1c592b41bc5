"""The worker as a process: it answers, survives errors, and lives and dies with its daemon."""

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.model_workers import open_worker
from protocols.sharding.link import Link, WorkerGone
from protocols.sharding.split import split
from protocols.sharding.worker_wire import (
    Done,
    Load,
    Opened,
    Output,
    WorkerAnswer,
    WorkerClose,
    WorkerPing,
    WorkerStep,
    worker_answer_decoder,
)
from tests.unit.sharding_models import LAYERS, PROMPT, save_model
from tests.unit.test_sharding_worker import expected_tokens, opening, step, tokens_of
from wire.errors import RemoteError


@asynccontextmanager
async def real_worker(folder: Path, *more: str) -> AsyncGenerator[Link[WorkerAnswer]]:
    save_model(folder / "model")
    split(folder / "model", folder / "parts")
    arguments = [f"--folder={folder / 'parts'}", "--start=0", f"--end={LAYERS}", *more]
    async with (
        trio.open_nursery() as nursery,
        open_worker(
            nursery,
            "protocols.sharding.worker",
            arguments,
            worker_answer_decoder,
            log_path=folder / "worker.log",
        ) as link,
    ):
        yield link


async def test_a_worker_process_answers_survives_errors_and_is_missed(tmp_path: Path) -> None:
    async with real_worker(tmp_path, "--dtype=float32", "--cache-bytes=100000") as link:
        assert await link.ask(opening(1), timeout_s=30) == Opened(0)
        output = await link.ask(WorkerStep(1, step(0, PROMPT)), timeout_s=30)
        assert isinstance(output, Output)
        assert tokens_of(output) == expected_tokens()[:1]
        with pytest.raises(RemoteError) as caught:
            await link.ask(WorkerStep(1, step(20, PROMPT)), timeout_s=30)
        assert caught.value.code == "bad_message"
        assert isinstance(await link.ask(WorkerPing(), timeout_s=30), Load)
        assert await link.ask(WorkerClose(1), timeout_s=30) == Done()
        child = workers_of(os.getpid())
        assert len(child) == 1
        os.kill(child[0], signal.SIGKILL)
        with pytest.raises(WorkerGone):
            await link.ask(opening(2), timeout_s=30)
        assert link.gone.is_set()


def workers_of(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    command = b"protocols.sharding.worker"
    return [c for c in children if command in Path(f"/proc/{c}/cmdline").read_bytes()]


async def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    arguments = [f"--folder={tmp_path / 'nothing'}", "--start=0", "--end=1"]
    async with trio.open_nursery() as nursery:
        with pytest.raises(WorkerGone, match="while it started: OSError"):
            async with open_worker(
                nursery,
                "protocols.sharding.worker",
                arguments,
                worker_answer_decoder,
                log_path=tmp_path / "worker.log",
            ):
                pytest.fail("it got ready")
