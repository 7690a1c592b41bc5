"""Hugging Face's Trainer as a member of a run, beside a plain loop."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trio
from transformers import Trainer, TrainingArguments

from shoal.hf import ShoalCallback
from shoal.trainer import flatten
from tests.sim.run_nodes import RunNodes
from tests.sim.test_modelsync_training import in_threads, train
from tests.tiny_learner import Learner

OPTIONS: dict[str, Any] = {
    "run": "tiny", "rounds": 3, "every": 4, "wire": "float32", "min_members": 2,
}  # fmt: skip


class WithLoss(torch.nn.Module):
    """A model as Hugging Face's Trainer takes it: it returns its own loss."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss on a batch."""
        return {"loss": torch.nn.functional.mse_loss(self.inner(x), labels)}


def rows() -> list[dict[str, torch.Tensor]]:
    random = np.random.default_rng(0)
    points = torch.from_numpy(random.standard_normal((64, 8), dtype=np.float32))
    return [{"x": x, "labels": x.sum(dim=0, keepdim=True)} for x in points]


def train_hf(folder: Path, learner: Learner, client: object) -> tuple[Any, str]:
    callback = ShoalCallback(client=client, **OPTIONS)
    model = WithLoss(learner.model)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1000,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=rows(), callbacks=[callback])
    trainer.train()
    assert trainer.state.global_step == 12
    assert callback.trainer is not None
    return flatten(learner.model), callback.trainer.root


async def test_a_hugging_face_trainer_and_a_plain_loop_end_alike(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(2)]
    ends = await in_threads(
        [
            partial(train_hf, tmp_path / "hf", Learner(), clients[0]),
            partial(train, Learner(), clients[1], 2),
        ]
    )
    assert ends[0][1] == ends[1][1]
    assert ends[0][0].tobytes() == ends[1][0].tobytes()
    losses = [metric.loss for metric in await nodes.runs[0].metrics("tiny")]
    assert losses[-1] is not None
    nursery.cancel_scope.cancel()
