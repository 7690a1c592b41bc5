# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (transformers is annotated in part; the result is checked by loading it again in the tests)
"""Cut a Hugging Face model into parts: `python -m protocols.sharding.split SOURCE FOLDER`.

A program of its own, not part of the daemon: it needs torch and as much memory as the model.
Reads a folder with config.json and safetensors, or one .gguf file; never a pickle. Writes one file
per block, `embed`, `head` and `shared`, the tokenizer's files, and last `split.json` (a `Split`).
A source that cannot be cut is one line in `split.json` and exit status 2.
"""

import json
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from protocols.sharding.manifest import (
    BLOCK,
    CONFIG,
    EMBED,
    HEAD,
    SHARED,
    TOKENIZER,
    is_tokenizer_file,
    part_name,
)
from protocols.sharding.programs import without_programs
from protocols.sharding.splitting import RESULT, Cut, Split
from protocols.sharding.stage import layer_list

CONTEXT_WITHOUT_LIMIT = 8192  # tokens; for models whose configuration names no limit (ALiBi)
_PROBE_TOKENS = 3  # what the forward runs on that shows on which side each parameter is used


class Unsuitable(Exception):
    """The source is not a model that we can cut; the message says why."""


def split(source: Path, folder: Path) -> Split:
    """Write the parts of the model in `source` to `folder`; return what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _load(source, folder)
    cuts = [*_write_tensors(model, folder), Cut("config", -1, CONFIG)]
    tokenizers = sorted(p.name for p in folder.iterdir() if is_tokenizer_file(p.name))
    cuts += [Cut(TOKENIZER, -1, name) for name in tokenizers]
    config = model.config.get_text_config(decoder=True)
    return Split(
        family=str(model.config.model_type),
        n_layers=len(layer_list(model)),
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        context=int(getattr(config, "max_position_embeddings", 0) or CONTEXT_WITHOUT_LIMIT),
        parameters=sum(p.numel() for p in model.parameters()),
        eos=_eos(model),
        cuts=cuts,
    )


def _load(source: Path, folder: Path) -> Any:
    """Load the whole model; write its configuration and tokenizer files to `folder`."""
    if source.suffix == ".gguf":
        return _load_gguf(source, folder)
    if not (source / CONFIG).is_file():
        raise Unsuitable(f"{source} holds no {CONFIG}")
    if not any(source.glob("*.safetensors")):
        raise Unsuitable(f"{source} holds no .safetensors file (other formats can run programs)")
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError) as error:
        raise Unsuitable(f"{source.name} is not a causal language model: {error}") from error
    for path in source.iterdir():
        if path.is_file() and (path.name == CONFIG or is_tokenizer_file(path.name)):
            _copy(path, folder / path.name)
    return model.eval()


def _copy(path: Path, target: Path) -> None:
    """Copy a file; of one that names programs, the rest: transformers did without them."""
    if path.name.endswith(CONFIG):
        document = json.loads(path.read_bytes())
        plain = without_programs(document)
        if plain != document:
            target.write_text(json.dumps(plain, indent=2))
            return
    shutil.copyfile(path, target)


def _load_gguf(source: Path, folder: Path) -> Any:
    place, name = source.parent, source.name
    model: Any = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.float32, trust_remote_code=False
    )
    # What was loaded is dequantised: without this it would be saved as a quantised one.
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    return model.eval()


def _write_tensors(model: Any, folder: Path) -> list[Cut]:
    layers = layer_list(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    cuts: list[Cut] = []
    outer: dict[str, dict[str, Tensor]] = {EMBED: {}, HEAD: {}, SHARED: {}}
    blocks: list[dict[str, Tensor]] = [{} for _ in layers]
    sides = _sides(model, layers)
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix + "."):
            index = name[len(prefix) + 1 :].split(".", 1)[0]
            blocks[int(index)][name] = tensor
        else:
            outer[sides.get(tensor.data_ptr(), SHARED)][name] = tensor
    for index, tensors in enumerate(blocks):
        _save(tensors, folder / part_name(BLOCK, index))
        cuts.append(Cut(BLOCK, index, part_name(BLOCK, index)))
    for role, tensors in outer.items():
        _save(tensors, folder / part_name(role))
        cuts.append(Cut(role, -1, part_name(role)))
    return cuts


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one part. A tensor under two names is stored once, the others are aliases."""
    stored: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        first = names.setdefault(tensor.data_ptr(), name)
        if first == name:
            stored[name] = tensor.contiguous()
        else:
            aliases[name] = first
    save_file(stored, path, metadata={"aliases": json.dumps(aliases)})


def _sides(model: Any, layers: nn.ModuleList) -> dict[int, str]:
    """Find which parameters are used before the layers and which after, by running it once."""
    seen: dict[int, set[str]] = {}
    with _watched(model, layers, seen), torch.inference_mode():
        model(input_ids=torch.zeros((1, _PROBE_TOKENS), dtype=torch.long), use_cache=False)
    return {at: sides.pop() if len(sides) == 1 else SHARED for at, sides in seen.items()}


@contextmanager
def _watched(model: Any, layers: nn.ModuleList, seen: dict[int, set[str]]) -> Generator[None]:
    side = EMBED

    def note(module: nn.Module, _: object) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            seen.setdefault(tensor.data_ptr(), set()).add(side)

    def passed(_: nn.Module, __: object) -> None:
        nonlocal side
        side = HEAD

    inner = {id(module) for module in layers.modules()}
    # A module that contains the layers may use its own parameters on either side of them.
    outside = [
        module
        for module in model.modules()
        if id(module) not in inner and not any(child is layers for child in module.modules())
    ]
    hooks = [module.register_forward_pre_hook(note) for module in outside]
    hooks.append(layers[0].register_forward_pre_hook(passed))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _eos(model: Any) -> list[int]:
    """Return the tokens that end an answer: the generation settings know best."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = model.config.eos_token_id
    return (
        [] if eos is None else [int(token) for token in (eos if isinstance(eos, list) else [eos])]
    )


def main(source: str, folder: str) -> int:
    """Cut, write the result last and at once; return the exit status."""
    try:
        result, status = split(Path(source), Path(folder)), 0
    except (Unsuitable, OSError) as error:
        result, status = Split(error=str(error)), 2
    scratch = Path(folder) / (RESULT + ".new")
    scratch.write_bytes(msgspec.json.encode(result))
    scratch.rename(Path(folder) / RESULT)
    return status


if __name__ == "__main__":
    torch.set_num_threads(1)  # the daemons of this machine need the other cores
    sys.exit(main(*sys.argv[1:]))
