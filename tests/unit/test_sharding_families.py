"""Sharded, every family of models computes what it does unsharded, bit for bit."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from protocols.sharding.batch import can_batch, forward_together
from protocols.sharding.caches import StageCache
from protocols.sharding.front import load_front
from protocols.sharding.manifest import BLOCK, EMBED, HEAD, SHARED, part_name
from protocols.sharding.reference import continue_greedily, load
from protocols.sharding.split import split
from protocols.sharding.stage import Stage, load_stage
from tests.unit.sharding_models import (
    FAMILIES,
    LAYERS,
    PROMPT,
    RECURRENT,
    cuts,
    make_model,
    prefill_and_decode,
    save_model,
)
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.errors import BadMessage, NotFound

SHAKESPEARE = Path(__file__).parents[2] / "configs" / "runs" / "shakespeare.py"

# Their attention, or what they cache, is of their own making: steps are computed one by one.
ALONE = (*RECURRENT, "bloom", "falcon", "codegen", "gptj", "deepseek_v3")


def test_all_families_of_the_facts_are_here() -> None:
    assert len(FAMILIES) == 27


def through(chain: list[tuple[Stage, StageCache]], ids: list[int]) -> Tensor:
    """Run one step through a chain; return the logits of the last row."""
    value = torch.tensor([ids])
    for stage, cache in chain:
        result = stage.forward(value, cache, logits=int(cache.end == stage.n_layers))
        value = result.hidden
    assert result.logits is not None
    return result.logits[:, -1]


def is_equal(chain: list[tuple[Stage, StageCache]], expected: list[Tensor]) -> bool:
    """Whether a chain says what the whole model said, when it is fed its greedy tokens."""
    ids = PROMPT
    for logits in expected:
        if not torch.equal(through(chain, ids), logits):
            return False
        ids = [int(logits.argmax())]
    return True


def of_one(stage: Stage, spans: list[tuple[int, int]]) -> list[tuple[Stage, StageCache]]:
    """Return a chain whose sessions use a part each of one loaded span."""
    return [(stage, stage.new_cache(*span)) for span in spans]


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_bit_exact(family: str) -> None:
    model = make_model(family)
    expected = prefill_and_decode(model)
    stage = Stage(model, 0, LAYERS)
    for count in range(1, LAYERS + 1):
        assert is_equal(of_one(stage, cuts(count)), expected), f"{count} stages"
    assert is_equal(of_one(stage, [(0, 1), (1, 5), (5, 6)]), expected)
    assert can_batch(stage) == (family not in ALONE)


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_loaded_from_parts_are_bit_exact_also_from_their_middle(
    family: str, tmp_path: Path
) -> None:
    expected = prefill_and_decode(save_model(tmp_path / "model", family))
    split(tmp_path / "model", tmp_path / "parts")
    first, middle, last = (
        load_stage(tmp_path / "parts", *span) for span in ((0, 3), (1, 5), (4, 6))
    )
    uses = ((first, 0, 2), (middle, 2, 4), (last, 4, 6))
    assert is_equal([(stage, stage.new_cache(a, b)) for stage, a, b in uses], expected)
    uses = ((first, 0, 3), (middle, 3, 5), (last, 5, 6))
    assert is_equal([(stage, stage.new_cache(a, b)) for stage, a, b in uses], expected)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in RECURRENT])
def test_a_cache_goes_back_and_forks_without_a_trace(family: str) -> None:
    model = make_model(family)
    expected = prefill_and_decode(model)
    tokens = [int(logits.argmax()) for logits in expected]
    chain = of_one(Stage(model, 0, LAYERS), cuts(2))
    through(chain, PROMPT)
    through(chain, [tokens[0], 7, 8, 9, 10, 11, 12])  # a draft of which the first row is right
    place = len(PROMPT) + 1
    for _, cache in chain:
        cache.truncate(place)
    forked = [(stage, cache.fork(place)) for stage, cache in chain]
    shorter = [(stage, cache.fork(len(PROMPT))) for stage, cache in chain]
    # What follows is computed in other steps than before, but from there on in the same ones.
    found = [through(chain, [token]) for token in tokens[1:]]
    assert all(map(torch.equal, found, [through(forked, [token]) for token in tokens[1:]]))
    assert all(map(torch.equal, expected[1:], [through(shorter, [token]) for token in tokens[:-1]]))
    torch.testing.assert_close(found[:-1], expected[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrent_state_says_that_it_does_not_go_back(family: str) -> None:
    stage = Stage(make_model(family), 0, LAYERS)
    chain = of_one(stage, cuts(1))
    first = through(chain, PROMPT)
    cache = chain[0][1]
    assert not cache.truncates
    for move in (cache.truncate, cache.fork):
        with pytest.raises(NotFound, match="recurrent"):
            move(3)
    copied = [(stage, cache.fork(len(PROMPT)))]
    assert torch.equal(through(copied, [5]), through(chain, [5]))
    cache.truncate(0)
    assert torch.equal(through(chain, PROMPT), first)


def test_the_comparison_sees_a_small_change_and_a_wrong_position() -> None:
    model = make_model("llama")
    expected = prefill_and_decode(model)
    stage = Stage(model, 0, LAYERS)
    ids, past = torch.tensor([PROMPT]), stage.new_cache().layers
    places = torch.arange(len(PROMPT)).unsqueeze(0)
    for shift, same in ((0, True), (1, False)):
        found = stage.run(ids, past, places + shift, span=(0, LAYERS), logits=1).logits
        past = stage.new_cache().layers
        assert found is not None
        assert torch.equal(found[:, -1], expected[0]) == same
    with torch.no_grad():
        next(model.model.layers[2].parameters()).mul_(1.001)
    assert not is_equal(of_one(stage, cuts(2)), expected)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_rows_of_several_sessions_together_are_those_of_each(family: str) -> None:
    stage = Stage(make_model(family), 0, LAYERS)
    alone = [stage.new_cache(0, 4) for _ in range(4)]
    for index, cache in enumerate(alone):
        stage.forward(torch.tensor([PROMPT[: 3 * index + 1]]), cache)
    together = [cache.fork(cache.position) for cache in alone]
    for ids in ([1, 2, 3, 4], [50, 60, 70, 80]):
        expected = [
            stage.forward(torch.tensor([[token]]), cache).hidden
            for token, cache in zip(ids, alone, strict=True)
        ]
        found = forward_together(stage, torch.tensor(ids).view(4, 1), together, logits=False)
        torch.testing.assert_close(found.hidden, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert [cache.position for cache in together] == [3, 6, 9, 12]
    for cache in together:  # and back again, alone
        cache.truncate(cache.position - 1)
        stage.forward(torch.tensor([[5]]), cache)


def test_sessions_go_alone_where_the_longest_decides_on_the_frequencies_of_all() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 14}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=14)
    assert not can_batch(Stage(model, 0, LAYERS))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_draft_and_a_single_row_together_are_those_of_each(family: str) -> None:
    stage = Stage(make_model(family), 0, LAYERS)
    alone = [stage.new_cache(0, 4) for _ in range(2)]
    for cache in alone:
        stage.forward(torch.tensor([PROMPT]), cache)
    one, draft = (cache.fork(cache.position) for cache in alone)
    rows = torch.tensor([[7], [8], [9], [10]])
    expected = [
        stage.forward(rows[:1], alone[0]).hidden[0],
        stage.forward(rows[1:].T, alone[1]).hidden[0],
    ]
    found = forward_together(stage, rows, [one, draft, draft, draft], logits=False)
    torch.testing.assert_close(found.hidden[:, 0], torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert [one.position, draft.position] == [len(PROMPT) + 1, len(PROMPT) + 3]


def test_few_rows_may_be_rounded_otherwise_only_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocols.sharding.few_rows.GAIN", float("inf"))  # always faster
    stage, tuned = (Stage(make_model("qwen2"), 0, LAYERS) for _ in range(2))  # it has biases
    tuned.tune()
    for rows in (1, 3, 40):
        inputs = torch.tensor([PROMPT * 8])[:, :rows]
        expected = stage.forward(inputs, stage.new_cache(), logits=rows)
        exact = tuned.forward(inputs, tuned.new_cache(), logits=rows)
        close = tuned.forward(inputs, tuned.new_cache(), logits=rows, exact=False)
        assert expected.logits is not None
        assert exact.logits is not None
        assert torch.equal(exact.logits, expected.logits)
        torch.testing.assert_close(close.logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_that_of_the_unsharded_model(dtype: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    kind = getattr(torch, dtype)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=kind)
    expected = [logits.float() for logits in prefill_and_decode(whole)]
    split(tmp_path / "model", tmp_path / "parts", dtype)
    stages = [load_stage(tmp_path / "parts", *span, dtype=dtype) for span in cuts(3)]
    chain = [(stage, stage.new_cache()) for stage in stages]
    assert is_equal(chain, expected)
    rows = stages[0].forward(torch.tensor([PROMPT]), stages[0].new_cache()).hidden
    assert rows.dtype == kind


def test_a_stage_reads_and_holds_its_own_parts_only(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "parts")
    for role in (EMBED, HEAD, SHARED):
        (tmp_path / "parts" / part_name(role)).unlink()
    for block in (0, 3):
        (tmp_path / "parts" / part_name(BLOCK, block)).unlink()
    stage = load_stage(tmp_path / "parts", 1, 3)
    own = sum(p.nbytes for layer in model.model.layers[1:3] for p in layer.parameters())
    outside = len(list(stage.model.parameters())) - 2 * 9
    assert held_bytes(stage) == own + 4 * outside
    with pytest.raises(FileNotFoundError):
        load_stage(tmp_path / "parts", 0, 1)


def held_bytes(stage: Stage) -> int:
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
                for p in stage.model.parameters()}  # fmt: skip
    return sum(storages.values())


def test_a_tied_table_is_held_once_and_by_the_first_stage_not_copied_at_all(tmp_path: Path) -> None:
    model: Any = save_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    split(tmp_path / "model", tmp_path / "parts")
    first, last = (load_stage(tmp_path / "parts", *span) for span in ((0, 3), (3, 6)))
    assert last.model.lm_head.weight.data_ptr() == last.model.model.embed_tokens.weight.data_ptr()
    table = first.model.model.embed_tokens.weight
    assert torch.equal(table, model.lm_head.weight)
    mapped = [line.split("-")[0] for line in Path("/proc/self/maps").read_text().splitlines()
              if line.endswith(part_name(SHARED))]  # fmt: skip
    starts = [int(start, 16) for start in mapped]
    assert any(0 <= table.data_ptr() - start < table.nbytes + (1 << 16) for start in starts)


def test_a_part_keeps_float32_and_has_no_third_dtype(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "deepseek_v3")
    split(tmp_path / "model", tmp_path / "parts", "bfloat16")
    stage = load_stage(tmp_path / "parts", 2, 4, dtype="bfloat16")
    biases = [t for n, t in stage.model.state_dict().items() if n.endswith("correction_bias")]
    assert [bias.dtype for bias in biases if not bias.is_meta] == 2 * [torch.float32]
    for dtype in ("float16", "float32"):
        with pytest.raises(
            BadMessage, match=rf"is in torch\.bfloat16, the model in torch\.{dtype}"
        ):
            load_stage(tmp_path / "parts", 2, 4, dtype=dtype)


@pytest.mark.parametrize("depth", [2, 1 << 40])
def test_a_configuration_of_too_many_or_too_few_layers_is_refused(
    depth: int, tmp_path: Path
) -> None:
    save_model(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "parts")
    path = tmp_path / "parts" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": depth}))
    with pytest.raises(BadMessage, match=f"of {depth} layers, for blocks 0:3"):
        load_stage(tmp_path / "parts", 0, 3)


def test_a_part_with_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "parts")
    names = [part_name(BLOCK, index) for index in range(2)]
    spare = (tmp_path / "parts" / names[0]).read_bytes()
    (tmp_path / "parts" / names[1]).write_bytes(spare)
    with pytest.raises(ValueError, match="layer 1 lacks"):
        load_stage(tmp_path / "parts", 0, 2)


def test_a_stage_in_memory_is_independent_of_others(tmp_path: Path) -> None:
    model = make_model("llama")
    stage, other = Stage(copy.deepcopy(model), 0, 3), Stage(copy.deepcopy(model), 3, LAYERS)
    chain = [(stage, stage.new_cache()), (other, other.new_cache())]
    assert is_equal(chain, prefill_and_decode(model))


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
    size = {"vocabulary": 300, "hidden": 32, "intermediate": 64, "layers": 4, "heads": 4}
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
    split(tmp_path / "model", tmp_path / "parts")
    stages = [load_stage(tmp_path / "parts", *span) for span in cuts(4, 4)]
    chain = [(stage, stage.new_cache()) for stage in stages]
    for token in expected:  # the tokens of one are the rows of the next
        assert int(through(chain, ids).argmax()) == token
        ids = [token]
