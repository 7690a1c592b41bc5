"""Hugging Face's `Trainer` with the swarm: a callback that makes it a member of a run.

    trainer = transformers.Trainer(model, args, train_dataset=…,
        callbacks=[ShoalCallback(run="mine", rounds=10)])

It does at the end of each optimizer step what `shoal.Trainer.step` does, and ends the training when
the run has had its rounds: give `max_steps` more than they can take. All members must begin with
the same parameters and have different data (`shoal.deal`). Under `torchrun` each rank has its own.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# transformers is only partly annotated.

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shoal.trainer import Trainer


class ShoalCallback(TrainerCallback):
    """`options` are those of `shoal.Trainer`; `trainer` is it, while training goes on.

    on_join: called once with it, before the first step: for a data set that deals by member.
    """

    def __init__(self, *, on_join: Callable[[Trainer], None] | None = None, **options: Any) -> None:
        self.trainer: Trainer | None = None
        self._on_join, self._options = on_join, options
        self._loss: float | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Join the run: on return the model has its parameters."""
        assert model is not None, "transformers hands callbacks the model"
        if self.trainer is not None:  # of a training that an error ended: nobody told us
            self.trainer.close()
        # transformers hands callbacks what it calls the processing class: the tokenizer.
        options: dict[str, Any] = {"tokenizer": kwargs.get("processing_class"), **self._options}
        self.trainer = Trainer(model, optimizer, **options)
        if self._on_join is not None:
            self._on_join(self.trainer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the loss that was logged: callbacks are not told that of a step."""
        if logs and "loss" in logs:
            self._loss = float(logs["loss"])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Do what is due after an optimizer step; stop when the run is done."""
        if self.trainer is not None and self.trainer.step(self._loss):
            control.should_training_stop = True

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave the run."""
        if self.trainer is not None:
            self.trainer.close()
