"""What a manifest is, and what of a stranger's is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.sharding.manifest import (
    BLOCK,
    DTYPES,
    EMBED,
    FRONT_MAX_BYTES,
    HEAD,
    LAYERS_MAX,
    MANIFEST_MAX,
    SHARED,
    TOKENIZER,
    Manifest,
    Part,
    decode_manifest,
    encode_manifest,
    is_tokenizer_file,
    memory_of_span,
    model_id,
    part_name,
    parts_of_front,
    parts_of_span,
    printable,
)
from wire.errors import BadMessage

CID = "b" + "a2" * 29


def manifest(n_layers: int = 3) -> Manifest:
    parts = [Part(BLOCK, i, part_name(BLOCK, i), CID, 100) for i in range(n_layers)]
    parts += [Part(role, -1, part_name(role), CID, 10) for role in (EMBED, HEAD, SHARED)]
    parts += [Part("config", -1, "config.json", CID, 5)]
    parts += [Part(TOKENIZER, -1, "tokenizer.json", CID, 7)]
    return Manifest(2, "tiny", "llama", "float32", n_layers, 32, 97, 128, 3000, [2], parts)


def roles(parts: list[Part]) -> list[str]:
    return [f"{part.role}{part.block if part.block >= 0 else ''}" for part in parts]


def test_a_manifest_is_named_by_its_content() -> None:
    data = encode_manifest(manifest())
    assert decode_manifest(data, model_id(data)) == manifest()
    with pytest.raises(BadMessage, match="manifest is of model"):
        decode_manifest(data + b"\0", model_id(data))


def test_a_manifest_without_some_block_is_refused() -> None:
    whole = manifest()
    data = encode_manifest(msgspec.structs.replace(whole, parts=whole.parts[1:]))
    with pytest.raises(BadMessage, match="2 blocks of 3"):
        decode_manifest(data, model_id(data))


def test_a_part_cannot_leave_its_folder() -> None:
    whole = manifest()
    for name in ("../x", "/etc/passwd", ".hidden", "a/b", ""):
        refuse(msgspec.structs.replace(whole.parts[0], name=name))


def refuse(part: Part) -> None:
    """Check that a manifest is refused if this stands in the place of its first part."""
    data = encode_manifest(msgspec.structs.replace(manifest(), parts=[part, *manifest().parts[1:]]))
    with pytest.raises(BadMessage):
        decode_manifest(data, model_id(data))


@pytest.mark.parametrize(
    ("role", "block", "name"),
    [
        (BLOCK, 0, "tokenizer.json"),
        (BLOCK, 0, "block-0001.safetensors"),
        (BLOCK, 0, "block-0000.safetensors\n"),
        (TOKENIZER, -1, "modeling_x.py"),
        (TOKENIZER, -1, "config.json"),
        (TOKENIZER, -1, "tokenizer.bin"),
        ("config", -1, "tokenizer_config.json"),
        (EMBED, 0, "embed.safetensors"),
        (SHARED, -1, "pytorch_model.bin"),
        ("config\n", -1, "config.json"),
    ],
)
def test_a_received_part_has_the_name_of_its_role(role: str, block: int, name: str) -> None:
    refuse(msgspec.structs.replace(manifest().parts[0], role=role, block=block, name=name))
    others = [p for p in manifest().parts if p.role != role.strip()]
    wrong = Part(role, block, name, CID, 1)
    data = encode_manifest(msgspec.structs.replace(manifest(), parts=[wrong, *others]))
    with pytest.raises(BadMessage):
        decode_manifest(data, model_id(data))


def test_a_tokenizer_of_any_size_is_not_taken() -> None:
    whole = manifest()
    large = msgspec.structs.replace(whole.parts[-1], size_bytes=FRONT_MAX_BYTES)
    data = encode_manifest(msgspec.structs.replace(whole, parts=[*whole.parts[:-1], large]))
    with pytest.raises(BadMessage, match="tokenizer are over"):
        decode_manifest(data, model_id(data))


def test_no_name_ends_in_a_line_feed() -> None:
    for cid in (CID + "\n", CID[1:] + "\n"):
        refuse(msgspec.structs.replace(manifest().parts[0], cid=cid))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_bad_message(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_manifest(data, model_id(data))


def test_a_span_needs_its_own_parts_only() -> None:
    whole = manifest()
    assert roles(parts_of_span(whole, 0, 1)) == ["block0", "embed", "shared", "config"]
    assert roles(parts_of_span(whole, 1, 2)) == ["block1", "config"]
    assert roles(parts_of_span(whole, 2, 3)) == ["block2", "head", "shared", "config"]
    assert roles(parts_of_front(whole)) == ["config", "tokenizer"]


def test_a_span_takes_as_much_memory_as_its_files_whatever_the_manifest_claims() -> None:
    lying = msgspec.structs.replace(manifest(), parameters=1 << 44)
    assert [memory_of_span(lying, *span) for span in ((0, 3), (0, 1), (1, 2))] == [335, 125, 105]


def decoded(manifest: Manifest) -> Manifest:
    data = encode_manifest(manifest)
    return decode_manifest(data, model_id(data))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_computed_in_one_of_three_dtypes(dtype: str) -> None:
    whole = msgspec.structs.replace(manifest(), dtype=dtype)
    assert decoded(whole) == whole


def test_another_dtype_is_another_model() -> None:
    names = {
        model_id(encode_manifest(msgspec.structs.replace(manifest(), dtype=dtype)))
        for dtype in DTYPES
    }
    assert len(names) == len(DTYPES)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": 3},
        {"dtype": "float64"},
        {"dtype": "float32\n"},
        {"dtype": "xfloat16"},
        {"n_layers": 0},
        {"n_layers": LAYERS_MAX + 1},
        {"hidden_size": 0},
        {"vocab_size": 1 << 25},
        {"context": 0},
        {"parameters": -1},
        {"eos": [-1]},
        {"eos": [2] * 17},
        {"name": "a/b"},
        {"family": "x" * 65},
        {"parts": []},
    ],
)
def test_what_a_stranger_says_of_a_model_is_within_bounds(change: dict[str, object]) -> None:
    with pytest.raises(BadMessage):
        decoded(msgspec.structs.replace(manifest(), **change))


@pytest.mark.parametrize("role", [EMBED, HEAD, SHARED])
def test_a_manifest_without_what_is_outside_of_the_blocks_is_refused(role: str) -> None:
    parts = [part for part in manifest().parts if part.role != role]
    with pytest.raises(BadMessage, match="lacks the tensors before or after"):
        decoded(msgspec.structs.replace(manifest(), parts=parts))


def test_no_file_is_named_twice() -> None:
    parts = [*manifest().parts, manifest().parts[-1]]
    with pytest.raises(BadMessage, match="names a file twice"):
        decoded(msgspec.structs.replace(manifest(), parts=parts))


def test_the_deepest_model_has_room_in_a_manifest() -> None:
    whole = manifest(LAYERS_MAX)
    assert decoded(whole) == whole
    assert len(encode_manifest(whole)) < MANIFEST_MAX / 2


def test_tokenizer_files_are_data_never_programs() -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        assert is_tokenizer_file(name)
    for name in ("tokenization_x.py", "model.safetensors", "tokenizer.bin", "config.json"):
        assert not is_tokenizer_file(name)


def test_what_others_write_gives_no_orders_to_a_terminal() -> None:
    for text in ("\x1b[2J", "a\nb", "\x9b1m", "tail\n"):
        with pytest.raises(BadMessage):
            decoded(msgspec.structs.replace(manifest(), family=text))
        shown = msgspec.structs.replace(manifest(), family=printable(text))
        assert decoded(shown) == shown
