# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (transformers is annotated in part; the result is checked by loading it again in the tests)
"""Cut a Hugging Face model into parts: `python -m protocols.sharding.split SOURCE FOLDER [DTYPE]`.

A program of its own, not part of the daemon: it needs torch. Reads a folder with config.json and
safetensors tensor by tensor, so it holds one part in memory, or, where transformers has to convert
them, the whole model; or one .gguf file, dequantised; never a pickle. Writes one file per block,
`embed`, `head` and `shared`, the tokenizer's files, and last `split.json` (a `Split`). A source
that cannot be cut is one line in `split.json` and exit status 2. The same source gives the same
bytes.
"""

import json
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from protocols.sharding.manifest import (
    BLOCK,
    CONFIG,
    DTYPES,
    EMBED,
    HEAD,
    SHARED,
    TOKENIZER,
    is_tokenizer_file,
    part_name,
)
from protocols.sharding.programs import without_programs
from protocols.sharding.source import checkpoint_files
from protocols.sharding.splitting import (
    RESULT,
    Cut,
    Split,
    Teller,
    Unsuitable,
    missing_room,
    write,
)
from protocols.sharding.stage import layer_list
from protocols.sharding.weights import (
    LoadedWeights,
    Weights,
    names_by_tensor,
    open_weights,
    stored_dtype,
)
from shoal.lifeline import watch

CONTEXT_WITHOUT_LIMIT = 8192  # tokens; for models whose configuration names no limit (ALiBi)
GENERATION = "generation_config.json"
_PROBE_TOKENS = 3  # what the forward runs on that shows on which side each parameter is used


