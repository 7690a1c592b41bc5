"""What a served model is: a manifest of parts, each named by its content. No I/O, no torch.

A model is a configuration, a tokenizer and one safetensors file per block, with the tensors before
the blocks, after them and on both sides in a file each. Its id is the hash of its manifest.
"""

import hashlib
from pathlib import PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta

from wire.codec import decode, encode
from wire.errors import BadMessage

MANIFEST_MAX = 256 * 1024  # bytes; 512 parts of some 130 B are 66 KB
LAYERS_MAX = 512  # the deepest open model has 126
FILES_MAX = LAYERS_MAX + 64

CONFIG = "config.json"
BLOCK = "block"  # one decoder layer
EMBED = "embed"  # used only before the first layer
HEAD = "head"  # used only after the last layer
SHARED = "shared"  # used on both sides (tied embeddings), or unknown where
TOKENIZER = "tokenizer"  # a file of the tokenizer, by its own name

Cid = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]
ModelId = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]
# One path segment that is also a key of the store and a word in a URL.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
ModelName = Annotated[str, Meta(max_length=63, pattern=NAME_PATTERN)]
Layer = Annotated[int, Meta(ge=0, le=LAYERS_MAX)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file of a model. `block` is -1 but for blocks; `name` is the file's, in its folder."""

    role: Annotated[str, Meta(pattern="^(config|tokenizer|block|embed|head|shared)$")]
    block: Annotated[int, Meta(ge=-1, le=LAYERS_MAX - 1)]
    name: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    cid: Cid
    size_bytes: Annotated[int, Meta(ge=0, le=1 << 40)]


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A model: its shape and its parts."""

    version: Annotated[int, Meta(ge=1, le=1)]
    name: ModelName
    family: Annotated[str, Meta(max_length=64)]
    dtype: Annotated[str, Meta(pattern="^float32$")]  # what it is computed in
    n_layers: Annotated[int, Meta(ge=1, le=LAYERS_MAX)]
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 24)]
    context: Annotated[int, Meta(ge=1, le=1 << 24)]  # tokens, prompt and answer together
    parameters: Annotated[int, Meta(ge=0)]
    eos: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 24)]], Meta(max_length=16)]
    parts: Annotated[list[Part], Meta(max_length=FILES_MAX)]


_decoder = msgspec.msgpack.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes whose hash is the model's id."""
    return encode(manifest)


def decode_manifest(data: bytes, model: str) -> Manifest:
    """Parse a manifest that should be the model `model`. Raises BadMessage."""
    if model_id(data) != model:
        raise BadMessage(f"manifest is of model {model_id(data)[:12]}, not {model[:12]}")
    manifest = decode(data, _decoder, MANIFEST_MAX)
    blocks = sorted(part.block for part in manifest.parts if part.role == BLOCK)
    if blocks != list(range(manifest.n_layers)):
        raise BadMessage(f"manifest has {len(blocks)} blocks of {manifest.n_layers}")
    names = [part.name for part in manifest.parts]
    if len(set(names)) != len(names):
        raise BadMessage("manifest names a file twice")
    return manifest


def model_id(data: bytes) -> str:
    """Name a model by the bytes of its manifest."""
    return hashlib.sha256(data).hexdigest()


def part_name(role: str, block: int = -1) -> str:
    """Return the file name of a part with tensors."""
    return f"block-{block:04}.safetensors" if role == BLOCK else f"{role}.safetensors"


def parts_of_span(manifest: Manifest, start: int, end: int) -> list[Part]:
    """Return the parts that a stage of layers [start, end) needs; no other part is fetched."""
    first, last = start == 0, end == manifest.n_layers
    needed = {
        "config": True,
        EMBED: first,
        HEAD: last,
        SHARED: first or last,
    }
    return [
        part
        for part in manifest.parts
        if needed.get(part.role, False) or (part.role == BLOCK and start <= part.block < end)
    ]


def parts_of_front(manifest: Manifest) -> list[Part]:
    """Return the parts that a tokenizer needs."""
    return [part for part in manifest.parts if part.role in ("config", TOKENIZER)]


def block_bytes(manifest: Manifest) -> int:
    """Return the memory that one block takes in float32, with its share of the rest."""
    return 4 * manifest.parameters // manifest.n_layers


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a Hugging Face folder belongs to the tokenizer. Never a program."""
    path = PurePosixPath(name)
    if path.suffix not in (".json", ".txt", ".model", ".jinja"):
        return False
    stems = ("token", "vocab", "merges", "special", "added", "chat_template", "spiece", "sentence")
    return path.name == "generation_config.json" or path.name.startswith(stems)
