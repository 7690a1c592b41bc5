# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeArgument=false
# (transformers is annotated in part; what we take from it is checked by the bit-exactness tests)
"""A contiguous span of any Hugging Face causal LM, run by the model's own forward.

Slots of layers outside [start, end) hold passthroughs. Layer `start` gets the received hidden state
whatever came before it, slot `end` leaves the forward with the hidden state it was given. So no
family needs code of its own, and float32 results are those of the whole model, bit for bit.
Only a worker process imports this: it needs torch.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from protocols.sharding.manifest import BLOCK, CONFIG, EMBED, HEAD, SHARED, part_name
from protocols.sharding.programs import refuse_programs

DTYPE = torch.float32  # computed in float32 whatever the files hold: that is what is exact


class Stage:
    """Layers [start, end) of a model. The first embeds token ids, the last returns logits."""

    def __init__(self, model: nn.Module, start: int, end: int) -> None:
        layers = layer_list(model)
        assert 0 <= start < end <= len(layers)
        self.model: Any = model
        self.config: Any = model.config
        self.start, self.end, self.n_layers = start, end, len(layers)
        self._received: Tensor | None = None
        for index in range(len(layers)):
            if not start <= index < end:
                layers[index] = _Slot(layers[index], stop=index >= end)
        if start > 0:
            layers[start].register_forward_pre_hook(self._inject, with_kwargs=True)
        accepted = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._takes_positions = "position_ids" in accepted

    @property
    def is_first(self) -> bool:
        """Whether it takes token ids."""
        return self.start == 0

    @property
    def is_last(self) -> bool:
        """Whether it returns logits."""
        return self.end == self.n_layers

    def new_cache(self) -> DynamicCache:
        """Return the empty KV cache of one session."""
        return DynamicCache(config=self.config)

    @torch.inference_mode()
    def forward(self, inputs: Tensor, cache: DynamicCache, position: int) -> Tensor:
        """One step of one session at `position`, the number of tokens in the cache.

        inputs: int64 token ids [1, n] in the first stage, else float32 hidden [1, n, hidden].
        Returns hidden [1, n, hidden], in the last stage the logits [1, vocabulary] of the last
        token. Cost: the owned layers, plus microseconds for each slot.
        """
        count = inputs.shape[1]
        options: dict[str, Any] = dict(self._options)
        if self._takes_positions:
            options["position_ids"] = torch.arange(position, position + count).unsqueeze(0)
        if self.is_first:
            options["input_ids"] = inputs
        else:
            self._received = options["inputs_embeds"] = inputs
        try:
            output = self.model(past_key_values=cache, use_cache=True, **options)
            result: Tensor = output.logits[:, -1]
        except _Reached as reached:
            result = reached.hidden
        finally:
            self._received = None
        self._mark_absent_layers(cache, position + count)
        return result

    def _inject(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give layer `start` what came from the stage before it."""
        if args:
            return (self._received, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._received}

    def _mark_absent_layers(self, cache: DynamicCache, length: int) -> None:
        """Let the cache entries of unowned layers report the length they would have.

        Masks are built from the first layer of each attention type, which may be unowned; one
        element is stored, whatever the length.
        """
        entries: list[Any] = list(cache.layers)
        for entry in (*entries[: self.start], *entries[self.end :]):
            if hasattr(entry, "cumulative_length"):  # a sliding window
                entry.cumulative_length = length
            elif hasattr(entry, "keys"):
                entry.keys = entry.values = torch.zeros(1).expand(1, 1, length, 1)
                entry.is_initialized = True
            if hasattr(entry, "has_previous_state"):  # linear attention
                entry.has_previous_state[0] = True


def load_stage(folder: Path, start: int, end: int) -> Stage:
    """Build a stage from the parts of a split model (see split.py); reads only its own parts."""
    refuse_programs(folder)
    config = AutoConfig.from_pretrained(folder / CONFIG, trust_remote_code=False)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(config, dtype=DTYPE, trust_remote_code=False)
    model.eval()
    stage = Stage(model, start, end)
    _recompute_buffers(model)
    names = [part_name(BLOCK, index) for index in range(start, end)]
    if stage.is_first or stage.is_last:
        names.append(part_name(SHARED))
    names += [part_name(EMBED)] if stage.is_first else []
    names += [part_name(HEAD)] if stage.is_last else []
    for name in names:
        for key, tensor in _tensors(folder / name):
            _assign(model, key, tensor)
    _check_and_fill(stage)
    return stage


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

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


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


class _Slot(nn.Module):
    """Stands where an unowned layer was. Keeps its plain attributes, which models read."""

    def __init__(self, layer: nn.Module, *, stop: bool) -> None:
        super().__init__()
        self._stop = stop
        for name, value in vars(layer).items():
            if isinstance(value, str | int | float) and not name.startswith("_"):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Pass the hidden state on, or leave with it."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if self._stop:
            raise _Reached(hidden)
        return hidden.as_subclass(_Echo)


def _recompute_buffers(model: Any) -> None:
    """Make the buffers that no file holds (rotary frequencies) as from_pretrained would.

    Parameters are on the meta device still, so initialising them costs nothing.
    """
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.zeros_like(buffer, device="cpu"))
    model.initialize_weights()


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Read one part; a tied tensor comes once for each of its names."""
    with safe_open(path, framework="pt") as part:
        aliases: dict[str, str] = json.loads((part.metadata() or {}).get("aliases", "{}"))
        tensors = {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
    shared = {name: _floats(tensor) for name, tensor in tensors.items()}
    yield from shared.items()
    for alias, name in aliases.items():
        yield alias, shared[name]


def _floats(tensor: Tensor) -> Tensor:
    """Copy out of the mapped file: kernels round differently on memory that is not aligned."""
    return tensor.to(DTYPE, copy=True) if tensor.is_floating_point() else tensor.clone()


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    known: Tensor | None = getattr(module, leaf, None)
    if known is None or known.shape != tensor.shape:
        raise ValueError(f"{name} {list(tensor.shape)} has no place in the model")
    is_parameter = isinstance(known, nn.Parameter)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _check_and_fill(stage: Stage) -> None:
    """Fill what this stage never uses with zeros of no size; miss nothing that it does use.

    Before layer `start` a later stage runs its (zero) embedding on the way, after `end` nothing.
    """
    layers = layer_list(stage.model)
    for index in range(stage.start, stage.end):
        absent = [name for name, value in layers[index].named_parameters() if value.is_meta]
        if absent:
            raise ValueError(f"layer {index} lacks {', '.join(absent[:3])}")
    rest = {name: value for name, value in stage.model.named_parameters() if value.is_meta}
    if rest and stage.is_first and stage.is_last:
        raise ValueError(f"the model lacks {', '.join(list(rest)[:3])}")
    for name, value in rest.items():
        _assign(stage.model, name, torch.zeros(1, dtype=DTYPE).expand(value.shape))
