"""A chain of stages computes what the whole model does, bit for bit."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from protocols.sharding.front import load_front
from protocols.sharding.manifest import BLOCK, EMBED, HEAD, SHARED, part_name
from protocols.sharding.reference import continue_greedily, load
from protocols.sharding.split import Unsuitable, split
from protocols.sharding.splitting import Split
from protocols.sharding.stage import Stage, load_stage
from tests.unit.sharding_models import (
    FAMILIES,
    LAYERS,
    PROMPT,
    cuts,
    make_model,
    prefill_and_decode,
    save_model,
)
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.errors import BadMessage

SHAKESPEARE = Path(__file__).parents[2] / "configs" / "runs" / "shakespeare.py"


def run_chain(
    stages: list[Stage], *, steps: int = 6, shift: int = 0, prompt: list[int] = PROMPT
) -> list[Tensor]:
    """Prefill and decode greedily through a chain; `shift` makes every position wrong."""
    caches = [stage.new_cache() for stage in stages]
    inputs, position, found = torch.tensor([prompt]), 0, []
    for _ in range(steps):
        value = inputs
        for stage, cache in zip(stages, caches, strict=True):
            value = stage.forward(value, cache, position + shift)
        found.append(value)
        position += inputs.shape[1]
        inputs = value.argmax(-1, keepdim=True)
    return found


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_bit_exact(family: str) -> None:
    model = make_model(family)
    expected = prefill_and_decode(model)
    for count in range(1, LAYERS + 1):
        stages = [Stage(copy.deepcopy(model), *span) for span in cuts(count)]
        assert equal(run_chain(stages), expected), f"{count} stages"


def test_the_comparison_sees_a_small_change() -> None:
    model = make_model("llama")
    expected = prefill_and_decode(model)
    stages = [Stage(copy.deepcopy(model), *span) for span in cuts(2)]
    with torch.no_grad():
        next(stages[1].model.model.layers[2].parameters()).mul_(1.001)
    assert not equal(run_chain(stages), expected)


def test_the_comparison_sees_a_wrong_position() -> None:
    model = make_model("llama")
    stages = [Stage(model, 0, LAYERS)]
    assert not equal(run_chain(stages, shift=1, steps=2), run_chain(stages, steps=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_loaded_from_parts_are_bit_exact(family: str, tmp_path: Path) -> None:
    expected = prefill_and_decode(save_model(tmp_path / "model", family))
    split(tmp_path / "model", tmp_path / "parts")
    stages = [load_stage(tmp_path / "parts", *span) for span in cuts(3)]
    assert equal(run_chain(stages), expected)


def test_a_stage_reads_and_holds_its_own_parts_only(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "parts")
    for role in (EMBED, HEAD, SHARED):
        (tmp_path / "parts" / part_name(role)).unlink()
    for block in (0, 3):
        (tmp_path / "parts" / part_name(BLOCK, block)).unlink()
    stage = load_stage(tmp_path / "parts", 1, 3)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in stage.model.parameters()}
    own = sum(p.numel() * 4 for i in (1, 2) for p in stage.model.model.layers[i].parameters())
    outside = len(list(stage.model.parameters())) - 2 * 9
    assert sum(storage.nbytes() for storage in held.values()) == own + 4 * outside
    with pytest.raises(FileNotFoundError):
        load_stage(tmp_path / "parts", 0, 1)


def test_a_tied_embedding_is_stored_once_and_given_to_both_ends(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "gpt2")
    split(tmp_path / "model", tmp_path / "parts")
    names: dict[str, list[str]] = {}
    for role in (EMBED, HEAD, SHARED):
        with safe_open(tmp_path / "parts" / part_name(role), framework="pt") as part:
            names[role] = list(part.keys())
    assert names == {
        EMBED: ["transformer.wpe.weight"],
        HEAD: ["transformer.ln_f.bias", "transformer.ln_f.weight"],
        SHARED: ["transformer.wte.weight"],
    }


def test_64_greedy_tokens_of_the_shipped_run_are_those_of_the_unsharded_model(
    tmp_path: Path,
) -> None:
    """As configs/runs/shakespeare.py makes and saves its model, but smaller: tied embeddings."""
    spec = importlib.util.spec_from_file_location("shakespeare", SHAKESPEARE)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tokenizer = script.make_tokenizer(["To be, or not to be: that is the question. " * 9], 300)
    size = {"vocabulary": 300, "hidden": 32, "intermediate": 64, "layers": LAYERS, "heads": 4}
    fresh = script.make_model({"run": {"seed": 1}, "model": size})
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))  # else it says one token only
    script.save(fresh, tokenizer, tmp_path / "model")
    model, saved_tokenizer = load(tmp_path / "model")
    ids = list(saved_tokenizer("To be")["input_ids"])
    expected = continue_greedily(model, ids, 64)
    assert len(expected) == 64
    assert len(set(expected)) > 8, expected
    found = split(tmp_path / "model", tmp_path / "parts")
    assert {cut.name for cut in found.cuts} >= {"tokenizer.json", part_name(SHARED)}
    stages = [load_stage(tmp_path / "parts", *span) for span in cuts(4)]
    logits = run_chain(stages, steps=64, prompt=ids)
    assert [int(step.argmax(-1)) for step in logits] == expected


def test_half_precision_weights_are_kept_and_computed_in_float32(tmp_path: Path) -> None:
    model = make_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    whole_model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = prefill_and_decode(whole_model)
    split(tmp_path / "model", tmp_path / "parts")
    block = tmp_path / "parts" / part_name(BLOCK, 0)
    whole = sum(p.numel() for p in model.model.layers[0].parameters())
    assert block.stat().st_size < 2 * whole + 4096
    stages = [load_stage(tmp_path / "parts", *span) for span in cuts(2)]
    assert equal(run_chain(stages), expected)


def test_a_split_says_what_the_model_is(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", eos_token_id=[7, 8])
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "tokenizer.py").write_text("raise SystemExit")
    (tmp_path / "model" / "README.md").write_text("hello")
    found = split(tmp_path / "model", tmp_path / "parts")
    assert found == Split(
        family="llama",
        n_layers=LAYERS,
        hidden_size=32,
        vocab_size=97,
        context=128,
        parameters=sum(p.numel() for p in model.parameters()),
        eos=[7, 8],
        cuts=found.cuts,
    )
    assert [cut.name for cut in found.cuts] == [
        *(part_name(BLOCK, index) for index in range(LAYERS)),
        *(part_name(role) for role in (EMBED, HEAD, SHARED)),
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    ]


def test_a_model_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(Unsuitable, match="safetensors"):
        split(tmp_path / "model", tmp_path / "parts")


PROGRAMS = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


def name_programs(path: Path, **more: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": PROGRAMS, **more}))


def test_a_received_folder_that_names_programs_is_not_loaded(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "parts")
    load_front(tmp_path / "parts")
    (tmp_path / "parts" / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    name_programs(tmp_path / "parts" / "tokenizer_config.json")
    with pytest.raises(BadMessage, match=r"tokenizer_config\.json names programs"):
        load_front(tmp_path / "parts")
    name_programs(tmp_path / "parts" / "config.json", model_type="evil")
    with pytest.raises(BadMessage, match=r"config\.json names programs"):
        load_stage(tmp_path / "parts", 0, LAYERS)
    assert not (tmp_path / "pwned").exists()


def test_a_model_that_does_without_its_programs_is_served_without_them(tmp_path: Path) -> None:
    expected = prefill_and_decode(save_model(tmp_path / "model"))
    name_programs(tmp_path / "model" / "config.json")
    split(tmp_path / "model", tmp_path / "parts")
    stages = [load_stage(tmp_path / "parts", *span) for span in cuts(2)]
    assert equal(run_chain(stages), expected)
    name_programs(tmp_path / "model" / "config.json", model_type="evil")
    with pytest.raises(Unsuitable, match="not a causal language model"):
        split(tmp_path / "model", tmp_path / "again")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsuitable, match=r"config\.json"):
        split(tmp_path, tmp_path / "parts")
