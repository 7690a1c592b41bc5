# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeArgument=false
# (transformers is annotated in part; what we take from it is checked by the bit-exactness tests)
"""A contiguous span of any Hugging Face causal LM, run by the model's own forward.

A session uses layers [a, b) of the span. Layers before `a` let the hidden state pass, layer `a`
gets the received one whatever came before it, and after layer b - 1 the forward is left; so no
family needs code of its own, and results are those of the whole model, bit for bit.
Only a worker process imports this: it needs torch.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from protocols.sharding.caches import StageCache
from protocols.sharding.few_rows import FewRows
from protocols.sharding.manifest import (
    BLOCK,
    CONFIG,
    EMBED,
    HEAD,
    LAYERS_MAX,
    SHARED,
    part_name,
)
from protocols.sharding.programs import refuse_programs
from wire.errors import BadMessage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Result:
    """Of `n` rows of `batch` sessions: hidden [batch, n, hidden] as layer b - 1 returned them, and
    float32 logits [batch, asked, vocabulary] of the last rows, where they were asked for.
    """

    hidden: Tensor
    logits: Tensor | None


class Stage:
    """Layers [start, end) of a model, all of it or what `load_stage` made of it."""

    def __init__(self, model: Any, start: int, end: int) -> None:
        layers = layer_list(model)
        assert 0 <= start < end <= len(layers)
        self.model = model
        self.config = model.config
        text: Any = self.config.get_text_config(decoder=True)
        self.hidden_size, self.vocab_size = int(text.hidden_size), int(text.vocab_size)
        # Of positions; beyond a table of them a GPU fails for good, and dynamic frequencies change
        # for all sessions. 0: no limit.
        self.context = int(getattr(text, "max_position_embeddings", 0) or 0)
        self.start, self.end, self.n_layers = start, end, len(layers)
        of_modules = [getattr(module, "config", None) for module in model.modules()]
        self.configs: list[Any] = list({id(one): one for one in of_modules if one}.values())
        self._active, self._few = _Active(), FewRows()
        for index, layer in enumerate(layers):
            if not start <= index < end:
                layers[index] = _Passing(layer)
            else:
                layer.forward = _guarded(layer.forward, index, self._active)
        parameter = next(layers[start].parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._takes_positions = "position_ids" in accepted
        self._past = "cache_params" if "cache_params" in accepted else "past_key_values"

    def new_cache(self, start: int | None = None, end: int | None = None) -> StageCache:
        """Return the empty cache of a session that uses layers [start, end) (all of the span)."""
        start = self.start if start is None else start
        end = self.end if end is None else end
        assert self.start <= start < end <= self.end
        return StageCache(self.config, start, end)

    def tune(self) -> None:
        """Measure what makes few rows fast here; for a stage that stays (see few_rows.py)."""
        modules: list[Any] = list(layer_list(self.model)[self.start : self.end])
        if self.end == self.n_layers:
            modules.append(self.model.get_output_embeddings())
        self._few.install([module for module in modules if module is not None])

    def forward(
        self, inputs: Tensor, cache: StageCache, *, logits: int = 0, exact: bool = True
    ) -> Result:
        """One step of one session, behind the rows that are in its cache.

        inputs: int64 token ids [1, n] if the cache begins at block 0, else hidden [1, n, hidden] of
        any float type. `logits`: of how many of the last rows, if the cache ends with the model.
        exact: as the whole model does it; else few rows may be faster, and differ in rounding.
        Cost: the layers that are used, plus microseconds for each other one.
        """
        cache.mark_absent()
        count = inputs.shape[1]
        positions = torch.arange(cache.position, cache.position + count, device=self.device)
        span = (cache.start, cache.end)
        result = self.run(
            inputs, cache.layers, positions.unsqueeze(0), span=span, logits=logits, exact=exact
        )
        cache.position += count
        return result

    @torch.inference_mode()
    def run(
        self,
        inputs: Tensor,
        past: Any,
        positions: Tensor,
        *,
        span: tuple[int, int],
        logits: int,
        exact: bool = True,
    ) -> Result:
        """Run layers `span` over inputs at `positions` [batch, n], with a transformers cache."""
        options: dict[str, Any] = {self._past: past, "use_cache": True}
        if self._takes_positions:
            options["position_ids"] = positions
        if self._keeps_logits and logits:
            options["logits_to_keep"] = logits
        inputs = inputs.to(self.device)
        received = None if span[0] == 0 else inputs.to(self.dtype)
        options["input_ids" if received is None else "inputs_embeds"] = (
            inputs if received is None else received
        )
        active = self._active
        active.start, active.end, active.received = *span, received
        active.leaves = not logits or span[1] < self.n_layers
        found, self._few.allowed = None, not exact
        try:
            output = self.model(**options)
            found = output.logits[:, -logits:].float()
        except _Reached:
            pass
        finally:
            self._few.allowed = False
        hidden = active.hidden
        active.hidden = active.received = None
        assert hidden is not None
        return Result(hidden, found)


def load_stage(
    folder: Path, start: int, end: int, *, dtype: str = "float32", device: str = "cpu"
) -> Stage:
    """Build a stage from the parts of a split model (see split.py); reads only its own parts.

    dtype: what the model is computed in, and was split for. Raises BadMessage, ValueError, OSError.
    """
    refuse_programs(folder)
    config = AutoConfig.from_pretrained(folder / CONFIG, trust_remote_code=False)
    depth = config.get_text_config(decoder=True).num_hidden_layers
    if not end <= depth <= LAYERS_MAX:  # each takes memory, also without its weights
        raise BadMessage(f"a configuration of {depth} layers, for blocks {start}:{end}")
    build: Any = AutoModelForCausalLM.from_config
    with _Unallocated(), no_init_weights():
        model = build(config, dtype=DTYPES[dtype], trust_remote_code=False)
    model.eval()
    layers = layer_list(model)
    for index in (*range(start), *range(end, len(layers))):
        layers[index] = _Passing(layers[index])
    _finish_skeleton(model)
    for name in _parts(start, end, len(layers)):
        _load_part(model, folder / name, DTYPES[dtype], device, tables=end < len(layers))
    _check_and_fill(model, start, end, DTYPES[dtype], device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return Stage(model, start, end)


def layer_list(model: nn.Module) -> nn.ModuleList:
    """Find the decoder's layers: the first list that is as long as the configuration says."""
    config: Any = model.config
    count = config.get_text_config(decoder=True).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers")


