"""Tiny random models of several families, for the tests of sharding."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

VOCABULARY = 97
LAYERS = 4
PROMPT = [5, 17, 3, 88, 41, 9, 60, 2, 33, 71, 12, 50]

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GPT2 = {
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": None,
}
# Each is here for something of its own.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,  # what the demo trains
    "gpt2": _GPT2,  # learned positions, tied embeddings, layers with tuples
    "qwen3": {**_COMMON, "head_dim": 8},  # norms inside attention
    "mistral": {**_COMMON, "sliding_window": 6},  # a window shorter than the prompt
    "gpt_neox": _COMMON,  # parallel residuals, biases
    "gemma2": {**_COMMON, "head_dim": 8, "sliding_window": 6},  # windows in every second layer
    "bloom": {**_GPT2, "hidden_size": 32},  # ALiBi, a norm before the layers
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},  # experts
}


def make_model(family: str, *, seed: int = 0, **changes: object) -> Any:
    """Build a model whose weights and norms are all random: nothing is an identity."""
    torch.set_num_threads(1)  # as in the worker; two are slower where tests share the cores
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def save_model(folder: Path, family: str = "llama", **changes: object) -> Any:
    """Build a model and save it as a Hugging Face folder."""
    model = make_model(family, **changes)
    model.save_pretrained(folder)
    return model


def prefill_and_decode(model: Any, *, steps: int = 6) -> list[Tensor]:
    """Return the logits of the unsharded model: after the prompt, then of each greedy token."""
    named = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in named else {}
    cache, found = DynamicCache(config=model.config), []
    inputs = torch.tensor([PROMPT])
    with torch.inference_mode():
        for _ in range(steps):
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True, **options)
            found.append(output.logits[:, -1])
            inputs = found[-1].argmax(-1, keepdim=True)
    return found


def cuts(stages: int, layers: int = LAYERS) -> list[tuple[int, int]]:
    """Return so many even spans."""
    edges = [index * layers // stages for index in range(stages + 1)]
    return list(itertools.pairwise(edges))
