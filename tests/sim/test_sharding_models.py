"""A model comes into service over several nodes and answers; its workers are real processes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
import trio

from node.answering import Options
from node.model_answers import Prompt
from node.models import Models
from protocols.sharding.records import NAMESPACE, ModelRecord, manifest_key
from shoal.models import Answer, ServeProgress, ServeRequest
from tests.sim.boards import SharedStore
from tests.sim.net import Net
from tests.sim.serving import ServingSwarm, peer_of
from tests.unit.sharding_models import LAYERS, save_model
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.errors import NotFound, ShoalError, UsageError

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
async def test_a_model_is_served_answers_through_a_crash_and_goes(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "hf", vocab_size=256)
    tokenizer = save_tokenizer(tmp_path / "hf")
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    first = await swarm.add(tmp_path, "first", memory_gib=1.0)
    second = await swarm.add(tmp_path, "second", memory_gib=1.0)
    asker = await swarm.add(tmp_path, "asker", memory_gib=0.0)

    steps = await serve(first, tmp_path / "hf")
    served = asker.view("tiny")
    assert steps[-1] == ServeProgress("ready", "tiny", served)
    spans = sorted((stage.start, stage.end, stage.state) for stage in served.stages)
    half = LAYERS // 2
    assert spans == [(0, half, "ready"), (half, LAYERS, "ready")]
    hosts = {peer_of("first"), peer_of("second")}
    assert {stage.peer for stage in served.stages} == hosts
    assert asker.names() == second.names() == ["tiny"]

    text, end = await text_of(asker, Options(max_tokens=100))
    assert text == expected_text(model, tokenizer, 100)
    assert end.finish_reason == "length"
    assert end.usage is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (len(TEXT), 100)
    assert end.trace is not None
    assert {hop.peer for hop in end.trace.route} == hosts

    stop = text[5:9]
    stopped, end = await text_of(first, Options(max_tokens=40, stop=[stop]))
    assert (stopped, end.finish_reason) == (text[: text.index(stop)], "stop")
    with pytest.raises(UsageError, match="context is 128 tokens; the prompt has 130"):
        await text_of(asker, Options(), prompt="x" * 130)
    with pytest.raises(NotFound, match="no model 'other'"):
        await asker.answer("other", Prompt(text=TEXT), Options())

    # a worker is killed in the middle; whoever takes its blocks then, the text is the same
    answering = await asker.answer("tiny", Prompt(text=TEXT), Options(max_tokens=100))
    [pid] = worker_pids("second")
    os.kill(pid, signal.SIGKILL)
    pieces = [piece async for piece in answering.read()]
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].trace is not None
    assert pieces[-1].trace.replaced_hops == 1

    await wait_until(lambda: asker.view("tiny").ready)
    await first.unserve("tiny")
    await wait_until(lambda: not worker_pids("first") and not worker_pids("second"))
    await wait_until(lambda: asker.names() == [])
    await wait_until(lambda: not worker_pids("asker", "front"))
    nursery.cancel_scope.cancel()


async def test_what_cannot_be_served_is_refused_with_a_reason(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    models = await swarm.add(tmp_path, "only", memory_gib=1.0)
    for path, reason in (
        (str(tmp_path / "no"), "does not exist"),
        ("here", "neither an absolute"),
        ("./here", "neither an absolute"),
    ):
        with pytest.raises(UsageError, match=reason):
            _ = [step async for step in models.serve(ServeRequest(path, "tiny"))]
    with pytest.raises(UsageError, match="cannot be a model's name"):
        _ = [step async for step in models.serve(ServeRequest(str(tmp_path), "a/b"))]
    with pytest.raises(NotFound, match="there is no model 'here'"):
        await models.answer("here", Prompt(text=TEXT), Options())
    with pytest.raises(NotFound, match="no model is served"):
        await models.answer("", Prompt(text=TEXT), Options())
    nursery.cancel_scope.cancel()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the worker would start")
async def test_a_span_that_cannot_be_loaded_says_why_and_is_tried_again(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    save_model(tmp_path / "hf", vocab_size=256)
    save_tokenizer(tmp_path / "hf")
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    models = await swarm.add(tmp_path, "only", memory_gib=1.0, device="cuda")
    nursery.start_soon(serve, models, tmp_path / "hf")
    seen: set[tuple[str, str]] = set()

    def has_failed() -> bool:
        stages = models.view("tiny").stages if "tiny" in models.names() else []
        seen.update((stage.state, stage.note) for stage in stages)
        return any(stage.state == "failed" for stage in stages)

    await wait_until(has_failed)
    assert any(state == "loading" and note for state, note in seen)  # once is no failure yet
    assert any(state == "failed" and "ended while it started" in note for state, note in seen)
    nursery.cancel_scope.cancel()


async def test_a_model_that_nobody_told_us_of_is_looked_for_elsewhere(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    models = await swarm.add(tmp_path, "asker", memory_gib=0.0)
    record = msgspec.to_builtins(ModelRecord("ab" * 32, "b" + "a2" * 29, [], 1, hosted=True))
    asked, store = list[str](), SharedStore(swarm.board, peer_of("host"))

    async def look(name: str) -> int:
        """Somebody who hosts `there` is met; its store then tells of it."""
        asked.append(name)
        if name == "there":
            nursery.start_soon(store.put, NAMESPACE, manifest_key(name), record)
        return int(name == "there")

    models.look_for = look
    with pytest.raises(NotFound, match="there is no model 'nowhere'"):
        await models.answer("nowhere", Prompt(text=TEXT), Options())
    with pytest.raises(ShoalError) as caught:  # its manifest is on no shelf
        await models.answer("there", Prompt(text=TEXT), Options())
    assert "there is no model" not in str(caught.value)
    assert models.names() == ["there"]
    with pytest.raises(ShoalError):
        await models.answer("there", Prompt(text=TEXT), Options())
    assert asked == ["nowhere", "there"]
    assert models.without_hosts() == ["there"]
    nursery.cancel_scope.cancel()
