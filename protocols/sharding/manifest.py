"""What a served model is: a manifest of parts, each named by its content. No I/O, no torch.

A model is a configuration, a tokenizer and one safetensors file per block, with the tensors before
the blocks, after them and on both sides in a file each. Its id is the hash of its manifest.
"""

import hashlib
import re
from pathlib import PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta

from wire.codec import decode, encode
from wire.errors import BadMessage

MANIFEST_MAX = 256 * 1024  # bytes; 512 parts of some 130 B are 66 KB
LAYERS_MAX = 512  # the deepest open model has 126
FILES_MAX = LAYERS_MAX + 64
FRONT_MAX_BYTES = 256 * 1024 * 1024  # every node that asks has them; the largest known are 40 MB

CONFIG = "config.json"
BLOCK = "block"  # one decoder layer
EMBED = "embed"  # used only before the first layer
HEAD = "head"  # used only after the last layer
SHARED = "shared"  # used on both sides (tied embeddings), or unknown where
TOKENIZER = "tokenizer"  # a file of the tokenizer, by its own name
DTYPES = ("float32", "bfloat16", "float16")
VERSION = 2

Cid = Annotated[str, Meta(max_length=61, pattern=r"^b[a-z2-7]{58}([a-z2-7]{2})?\Z")]
ModelId = Annotated[str, Meta(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}\Z")]
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # what others write ends up on people's terminals
# One path segment that is also a key of the store and a word in a URL.
# (\Z, here and below: `$` would let a name end in a line feed.)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
ModelName = Annotated[str, Meta(max_length=63, pattern=NAME_PATTERN)]
Layer = Annotated[int, Meta(ge=0, le=LAYERS_MAX)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file of a model. `block` is -1 but for blocks; `name` is the file's, in its folder."""

    role: Annotated[str, Meta(pattern=r"^(config|tokenizer|block|embed|head|shared)\Z")]
    block: Annotated[int, Meta(ge=-1, le=LAYERS_MAX - 1)]
    name: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    cid: Cid
    size_bytes: Annotated[int, Meta(ge=0, le=1 << 40)]


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A model: its shape and its parts, whose tensors are in the dtype that they are computed in.

    What is larger than it should be for that (a norm that its family keeps in float32) is so in the
    file too: a stage takes as much memory for its weights as its files have bytes.
    """

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    name: ModelName
    family: Annotated[str, Meta(max_length=64, pattern=PRINTABLE)]
    dtype: Annotated[str, Meta(pattern=rf"^({'|'.join(DTYPES)})\Z")]  # what it is computed in
    n_layers: Annotated[int, Meta(ge=1, le=LAYERS_MAX)]
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 24)]
    context: Annotated[int, Meta(ge=1, le=1 << 24)]  # tokens, prompt and answer together
    parameters: Annotated[int, Meta(ge=0, le=1 << 44)]
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
    if not {part_name(role) for role in (EMBED, HEAD, SHARED)} <= set(names):
        raise BadMessage("manifest lacks the tensors before or after the blocks")
    for part in manifest.parts:
        if not _is_named_as_it_should(part):
            raise BadMessage(f"manifest has a {part.role} part {part.block} in {part.name}")
    if CONFIG not in names:
        raise BadMessage(f"manifest has no {CONFIG}")
    if sum(part.size_bytes for part in parts_of_front(manifest)) > FRONT_MAX_BYTES:
        raise BadMessage(f"configuration and tokenizer are over {FRONT_MAX_BYTES} B")
    if len(set(names)) != len(names):
        raise BadMessage("manifest names a file twice")
    return manifest


def _is_named_as_it_should(part: Part) -> bool:
    """Whether a file of this name may have this role: nothing else lands in a model's folder."""
    if part.role == BLOCK:
        return part.block >= 0 and part.name == part_name(BLOCK, part.block)
    if part.block != -1:
        return False
    if part.role == TOKENIZER:
        return is_tokenizer_file(part.name)
    return part.name == (CONFIG if part.role == "config" else part_name(part.role))


def printable(text: str) -> str:
    """Return a text as `PRINTABLE` wants it: runs of control characters are one space."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)


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


def memory_of_span(manifest: Manifest, start: int, end: int) -> int:
    """Return the bytes that a stage's weights take: those of its parts, and no more is fetched."""
    return sum(part.size_bytes for part in parts_of_span(manifest, start, end))


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a Hugging Face folder belongs to the tokenizer. Never a program."""
    path = PurePosixPath(name)
    if path.suffix not in (".json", ".txt", ".model", ".jinja"):
        return False
    stems = ("token", "vocab", "merges", "special", "added", "chat_template", "spiece", "sentence")
    return path.name == "generation_config.json" or path.name.startswith(stems)
