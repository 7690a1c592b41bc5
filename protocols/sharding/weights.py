# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# (transformers and safetensors are annotated in part; the tests compare with from_pretrained)
"""Where the tensors of a model come from that is being cut: read one by one from its safetensors
files (and made of several, where transformers does so), or else from the loaded model.

Both give each tensor in the dtype in which `from_pretrained(dtype=…)` would have it, bit for bit.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from protocols.sharding.source import checkpoint_files
from protocols.sharding.splitting import Unsuitable

HALF = (torch.float16, torch.bfloat16)


class Weights(Protocol):
    """The tensors of a model, by the names that the model has for them."""

    def first_name(self, name: str) -> str:
        """Return the name under which a tensor with several names (tied) is stored."""
        ...

    def size_bytes(self, name: str) -> int:
        """Return how many bytes `read` will give."""
        ...

    def read(self, name: str) -> Tensor:
        """Return a tensor, contiguous, in the dtype in which it is computed."""
        ...


class LoadedWeights:
    """Those of a model in memory."""

    def __init__(self, model: Any) -> None:
        self._tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self._first = names_by_tensor(self._tensors)

    def first_name(self, name: str) -> str:
        """See `Weights`."""
        return self._first[id(self._tensors[name])][0]

    def size_bytes(self, name: str) -> int:
        """See `Weights`."""
        return self._tensors[name].nbytes

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        return self._tensors[name].detach().contiguous()


class _Place(Protocol):
    """Where one tensor comes from."""

    def read(self, dtype: torch.dtype) -> Tensor:
        """Return it in a dtype."""
        ...


@dataclass(frozen=True)
class _Stored:
    """As it is in an open safetensors file."""

    file: Any
    key: str

    def read(self, dtype: torch.dtype) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.key)
        return tensor.to(dtype)

    def outline(self) -> Tensor:
        """Return its shape, as a tensor without values."""
        shape: list[int] = self.file.get_slice(self.key).get_shape()
        return torch.empty(shape, device="meta")


@dataclass
class _Conversion:
    """Tensors that transformers makes of others: experts as one, say. `dtype` is that of both."""

    converter: Any
    first: str  # the name of the first that is made
    skeleton: Any
    dtype: torch.dtype
    sources: list[tuple[str, _Stored]] = field(default_factory=list[tuple[str, _Stored]])

    def outline(self) -> dict[str, Tensor]:
        """Return names and shapes of what is made, computed from the shapes alone."""
        return self._convert(lambda place: place.outline().to(self.dtype))

    def make(self) -> dict[str, Tensor]:
        """Return what is made."""
        return self._convert(lambda place: place.read(self.dtype))

    def _convert(self, read: Callable[[_Stored], Tensor]) -> dict[str, Tensor]:
        converter = deepcopy(self.converter)
        for pattern, place in self.sources:
            converter.add_tensor(self.first, place.key, pattern, partial(read, place))
        made = converter.convert(self.first, model=self.skeleton, config=self.skeleton.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


@dataclass(frozen=True)
class _Made:
    conversion: _Conversion
    name: str
    cache: dict[str, dict[str, Tensor]]  # what the last conversion made, which may be several

    def read(self, dtype: torch.dtype) -> Tensor:
        if self.conversion.first not in self.cache:
            self.cache.clear()
            self.cache[self.conversion.first] = self.conversion.make()
        return self.cache[self.conversion.first][self.name].to(dtype)


@dataclass
class StoredWeights:
    """Those of safetensors files, which are mapped: only what is read takes memory."""

    places: dict[str, _Place]
    dtypes: dict[str, torch.dtype]
    sizes: dict[str, int]
    aliases: dict[str, str] = field(default_factory=dict[str, str])

    def first_name(self, name: str) -> str:
        """See `Weights`."""
        return self.aliases.get(name, name)

    def size_bytes(self, name: str) -> int:
        """See `Weights`."""
        return self.sizes[name] * self.dtypes[name].itemsize

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        return self.places[self.first_name(name)].read(self.dtypes[name]).contiguous()


def open_weights(
    source: Path, skeleton: Any, dtype: torch.dtype, opened: ExitStack
) -> StoredWeights | None:
    """Open the checkpoint of a model, whose `skeleton` is on the meta device with this dtype.

    None if it is not clear how its tensors become those of the model: then transformers has to load
    it. The files stay open with `opened`. Raises Unsuitable, OSError.
    """
    state: dict[str, Tensor] = skeleton.state_dict(keep_vars=True)
    dtypes = {name: _dtype_of(skeleton, name, tensor, dtype) for name, tensor in state.items()}
    places = _find_places(skeleton, state, dtypes, _open_files(source, opened))
    if places is None:
        return None
    sizes = {name: tensor.numel() for name, tensor in state.items()}
    found = StoredWeights(places, dtypes, sizes)
    for names in names_by_tensor(state).values():
        here = [name for name in names if name in places]
        if not here:
            return None  # a buffer that the model makes itself, or nothing at all: it will say so
        for name in names:
            if name not in places or (name != here[0] and _is_equal(found, name, here[0])):
                found.aliases[name] = here[0]
    return found


def names_by_tensor(state: dict[str, Tensor]) -> dict[int, list[str]]:
    """Group the names of a state (kept as variables): tied ones are one object."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return names


