"""A model is cut tensor by tensor: every part holds, bit for bit, what transformers would load."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from protocols.sharding import split as splitter
from protocols.sharding.manifest import BLOCK, EMBED, HEAD, SHARED, part_name
from protocols.sharding.source import INDEX, WEIGHTS
from protocols.sharding.split import main, split
from protocols.sharding.splitting import PROGRESS, RESULT, Progress, Split, Unsuitable, read
from protocols.sharding.weights import open_weights
from tests.unit.sharding_models import FAMILIES, LAYERS, save_model

DEEPSEEK = {
    **FAMILIES["llama"],
    "n_routed_experts": 4, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip


def tensors_of(parts: Path) -> dict[str, Tensor]:
    """Read all parts, as a stage that has every block would."""
    found: dict[str, Tensor] = {}
    for path in sorted(parts.glob("*.safetensors")):
        with safe_open(path, framework="pt") as part:
            own = {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
            aliases: dict[str, str] = json.loads(part.metadata()["aliases"])
        found |= own | {alias: own[name] for alias, name in aliases.items()}
    return found


def names_in(parts: Path, role: str, block: int = -1) -> list[str]:
    with safe_open(parts / part_name(role, block), framework="pt") as part:
        return sorted(part.keys())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def hashes(parts: Path) -> dict[str, str]:
    files = [path for path in parts.iterdir() if path.name not in (PROGRESS, RESULT)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def loaded(source: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    return dict(model.state_dict())


@pytest.fixture
def never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded as a whole."""

    def load(*_: object) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(splitter, "_load", load)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("never_whole")
