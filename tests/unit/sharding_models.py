"""Tiny random models of several families, for the tests of sharding."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

VOCABULARY = 97
LAYERS = 6
PROMPT = [5, 17, 3, 88, 41, 9, 60, 2, 33, 71, 12, 50]

_COMMON: dict[str, Any] = {
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
_GPT2: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_EXPERTS: dict[str, Any] = {
    **_COMMON,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_WINDOW = 6  # shorter than the prompt
# Those of facts/inference.md, section 3; each is there for something of its own.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,  # what the demo trains
    "gpt2": _GPT2,  # learned positions, tied embeddings
    "qwen2": _COMMON,  # biases of queries and keys
    "qwen3": {**_COMMON, "head_dim": 8},  # norms inside attention
    "mistral": {**_COMMON, "sliding_window": _WINDOW},
    "gpt_neox": _COMMON,  # parallel residuals, biases
    "phi": _COMMON,  # rotary embeddings of a part of each head
    "phi3": _COMMON,  # one matrix for queries, keys and values
    "bloom": {**_GPT2, "hidden_size": 32},  # ALiBi, a norm before the layers
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32},  # positions from a mask
    "falcon": _COMMON,  # one key for all queries
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},  # experts
    "qwen3_moe": _EXPERTS,
    "gpt_oss": {
        **_COMMON,  # attention sinks, windows in every second layer
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": _WINDOW,
    },
    "olmo2": _COMMON,  # norms behind attention
    "starcoder2": {**_COMMON, "sliding_window": None},  # layer norms with biases
    "stablelm": _COMMON,
    "cohere": _COMMON,  # scaled logits
    "granite": _COMMON,  # scaled embeddings and residuals
    "smollm3": _COMMON,  # layers without positions
    "deepseek_v3": {
        **_COMMON,  # compressed keys and values, shared experts
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 2,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "qwen3_next": {
        **_EXPERTS,  # linear attention in three of four layers
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "mamba": {**_COMMON, "state_size": 8},  # no attention at all
    "codegen": {**_GPT2, "rotary_dim": 4, "n_ctx": 128},  # attention of its own making
    "gptj": {**_GPT2, "rotary_dim": 4},
    "gemma2": {**_COMMON, "head_dim": 8, "sliding_window": _WINDOW},  # capped logits
    "gemma3_text": {**_COMMON, "head_dim": 8, "sliding_window": _WINDOW},  # two rotary embeddings
}
RECURRENT = ("qwen3_next", "mamba")  # states that do not go back


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
    past = "cache_params" if "cache_params" in named else "past_key_values"
    cache, found = DynamicCache(config=model.config), []
    inputs = torch.tensor([PROMPT])
    with torch.inference_mode():
        for _ in range(steps):
            output = model(input_ids=inputs, use_cache=True, **{past: cache}, **options)
            found.append(output.logits[:, -1])
            inputs = found[-1].argmax(-1, keepdim=True)
    return found


def cuts(stages: int, layers: int = LAYERS) -> list[tuple[int, int]]:
    """Return so many even spans."""
    edges = [index * layers // stages for index in range(stages + 1)]
    return list(itertools.pairwise(edges))