def split(source: Path, folder: Path, dtype: str = "auto") -> Split:
    """Write the parts of the model in `source` to `folder`; return what they are.

    dtype: what the model is computed in, and so stored in; "auto" is what its configuration says,
    of a .gguf file float32. Raises Unsuitable, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        if source.suffix == ".gguf":
            named = "float32" if dtype == "auto" else dtype
            model = _load_gguf(source, folder, _torch_dtype(named))
            weights: Weights = LoadedWeights(model)
        else:
            config = _read_config(source)
            named = _resolved(dtype, config, source)
            model = _skeleton(config, _torch_dtype(named))
            weights = open_weights(source, model, _torch_dtype(named), opened) or LoadedWeights(
                _load(source, _torch_dtype(named))
            )
            _copy_small_files(source, folder)
        plan = _plan(model)
        tensors = _write_tensors(plan, weights, folder)
    tokenizers = sorted(p.name for p in folder.iterdir() if is_tokenizer_file(p.name))
    text_config = model.config.get_text_config(decoder=True)
    return Split(
        family=str(model.config.model_type),
        dtype=named,
        n_layers=len(layer_list(model)),
        hidden_size=int(text_config.hidden_size),
        vocab_size=int(text_config.vocab_size),
        context=int(getattr(text_config, "max_position_embeddings", 0) or CONTEXT_WITHOUT_LIMIT),
        parameters=sum(p.numel() for p in model.parameters()),
        eos=_eos(model.config, folder),
        cuts=[
            *tensors,
            Cut("config", -1, CONFIG),
            *(Cut(TOKENIZER, -1, name) for name in tokenizers),
        ],
    )


# --- reading -----------------------------------------------------------------------------------


def _read_config(source: Path) -> Any:
    if not (source / CONFIG).is_file():
        raise Unsuitable(f"{source} holds no {CONFIG}")
    checkpoint_files(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise Unsuitable(f"{source.name} is not a causal language model: {error}") from error
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        kind = dict(quantised).get("quant_method", "")
        raise Unsuitable(f"{source.name} is quantised ({kind}); add it in full, or as a .gguf file")
    return config


def _skeleton(config: Any, dtype: torch.dtype) -> Any:
    """Build the model without memory for its parameters."""
    build: Any = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            return build(config, dtype=dtype, trust_remote_code=False).eval()
    except ValueError as error:
        kind = config.model_type
        raise Unsuitable(f"{kind} is not a causal language model: {error}") from error


def _load(source: Path, dtype: torch.dtype, **options: object) -> Any:
    """Load the whole model. Raises Unsuitable if anything of it would be left to chance."""
    load: Any = AutoModelForCausalLM.from_pretrained
    options |= {"trust_remote_code": False, "output_loading_info": True}
    model, found = load(source, dtype=dtype, use_safetensors=True, **options)
    missing: list[str] = sorted(
        name for name in found["missing_keys"] if _is_parameter(model, name)
    )
    if missing:
        raise Unsuitable(f"{source.name} lacks {', '.join(missing[:3])}")
    return model.eval()


def _is_parameter(model: Any, name: str) -> bool:
    return any(name == known for known, _ in model.named_parameters(remove_duplicate=False))


def _load_gguf(source: Path, folder: Path, dtype: torch.dtype) -> Any:
    place, name = source.parent, source.name
    try:
        model = _load(place, dtype, gguf_file=name)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, trust_remote_code=False)
    except (ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise Unsuitable(f"{name} cannot be read: {error}") from error
    # What was loaded is dequantised: without this it would be saved as a quantised one.
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def _resolved(dtype: str, config: Any, source: Path) -> str:
    """Return the name of a dtype; "auto" is that of the configuration, else of the tensors."""
    if dtype != "auto":
        return dtype
    own = getattr(config, "dtype", None) or stored_dtype(source)
    named = str(own).removeprefix("torch.")
    return named if named in DTYPES else "float32"


def _torch_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise Unsuitable(f"{name!r} is none of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _copy_small_files(source: Path, folder: Path) -> None:
    is_cached = source.parent.name == "snapshots"  # its files are links to the blobs beside them
    home = (source.parent.parent if is_cached else source).resolve()
    for path in source.iterdir():
        if path.is_file() and (path.name == CONFIG or is_tokenizer_file(path.name)):
            if not path.resolve().is_relative_to(home):  # all the swarm would read it
                raise Unsuitable(f"{path.name} is a link out of {source}; copy the file")
            _copy(path, folder / path.name)


def _copy(path: Path, target: Path) -> None:
    """Copy a file; of one that names programs, the rest: transformers did without them."""
    if path.name.endswith(CONFIG):
        document = json.loads(path.read_bytes())
        plain = without_programs(document)
        if plain != document:
            target.write_text(json.dumps(plain, indent=2))
            return
    shutil.copyfile(path, target)


def _eos(config: Any, folder: Path) -> list[int]:
    """Return the tokens that end an answer: the generation settings know best."""
    path, eos = folder / GENERATION, None
    if path.is_file():
        eos = json.loads(path.read_bytes()).get("eos_token_id")
    if eos is None:
        eos = getattr(config.get_text_config(decoder=True), "eos_token_id", None)
    return [] if eos is None else [int(each) for each in (eos if isinstance(eos, list) else [eos])]


# --- writing -----------------------------------------------------------------------------------


def _plan(model: Any) -> list[tuple[Cut, list[str]]]:
    """Say which tensors go into which file, in the model's own order."""
    layers = layer_list(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    sides = _sides(model.config)
    blocks: list[list[str]] = [[] for _ in layers]
    outer: dict[str, list[str]] = {EMBED: [], HEAD: [], SHARED: []}
    for name in model.state_dict():
        if name.startswith(prefix + "."):
            blocks[int(name[len(prefix) + 1 :].split(".", 1)[0])].append(name)
        else:
            outer[sides.get(name, SHARED)].append(name)
    return [
        *((Cut(BLOCK, i, part_name(BLOCK, i)), names) for i, names in enumerate(blocks)),
        *((Cut(role, -1, part_name(role)), names) for role, names in outer.items()),
    ]


def _write_tensors(plan: list[tuple[Cut, list[str]]], weights: Weights, folder: Path) -> list[Cut]:
    """Write one file after the other. A tensor under two names is stored once in a file."""
    once = [{weights.first_name(name): name for name in reversed(names)} for _, names in plan]
    total_bytes = sum(weights.size_bytes(name) for stored in once for name in stored.values())
    if lack := missing_room(total_bytes, shutil.disk_usage(folder).free):
        raise Unsuitable(lack)
    teller = Teller(folder, total_bytes)
    for (cut, names), stored in zip(plan, once, strict=True):
        tensors = {name: weights.read(name) for name in sorted(stored.values())}
        others = [name for name in names if name not in tensors]
        aliases = {name: stored[weights.first_name(name)] for name in others}
        save_file(tensors, folder / cut.name, metadata={"aliases": json.dumps(aliases)})
        teller.add(sum(tensor.nbytes for tensor in tensors.values()))
    return [cut for cut, _ in plan]


# --- which side of the layers ------------------------------------------------------------------


def _sides(config: Any) -> dict[str, str]:
    """Find by name which parameters are used before the layers and which after.

    The forward runs on the meta device, which computes shapes only (in bfloat16: one operation of
    experts knows no other there). Where it does not get through, nothing is said of any.
    """
    model = _skeleton(config, torch.bfloat16)
    seen: dict[int, set[str]] = {}
    ids = torch.zeros((1, _PROBE_TOKENS), dtype=torch.long, device="meta")
    try:
        with _watched(model, layer_list(model), seen), torch.inference_mode():
            model(input_ids=ids, use_cache=True)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return {}
    groups = names_by_tensor(model.state_dict(keep_vars=True))
    return {
        name: next(iter(seen[at])) if len(seen[at]) == 1 else SHARED
        for at, names in groups.items()
        if at in seen
        for name in names
    }


@contextmanager
def _watched(model: Any, layers: nn.ModuleList, seen: dict[int, set[str]]) -> Generator[None]:
    side = EMBED

    def note(module: nn.Module, _: object) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            seen.setdefault(id(tensor), set()).add(side)

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


def main(source: str, folder: str, dtype: str = "auto") -> int:
    """Cut, write the result last and at once; return the exit status."""
    try:
        result, status = split(Path(source), Path(folder), dtype), 0
    except (Unsuitable, OSError) as error:
        result, status = Split(error=str(error)), 2
    os.makedirs(folder, exist_ok=True)
    write(Path(folder) / RESULT, result)
    return status


if __name__ == "__main__":
    watch()  # it ends with the daemon
    torch.set_num_threads(1)  # the daemons of this machine need the other cores
    sys.exit(main(*sys.argv[1:]))
