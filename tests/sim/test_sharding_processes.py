"""A ring of real workers, each a process of its own, over in-memory streams: one is killed."""

import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
import torch
import trio

from node.model_workers import open_worker
from protocols.sharding.generate import EntryServices, Finished, PrefixKeys, Shape, open_generation
from protocols.sharding.route import Candidate
from protocols.sharding.service import StageService
from protocols.sharding.spans import StageInfo
from protocols.sharding.split import split
from protocols.sharding.wire import Sampling
from protocols.sharding.worker_wire import worker_answer_decoder
from tests.sim.net import Net
from tests.unit.sharding_models import LAYERS, PROMPT, save_model
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

SPANS = {"first": (0, 2), "second": (2, LAYERS), "spare": (1, LAYERS)}
MODEL = "ab" * 32
COUNT = 40


class Routes:
    """The spare is not chosen while there is another."""

    def candidates(self, name: str) -> Sequence[Candidate]:
        return [
            Candidate(PeerId(peer), *span, 0.01, 0.001, penalty=1000.0 * (peer == "spare"))
            for peer, span in SPANS.items()
        ]


def expected(model: object, prompt: list[int]) -> list[int]:
    ids = model.generate(  # type: ignore[attr-defined]
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=COUNT,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in ids[0, len(prompt) :]]


def worker_pid(folder: Path, start: int, end: int) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--folder={folder}" in said and {f"--start={start}", f"--end={end}"} <= {*said}:
            return int(process.name)
    raise AssertionError("no such worker")


@pytest.mark.slow
async def test_a_worker_that_is_killed_in_the_middle_of_an_answer_is_not_missed(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "hf")
    manifest = split(tmp_path / "hf", tmp_path / "parts")
    net = Net(nursery, latency_s=0.001)
    services: dict[str, StageService] = {}
    finished = list[Finished]()
    async with AsyncExitStack() as stack:
        for name in ("entry", *SPANS):
            service = StageService(net.rpc(PeerId(name)), Signer(bytes(32)), clock=SystemClock())
            services[name] = service
            await nursery.start(service.run)

        async def start(name: str) -> None:
            begin, end = SPANS[name]
            worker = await stack.enter_async_context(
                open_worker(
                    nursery,
                    "protocols.sharding.worker",
                    [f"--folder={tmp_path / 'parts'}", f"--start={begin}", f"--end={end}"],
                    worker_answer_decoder,
                    log_path=tmp_path / f"{name}.log",
                )
            )
            assert worker.readiness is not None
            info = StageInfo(
                model=MODEL,
                name="tiny",
                start=begin,
                end=end,
                n_layers=LAYERS,
                hidden_size=manifest.hidden_size,
                vocab_size=97,
                dtype="float32",
                ready=worker.readiness,
                cache_bytes=1 << 24,
            )
            services[name].attach(info, worker)

        async with trio.open_nursery() as starting:
            for name in SPANS:
                starting.start_soon(start, name)

        entry = EntryServices(services["entry"], Routes(), finished.append)
        shape = Shape("tiny", MODEL, LAYERS, manifest.hidden_size, manifest.vocab_size)
        keys = PrefixKeys(bytes(32))
        for lost in (None, "second"):
            found = list[int]()
            with trio.fail_after(60):
                async with (
                    open_generation(
                        entry, shape, PROMPT, max_tokens=COUNT, sampling=Sampling(), keys=keys
                    ) as generation,
                    aclosing(generation.tokens()) as tokens,
                ):
                    async for picks in tokens:
                        found += [pick.token for pick in picks]
                        if lost and len(found) > COUNT // 2:
                            os.kill(worker_pid(tmp_path / "parts", *SPANS[lost]), signal.SIGKILL)
                            lost = None
                    assert found == expected(model, PROMPT)
        assert [(hop.peer, hop.start, hop.end) for hop in generation.route] == [
            ("first", 0, 2),
            ("spare", 2, LAYERS),
        ]
        assert generation.replaced == 1
        assert [all(one.receipts) for one in finished] == [True, True]
    nursery.cancel_scope.cancel()