class _Reached(Exception):
    """Leaves the forward at the end of the span."""


class _Active:
    """What the forward in progress is about: the layers wrapped below read and write it."""

    start = end = 0
    leaves = True  # after the last layer, since no logits are wanted
    received: Tensor | None = None  # for the first layer
    hidden: Tensor | None = None  # from the last layer


def _guarded(run: Callable[..., Any], index: int, active: _Active) -> Callable[..., Any]:
    """Return a layer's forward that does what `active` asks of that layer."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if index < active.start:
            return _passed(args, kwargs)
        if index == active.start and active.received is not None:
            if args:
                args = (active.received, *args[1:])
            else:
                kwargs["hidden_states"] = active.received
        output = run(*args, **kwargs)
        if index == active.end - 1:
            active.hidden = output if isinstance(output, Tensor) else output[0]
            if active.leaves:
                raise _Reached
        return output

    return forward


class _Passing(nn.Module):
    """Stands where a layer is not loaded. Keeps its plain attributes, which models read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if isinstance(value, str | int | float) and not name.startswith("_"):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Pass the hidden state on."""
        return _passed(args, kwargs)


def _passed(args: Any, kwargs: Any) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden.as_subclass(_Echo)


class _Echo(Tensor):
    """A hidden state that passes for the tuple some families' layers return: x[0] is x."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give every operation's result as a plain tensor."""
        with torch.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __getitem__(self, index: Any) -> Tensor:
        return self if isinstance(index, int) and index == 0 else super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        return iter((self, None))


class _Unallocated(TorchFunctionMode):
    """Parameters are made on the meta device, buffers (rotary frequencies) as they are.

    torch.device("meta") would do for both, but its arithmetic needs sympy: 35 MB in each worker.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as told, but with torch.empty."""
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


def _finish_skeleton(model: Any) -> None:
    """Forget parameters that were made after all; make the buffers as from_pretrained would."""
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for name, value in list(module.named_parameters(recurse=False)):
            empty: Any = torch.empty(value.shape, dtype=value.dtype, device="meta")
            empty = nn.Parameter(empty, requires_grad=False)
            empty._is_hf_initialized = True  # so the initialisation below passes it over
            setattr(module, name, empty)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    model.initialize_weights()


def _parts(start: int, end: int, n_layers: int) -> list[str]:
    """Return the files with the tensors of a span."""
    first, last = start == 0, end == n_layers
    names = [part_name(BLOCK, index) for index in range(start, end)]
    names += [part_name(SHARED)] if first or last else []
    names += [part_name(EMBED)] if first else []
    return names + ([part_name(HEAD)] if last else [])


def _load_part(model: Any, path: Path, dtype: torch.dtype, device: str, *, tables: bool) -> None:
    """Put the tensors of one part into the model; a tied one is held once, under all its names.

    With `tables`, what is only looked up in stays in the mapped file: memory is taken by the rows
    that are used.
    """
    with safe_open(path, framework="pt") as part:
        aliases: dict[str, str] = json.loads((part.metadata() or {}).get("aliases", "{}"))
        for name in part.keys():  # noqa: SIM118
            owner = model.get_submodule(name.rpartition(".")[0])
            mapped: Tensor = part.get_tensor(name)
            tensor = mapped
            # Some families keep some tensors in float32, also in a model of half precision.
            if mapped.is_floating_point() and mapped.dtype not in (dtype, torch.float32):
                raise BadMessage(f"{name} is in {mapped.dtype}, the model in {dtype}")
            if not (tables and isinstance(owner, nn.Embedding) and mapped.dtype == dtype):
                # Copied out of the file: kernels round differently on memory that is not aligned.
                tensor = mapped.to(device, copy=True)
            for alias in (name, *(alias for alias, stored in aliases.items() if stored == name)):
                _assign(model, alias, tensor.to(device))


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    known: Tensor | None = getattr(module, leaf, None)
    if known is None or known.shape != tensor.shape:
        raise ValueError(f"{name} {list(tensor.shape)} has no place in the model")
    is_parameter = isinstance(known, nn.Parameter)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _check_and_fill(model: Any, start: int, end: int, dtype: torch.dtype, device: str) -> None:
    """Fill what this span never uses with zeros of no size; miss nothing that it does use.

    Before layer `start` a later stage runs its (zero) embedding on the way, after `end` nothing.
    """
    layers = layer_list(model)
    for index in range(start, end):
        absent = [name for name, value in layers[index].named_parameters() if value.is_meta]
        if absent:
            raise ValueError(f"layer {index} lacks {', '.join(absent[:3])}")
    rest = {name: value for name, value in model.named_parameters() if value.is_meta}
    if rest and start == 0 and end == len(layers):
        raise ValueError(f"the model lacks {', '.join(list(rest)[:3])}")
    for name, value in rest.items():
        _assign(model, name, torch.zeros(1, dtype=dtype, device=device).expand(value.shape))
