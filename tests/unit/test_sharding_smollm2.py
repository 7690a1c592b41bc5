"""The pretrained model that a package ships: sharded, it says what it says unsharded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from node.demo.serving import smollm2
from protocols.sharding import split as splitting
from protocols.sharding.reference import continue_greedily
from protocols.sharding.stage import load_stage

GGUF = smollm2()


@pytest.mark.slow
def test_64_greedy_tokens_of_smollm2_are_those_of_the_unsharded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    whole: list[Any] = []
    load = splitting._load_gguf

    def load_and_keep(*options: Any) -> Any:
        whole.append(load(*options))  # once: it takes 13 s
        return whole[0]

    monkeypatch.setattr(splitting, "_load_gguf", load_and_keep)
    found = splitting.split(GGUF, tmp_path)
    assert (found.family, found.n_layers, found.hidden_size) == ("llama", 30, 576)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = list(tokenizer("The capital of France is")["input_ids"])
    expected = continue_greedily(whole[0], ids, 64)

    stages = [load_stage(tmp_path, *span) for span in ((0, 11), (11, 20), (20, 30))]
    caches = [stage.new_cache() for stage in stages]
    tokens, inputs = list[int](), torch.tensor([ids])
    while len(tokens) < len(expected):
        value = inputs
        for stage, cache in zip(stages, caches, strict=True):
            result = stage.forward(value, cache, logits=int(stage is stages[-1]))
            value = result.hidden
        assert result.logits is not None
        inputs = result.logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(int(inputs))
    assert tokens == expected
    assert len(tokens) > 10
    assert "Paris" in tokenizer.decode(tokens)