def stored_dtype(source: Path) -> torch.dtype:
    """Return the dtype of a folder's first floating tensor. Raises Unsuitable, OSError."""
    with ExitStack() as opened:
        for file in _open_files(source, opened):
            for key in sorted(file.keys()):
                tensor: Tensor = (
                    file.get_slice(key)[:0] if _rank(file, key) else file.get_tensor(key)
                )
                if tensor.is_floating_point():
                    return tensor.dtype
    return torch.float32


def _rank(file: Any, key: str) -> int:
    return len(file.get_slice(key).get_shape())


def _open_files(source: Path, opened: ExitStack) -> list[Any]:
    files: list[Any] = []
    for path in checkpoint_files(source):
        try:
            files.append(opened.enter_context(safe_open(path, framework="pt")))
        except SafetensorError as error:
            raise Unsuitable(f"{path.name} is no safetensors file: {error}") from error
    return files


def _find_places(
    skeleton: Any, state: dict[str, Tensor], dtypes: dict[str, torch.dtype], files: list[Any]
) -> dict[str, _Place] | None:
    """Find each tensor by the name that transformers would give it; None if that is not clear.

    `dtypes` gets those of tensors that are made of others.
    """
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    places: dict[str, _Place] = {}
    conversions: dict[str, _Conversion] = {}
    stored = [_Stored(file, key) for file in files for key in file.keys()]  # noqa: SIM118
    for place in sorted(stored, key=_order):
        name, pattern = rename_source_key(
            place.key, renamings, converters, skeleton.base_model_prefix, state
        )
        if (name not in state and place.key in state) or name in places:
            return None
        if name not in state:
            continue  # from_pretrained leaves it out as well
        if pattern is None:
            _check_shape(place.key, place.outline(), state[name])
            places[name] = place
            continue
        fresh = _Conversion(by_pattern[pattern], name, skeleton, dtypes[name])
        conversions.setdefault(name, fresh).sources.append((pattern, place))
    cache: dict[str, dict[str, Tensor]] = {}
    for conversion in conversions.values():
        try:
            outline = conversion.outline()
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            return None  # not with shapes alone
        if not outline.keys() <= state.keys() - places.keys():
            return None
        for name, tensor in outline.items():
            _check_shape(name, tensor, state[name])
            places[name], dtypes[name] = _Made(conversion, name, cache), tensor.dtype
    return places


def _order(place: _Stored) -> Any:
    """Return what transformers sorts by: of experts, their numbers."""
    return dot_natural_key(place.key)


def _check_shape(key: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        shapes = f"{list(found.shape)}; the configuration wants {list(wanted.shape)}"
        raise Unsuitable(f"{key} is {shapes}")


def _dtype_of(skeleton: Any, name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return what from_pretrained makes of it: some families keep some tensors in float32."""
    kept: set[str] = set()
    if dtype in HALF:
        kept |= set(skeleton._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(skeleton._keep_in_fp32_modules or ())
    if any(re.search(pattern.replace("*", ".*"), name) for pattern in kept):
        return torch.float32
    return tensor.dtype


def _is_equal(weights: StoredWeights, a: str, b: str) -> bool:
    return torch.equal(weights.read(a), weights.read(b))
