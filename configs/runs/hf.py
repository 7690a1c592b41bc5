"""The model and data of shakespeare.py in Hugging Face's Trainer: what a callback has to do.

    shoal train configs/runs/hf.py --name hf --rounds 10
    python configs/runs/hf.py                                # by hand, from this terminal

Each member trains on its own part of the windows, dealt anew when members come or go.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# torch and transformers are not completely annotated.

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import torch
from shakespeare import Corpus, make_model, save
from transformers import Trainer, TrainingArguments

import shoal
from shoal.deal import Deal, DealSampler
from shoal.hf import ShoalCallback

STEPS_MAX = 1_000_000  # the run ends before: the callback says when


class Windows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """This member's windows of tokens, without an end; `join` comes before the first."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self._windows = torch.from_numpy(corpus.training)
        self._deal = Deal(len(self._windows), seed=seed)
        self._trainer: shoal.Trainer | None = None

    def join(self, trainer: shoal.Trainer) -> None:
        """Take note of whose data this is."""
        self._trainer = trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield windows, each its own labels."""
        assert self._trainer is not None, "the callback joins before the first batch"
        for index in DealSampler(self._deal, self._trainer):
            yield {"input_ids": self._windows[index], "labels": self._windows[index]}


def main() -> None:
    """Train with the swarm, through the daemon of this machine."""
    settings = tomllib.loads(Path(__file__).with_name("shakespeare.toml").read_text())
    options = shoal.run_options(run="hf", rounds=settings["run"]["rounds"], every=25)
    folder = Path(os.environ.get("SHOAL_RUN_DIR", "hf-files"))
    corpus = Corpus(settings, folder)
    model, windows = make_model(settings), Windows(corpus, settings["run"]["seed"])
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        max_steps=STEPS_MAX,
        per_device_train_batch_size=settings["training"]["batch"],
        learning_rate=settings["training"]["lr"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings["training"]["warmup"],
        max_grad_norm=settings["training"]["clip"],
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    callback = ShoalCallback(on_join=windows.join, **options)
    Trainer(model, arguments, train_dataset=windows, callbacks=[callback]).train()
    save(model, corpus.tokenizer, folder / "model")


if __name__ == "__main__":
    main()
