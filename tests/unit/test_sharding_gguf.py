"""A .gguf file is dequantised and cut; one that is not a whole model is refused in one line."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from transformers import AutoModelForCausalLM

from protocols.sharding.front import load_front
from protocols.sharding.split import main
from protocols.sharding.splitting import RESULT, Split, read
from protocols.sharding.stage import load_stage
from protocols.sharding.worker_wire import Detokenise, Piece, Text, TokenIds

LAYERS, HIDDEN, INNER, KEYS = 2, 32, 64, 16
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
PROMPT = [5, 17, 3, 88, 41, 9]
SHAPES = {
    "attn_norm": (HIDDEN,),
    "ffn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KEYS, HIDDEN),
    "attn_v": (KEYS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def write_gguf(path: Path, *, family: str = "llama", without: str = "") -> None:
    """Write a tiny Llama, its matrices in 4 bits."""
    shapes = {"token_embd": (len(WORDS), HIDDEN), "output_norm": (HIDDEN,)}
    shapes |= {"output": (len(WORDS), HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in SHAPES.items()}
    made: Any = gguf.GGUFWriter(path, family)
    made.add_block_count(LAYERS)
    made.add_context_length(128)
    made.add_embedding_length(HIDDEN)
    made.add_feed_forward_length(INNER)
    made.add_head_count(4)
    made.add_head_count_kv(2)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_vocab_size(len(WORDS))
    made.add_tokenizer_model("llama")
    made.add_token_list(WORDS)
    made.add_token_scores([0.0] * len(WORDS))
    made.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1])
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)
    made.add_unk_token_id(0)
    draw, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        values = draw.standard_normal(shape).astype(np.float32)
        if name == without:
            continue
        if len(shape) == 1:
            made.add_tensor(f"{name}.weight", values)
        else:
            made.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def result_of(source: Path, folder: Path) -> tuple[int, Split]:
    status, found = main(str(source), str(folder)), read(folder / RESULT, Split)
    assert found is not None
    return status, found


def test_a_quantised_file_is_the_model_that_transformers_makes_of_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    status, found = result_of(tmp_path / "tiny.gguf", tmp_path / "parts")
    assert (status, found.error) == (0, "")
    assert (found.family, found.dtype, found.n_layers, found.eos) == ("llama", "float32", 2, [2])
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([PROMPT])).logits
    value = torch.tensor([PROMPT])
    for start in range(LAYERS):
        stage = load_stage(tmp_path / "parts", start, start + 1)
        result = stage.forward(value, stage.new_cache(), logits=start * len(PROMPT))
        value = result.hidden
    assert result.logits is not None
    assert torch.equal(result.logits, expected)
    front = load_front(tmp_path / "parts")
    ids = front.answer(Text("a é"))
    assert isinstance(ids, TokenIds)
    assert front.answer(Detokenise([], ids.ids, final=True)) == Piece("a é")


def test_what_is_no_whole_model_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", family="weird")
    write_gguf(tmp_path / "part.gguf", without="blk.1.ffn_up")
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + 100 * b"?")
    for name, why in (
        ("other", "other.gguf cannot be read: GGUF model with architecture weird"),
        ("part", "lacks model.layers.1.mlp.up_proj.weight"),
        ("none", "none.gguf cannot be read"),
    ):
        status, found = result_of(tmp_path / f"{name}.gguf", tmp_path / name)
        assert (status, why in found.error) == (2, True), found.error
