# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers is annotated in part)
"""The whole model in one process: what a sharded answer is compared with.

`python -m protocols.sharding.reference MODEL PROMPT TOKENS` prints {"tokens", "text"} of the greedy
continuation in float32, by transformers' own `generate`. The demo and the tests use it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(source: Path) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a Hugging Face folder or a .gguf file, in float32."""
    named: dict[str, Any] = {"trust_remote_code": False}
    folder = source
    if source.suffix == ".gguf":
        named["gguf_file"] = source.name
        folder = source.parent
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **named)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **named)


@torch.no_grad()
def continue_greedily(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Return up to `tokens` token ids that follow `prompt`, greedily."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
    )
    return [int(token) for token in output[0, len(prompt) :]]


def main() -> None:
    """Print the continuation as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("tokens", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(options.model)
    ids = list(tokenizer(options.prompt)["input_ids"])
    new = continue_greedily(model, ids, options.tokens)
    text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    print(json.dumps({"tokens": new, "text": text}))


if __name__ == "__main__":
    main()
