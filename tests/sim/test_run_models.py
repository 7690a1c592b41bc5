"""What a run has learned becomes a model that is split and answers as the trained one does."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from transformers import AutoTokenizer, Trainer, TrainingArguments

import shoal.trainer
from protocols.sharding.manifest import TOKENIZER
from protocols.sharding.split import split
from protocols.sharding.splitting import Split
from protocols.sharding.stage import load_stage
from shoal.hf import ShoalCallback
from tests.sim.run_nodes import RunNodes
from tests.unit.sharding_models import LAYERS, PROMPT, make_model
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.errors import NotFound, UsageError


class Wrapped(torch.nn.Module):
    """A model inside of another, as people wrap them for their losses."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.inner(input_ids=ids, labels=ids).loss * self.scale
        return loss


def learn(model: Any, folder: Path, client: Any, *, wrapped: bool) -> torch.Tensor:
    """Train one round; return the logits of what came out of it."""
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    outer = Wrapped(model) if wrapped else model
    optimizer = torch.optim.SGD(outer.parameters(), lr=0.1)
    options: dict[str, Any] = {"run": "tiny", "rounds": 1, "every": 2, "wire": "float32"}
    with shoal.trainer.Trainer(
        outer, optimizer, client=client, tokenizer=tokenizer, **options
    ) as trainer:
        while not trainer.done:
            ids = torch.tensor([PROMPT])
            loss = outer(ids) if wrapped else outer(input_ids=ids, labels=ids).loss
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            trainer.step(loss.detach())
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([PROMPT])).logits
    return found


def answer(parts: Path) -> torch.Tensor:
    """Return the logits of a stage that has all blocks."""
    stage = load_stage(parts, 0, LAYERS, dtype="float32")
    with torch.inference_mode():
        found: torch.Tensor = stage.model(input_ids=torch.tensor([PROMPT])).logits
    return found


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_trained_model_is_exported_and_split(
    wrapped: bool, nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()
    model = make_model("gpt2")  # with tied embeddings: the run has them once
    with torch.no_grad():
        before = logits(model)
    work = partial(learn, model, tmp_path / "tokenizer", client, wrapped=wrapped)
    expected = await trio.to_thread.run_sync(work)
    assert not torch.equal(expected, before)
    done = await nodes.runs[0].export_model("tiny", tmp_path / "model")
    assert done.rounds == [1]
    found = split(tmp_path / "model", tmp_path / "parts")
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert "tokenizer.json" in [cut.name for cut in found.cuts if cut.role == TOKENIZER]
    assert torch.equal(answer(tmp_path / "parts"), expected)
    nursery.cancel_scope.cancel()


def fine_tune(model: Any, folder: Path, client: Any) -> None:
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token or "x"
    callback = ShoalCallback(client=client, run="tiny", rounds=1, every=2, wire="float32")
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=9, per_device_train_batch_size=1,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{"input_ids": PROMPT, "labels": PROMPT}] * 4
    Trainer(
        model, arguments, train_dataset=rows, callbacks=[callback], processing_class=tokenizer
    ).train()


async def test_the_callback_of_transformers_keeps_the_tokenizer_too(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()
    model = make_model("llama", eos_token_id=2)
    await trio.to_thread.run_sync(partial(fine_tune, model, tmp_path / "tokenizer", client))
    await nodes.runs[0].export_model("tiny", tmp_path / "model")
    found: Split = split(tmp_path / "model", tmp_path / "parts")
    assert (found.dtype, found.eos) == ("float32", [2])
    assert (tmp_path / "parts" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"
    assert not (tmp_path / "model" / "prefix.json").exists()
    nursery.cancel_scope.cancel()


async def test_a_run_of_another_kind_says_what_to_do(nursery: trio.Nursery, tmp_path: Path) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()

    def train() -> None:
        model = torch.nn.Linear(3, 1)
        options: dict[str, Any] = {"run": "plain", "rounds": 1, "every": 1}
        with shoal.trainer.Trainer(model, client=client, **options) as trainer:
            trainer.step()

    await trio.to_thread.run_sync(train)
    with pytest.raises(UsageError, match="run plain does not say what model it trains") as caught:
        await nodes.runs[0].export_model("plain", tmp_path / "model")
    assert "give shoal.Trainer the Hugging Face model" in caught.value.hint
    with pytest.raises(NotFound):
        await nodes.runs[0].export_model("other", tmp_path / "model")
    nursery.cancel_scope.cancel()