def test_parts_hold_what_transformers_loads_without_loading_it(family: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", family)
    found = split(tmp_path / "model", tmp_path / "parts")
    assert found.dtype == "float32"
    assert same(tensors_of(tmp_path / "parts"), loaded(tmp_path / "model", torch.float32))


@pytest.mark.usefixtures("never_whole")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("gpt2", {}), ("mixtral", {})])
def test_half_precision_is_that_of_transformers(
    family: str, options: dict[str, object], dtype: str, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", family, **options)
    found = split(tmp_path / "model", tmp_path / "parts", dtype)
    assert found.dtype == dtype
    expected = loaded(tmp_path / "model", getattr(torch, dtype))
    assert same(tensors_of(tmp_path / "parts"), expected)


@pytest.mark.usefixtures("never_whole")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_that_transformers_fuses_and_norms_that_stay_in_float32(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "deepseek_v3", DEEPSEEK)
    save_model(tmp_path / "model", "deepseek_v3")
    split(tmp_path / "model", tmp_path / "parts", dtype)
    found = tensors_of(tmp_path / "parts")
    assert same(found, loaded(tmp_path / "model", getattr(torch, dtype)))
    biases = [t.dtype for name, t in found.items() if name.endswith("e_score_correction_bias")]
    assert set(biases) == {torch.float32}
    assert names_in(tmp_path / "parts", EMBED) == ["model.embed_tokens.weight"]


@pytest.mark.usefixtures("never_whole")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_checkpoint_of_several_files_gives_the_same_parts(family: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "one", family)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    split(tmp_path / "one", tmp_path / "a")
    split(tmp_path / "many", tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_loading_the_model_first_gives_the_same_bytes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", family)
    split(tmp_path / "model", tmp_path / "a", "bfloat16")
    monkeypatch.setattr(splitter, "open_weights", lambda *_: None)
    split(tmp_path / "model", tmp_path / "b", "bfloat16")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


@pytest.mark.usefixtures("never_whole")
def test_a_base_model_has_other_names_for_the_same_tensors(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "gpt2")
    path = tmp_path / "model" / WEIGHTS
    bare = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    split(tmp_path / "model", tmp_path / "parts")
    assert same(tensors_of(tmp_path / "parts"), loaded(tmp_path / "model", torch.float32))


@pytest.mark.parametrize(
    ("family", "embed", "head", "shared"),
    [
        ("llama", ["model.embed_tokens.weight"], ["lm_head.weight", "model.norm.weight"], []),
        (
            "gpt2",
            ["transformer.wpe.weight"],
            ["transformer.ln_f.bias", "transformer.ln_f.weight"],
            ["transformer.wte.weight"],
        ),
        (
            "bloom",
            [f"transformer.word_embeddings_layernorm.{leaf}" for leaf in ("bias", "weight")],
            ["transformer.ln_f.bias", "transformer.ln_f.weight"],
            ["transformer.word_embeddings.weight"],
        ),
        ("mixtral", ["model.embed_tokens.weight"], ["lm_head.weight", "model.norm.weight"], []),
    ],
)
def test_each_tensor_is_on_its_side_of_the_layers(
    family: str, embed: list[str], head: list[str], shared: list[str], tmp_path: Path
) -> None:
    save_model(tmp_path / "model", family)
    split(tmp_path / "model", tmp_path / "parts")
    sides = [names_in(tmp_path / "parts", role) for role in (EMBED, HEAD, SHARED)]
    assert sides == [embed, head, shared]


def test_without_a_word_on_the_sides_both_ends_get_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    monkeypatch.setattr(splitter, "_sides", lambda _: {})
    split(tmp_path / "model", tmp_path / "parts")
    assert same(tensors_of(tmp_path / "parts"), loaded(tmp_path / "model", torch.float32))
    assert len(names_in(tmp_path / "parts", SHARED)) == 3


def test_tied_tensors_that_differ_are_not_tied(tmp_path: Path) -> None:
    """As transformers has it: the files know better than the configuration."""
    save_model(tmp_path / "model", tie_word_embeddings=False)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    split(tmp_path / "model", tmp_path / "parts")
    found = tensors_of(tmp_path / "parts")
    assert same(found, loaded(tmp_path / "model", torch.float32))
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert names_in(tmp_path / "parts", SHARED) == ["lm_head.weight", "model.embed_tokens.weight"]


def test_auto_is_the_dtype_of_the_configuration_or_else_of_the_tensors(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    assert split(tmp_path / "model", tmp_path / "a").dtype == "bfloat16"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert split(tmp_path / "model", tmp_path / "b").dtype == "bfloat16"
    size_bytes = (tmp_path / "a" / part_name(BLOCK, 0)).stat().st_size
    assert size_bytes < 2 * sum(p.numel() for p in model.model.layers[0].parameters()) + 4096


def test_a_model_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(Unsuitable, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        split(tmp_path / "model", tmp_path / "parts")


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    save_file(load_file(path) | {"model.norm.weight": torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(Unsuitable, match=r"model\.norm\.weight is \[3\]"):
        split(tmp_path / "model", tmp_path / "parts")


def test_what_lies_elsewhere_is_not_published_by_a_link(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "model" / "vocab.txt").symlink_to("../secret")
    with pytest.raises(Unsuitable, match=r"vocab\.txt is a link out of"):
        split(tmp_path / "model", tmp_path / "parts")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', "is not in"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "is not in"),
        ('{"weight_map": 3}', "is no index"),
        ("[", "is no index"),
    ],
)
def test_an_index_names_files_of_its_folder(index: str, match: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model" / INDEX).write_text(index)
    with pytest.raises(Unsuitable, match=match):
        split(tmp_path / "model", tmp_path / "parts")


def test_a_quantised_model_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Unsuitable, match=r"quantised \(gptq\)"):
        split(tmp_path / "model", tmp_path / "a")
    path.write_text(json.dumps({"model_type": "clip_text_model"}))
    with pytest.raises(Unsuitable, match="not a causal language model"):
        split(tmp_path / "model", tmp_path / "b")


def test_the_program_says_how_far_it_is_and_what_it_did(tmp_path: Path) -> None:
    save_model(tmp_path / "model", eos_token_id=[7, 8])
    assert main(str(tmp_path / "model"), str(tmp_path / "parts")) == 0
    found = read(tmp_path / "parts" / RESULT, Split)
    assert found is not None
    assert (found.n_layers, found.eos, found.error) == (LAYERS, [7, 8], "")
    progress = read(tmp_path / "parts" / PROGRESS, Progress)
    assert progress is not None
    assert 0 < progress.done_bytes <= progress.total_bytes == 4 * found.parameters


def test_the_program_says_in_one_line_why_it_did_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(str(tmp_path), str(tmp_path / "a")) == 2
    said = read(tmp_path / "a" / RESULT, Split)
    assert said is not None
    assert "holds no config.json" in said.error
    save_model(tmp_path / "model")
    monkeypatch.setattr("protocols.sharding.splitting.DISK_RESERVE_BYTES", 1 << 60)
    assert main(str(tmp_path / "model"), str(tmp_path / "b")) == 2
    said = read(tmp_path / "b" / RESULT, Split)
    assert said is not None
    assert "MiB of disk are needed, 0 MiB can be had" in said.error
    assert not list((tmp_path / "b").glob("*.safetensors"))


def test_only_what_is_read_takes_memory(tmp_path: Path) -> None:
    """The files are mapped: a tensor that was not asked for has not been copied."""
    model = save_model(tmp_path / "model")
    with ExitStack() as opened:
        weights = open_weights(tmp_path / "model", model, torch.float32, opened)
        assert weights is not None
        a = weights.read("lm_head.weight")
        assert a.data_ptr() == weights.read("lm_head.weight").data_ptr()  # of the mapping itself
