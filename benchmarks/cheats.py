"""Stages that cheat: what audits must catch. They save work or lie; no product code knows them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from protocols.sharding.stage import Stage, layer_list

GROUP = 32  # weights that share a scale in int4, as in llama.cpp's formats


def lower_precision(stage: Stage) -> None:
    """Compute in bfloat16 whatever was agreed."""
    stage.model.to(torch.bfloat16)
    stage.dtype = torch.bfloat16


def int8_weights(stage: Stage) -> None:
    """Round the weights to int8, one scale per output."""
    _quantise(stage, lambda weight: _rounded(weight, 127))


def int4_weights(stage: Stage) -> None:
    """Round the weights to int4, one scale per 32 of them (or per output, if they are fewer)."""

    def grouped(weight: Tensor) -> Tensor:
        width = GROUP if weight.shape[1] % GROUP == 0 else weight.shape[1]
        return _rounded(weight.reshape(-1, width), 7).reshape(weight.shape)

    _quantise(stage, grouped)


def skip_layer(stage: Stage) -> None:
    """Leave out one layer in the middle of the span, not the last."""
    layer: Any = layer_list(stage.model)[max(stage.start, (stage.start + stage.end) // 2 - 1)]
    before = layer.forward

    def passed(*args: Any, **options: Any) -> Any:
        hidden = args[0] if args else options["hidden_states"]
        given = before(*args, **options)  # (so that the cache of any family has its rows)
        return (hidden, *given[1:]) if isinstance(given, tuple) else hidden

    layer.forward = passed


def change_token(stage: Stage) -> None:
    """Take another token than the third of the prompt; of a later stage, other rows."""
    honest: Any = stage
    run = honest.run

    def changed(inputs: Tensor, past: Any, positions: Tensor, **options: Any) -> Any:
        inputs = inputs.clone()
        third = positions == 2
        if inputs.dtype == torch.long:
            inputs[third] = (inputs[third] + 1) % stage.vocab_size
        else:
            inputs[third] = inputs[third].roll(1, -1)
        return run(inputs, past, positions, **options)

    honest.run = changed


CHEATS: dict[str, Callable[[Stage], None]] = {
    "bf16": lower_precision,
    "int8": int8_weights,
    "int4": int4_weights,
    "skip": skip_layer,
    "token": change_token,
}


def _quantise(stage: Stage, rounded: Callable[[Tensor], Tensor]) -> None:
    for index in range(stage.start, stage.end):
        for module in layer_list(stage.model)[index].modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 2:
                weight.data = rounded(weight.data)


def _rounded(weight: Tensor, levels: int) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / levels
    return (weight / scale).round() * scale
