"""A model comes into service over several nodes and answers; its workers are real processes."""

import os
import signal
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
import trio

from node.model_answers import Options, Prompt
from node.models import Models
from shoal.models import Answer, ServeProgress, ServeRequest, Stage
from tests.sim.net import Net
from tests.sim.serving import ServingMember, ServingSwarm
from tests.unit.sharding_models import LAYERS, save_model
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.errors import NotFound, ShoalError, UsageError
from wire.ids import PeerId

PATIENCE_S = 120.0  # seconds for anything here: four processes import torch on shared cores
TEXT = "to be or not"


async def text_of(models: Models, options: Options, *, prompt: str = TEXT) -> tuple[str, Answer]:
    answering = await models.answer("", Prompt(text=prompt), options)
    pieces = [piece async for piece in answering.read()]
    return "".join(piece.text for piece in pieces), pieces[-1]


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (processes of the system tell nobody)
            await trio.sleep(0.05)


async def serve(models: Models, path: Path) -> list[ServeProgress]:
    with trio.fail_after(PATIENCE_S):
        return [step async for step in models.serve(ServeRequest(str(path), "tiny"))]


def worker_pids(name: str, kind: str = "worker") -> list[int]:
    """Find the stage workers of a node, or its tokenizers: their folder is the node's."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"sharding.{kind}".encode() in command and f"/{name}/models/".encode() in command:
            found.append(int(folder.name))
    return found


def expected_text(model: object, tokenizer: object, count: int) -> str:
    ids = tokenizer(TEXT)["input_ids"]  # type: ignore[operator]
    out = model.generate(  # type: ignore[attr-defined]
        torch.tensor([ids]),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    whole = tokenizer.decode(out[0], clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]
    return str(whole)[len(TEXT) :]


@pytest.mark.slow
async def test_a_model_is_served_answers_survives_a_crash_and_goes(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "hf", vocab_size=256)
    tokenizer = save_tokenizer(tmp_path / "hf")
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    first = await swarm.add(tmp_path, "first", memory_gib=1.0)
    second = await swarm.add(tmp_path, "second", memory_gib=1.0)
    asker = await swarm.add(tmp_path, "asker", memory_gib=0.0)

    steps = await serve(first, tmp_path / "hf")
    assert [step.state for step in steps[:3]] == ["splitting", "storing", "placing"]
    served = asker.view("tiny")
    assert steps[-1] == ServeProgress("ready", "tiny", served)
    spans = [(stage.peer, stage.start, stage.end, stage.state) for stage in served.stages]
    assert spans == [("first", 0, 2, "ready"), ("second", 2, LAYERS, "ready")]
    assert asker.names() == second.names() == ["tiny"]

    await wait_until(lambda: bool(worker_pids("first", "front")))  # nobody has asked yet
    assert not worker_pids("second", "front")
    text, end = await text_of(asker, Options(max_tokens=40))
    assert text == expected_text(model, tokenizer, 40)
    assert end.finish_reason == "length"
    assert end.usage is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (len(TEXT), 40)
    assert end.trace is not None
    assert [hop.peer for hop in end.trace.route] == ["first", "second"]

    stop = text[5:9]
    stopped, end = await text_of(first, Options(max_tokens=40, stop=[stop]))
    assert (stopped, end.finish_reason) == (text[: text.index(stop)], "stop")
    with pytest.raises(UsageError, match="context is 128 tokens; the prompt has 130"):
        await text_of(asker, Options(), prompt="x" * 130)
    with pytest.raises(NotFound, match="no model 'other'"):
        await asker.answer("other", Prompt(text=TEXT), Options())

    answering = await asker.answer("tiny", Prompt(text=TEXT), Options(max_tokens=100))
    [pid] = worker_pids("second")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ShoalError, match="layers 2-4 on second are lost"):
        _ = [piece async for piece in answering.read()]
    await wait_until(lambda: worker_pids("second") not in ([], [pid]))
    await wait_until(lambda: asker.view("tiny").ready)
    assert (await text_of(asker, Options(max_tokens=40)))[0] == text

    await first.unserve("tiny")
    await wait_until(lambda: not worker_pids("first") and not worker_pids("second"))
    assert asker.names() == []
    await wait_until(lambda: not swarm.board.items)
    await wait_until(lambda: not list(tmp_path.glob(f"*/models/{served.model}")))
    await wait_until(lambda: not worker_pids("asker", "front"))
    nursery.cancel_scope.cancel()


async def test_folders_of_models_out_of_service_are_deleted_at_the_start(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    models = tmp_path / "only" / "models"
    left, logs = models / ("ab" * 32), models / "logs"
    for folder in (left, logs):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
    await ServingSwarm(Net(nursery, latency_s=0.0)).add(tmp_path, "only", memory_gib=1.0)
    await wait_until(lambda: not left.exists())
    assert (logs / "part").exists()
    nursery.cancel_scope.cancel()


async def test_what_cannot_be_served_is_refused_with_a_reason(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    models = await swarm.add(tmp_path, "only", memory_gib=1.0)
    for path, reason in ((str(tmp_path / "no"), "does not exist"), ("here", "not an absolute")):
        with pytest.raises(UsageError, match=reason):
            _ = [step async for step in models.serve(ServeRequest(path, "tiny"))]
    with pytest.raises(UsageError, match="cannot be a model's name"):
        _ = [step async for step in models.serve(ServeRequest(str(tmp_path), "a/b"))]
    with pytest.raises(NotFound, match="0 are served: none"):
        await models.answer("", Prompt(text=TEXT), Options())
    nursery.cancel_scope.cancel()


async def test_a_node_refuses_more_than_it_offered(nursery: trio.Nursery, tmp_path: Path) -> None:
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    save_model(tmp_path / "hf")
    save_tokenizer(tmp_path / "hf")
    rich = await swarm.add(tmp_path, "rich", memory_gib=1.0)
    poor = await swarm.add(tmp_path, "poor", memory_gib=0.00001)
    claimed = ServingMember(PeerId("poor"), {"serve": True, "memory_gib": 1.0})
    swarm.members[PeerId("poor")] = claimed  # any member can write a placement that we never made
    refused: list[Stage] = []
    with trio.move_on_after(PATIENCE_S):
        async with aclosing(rich.serve(ServeRequest(str(tmp_path / "hf"), "tiny"))) as steps:
            async for step in steps:
                stages = step.model.stages if step.model else []
                refused = [stage for stage in stages if stage.state == "refused"]
                if refused:
                    break
    assert [(stage.peer, "are offered here" in stage.note) for stage in refused] == [("poor", True)]
    assert worker_pids("poor") == []
    assert not poor.view("tiny").ready
    nursery.cancel_scope.cancel()
