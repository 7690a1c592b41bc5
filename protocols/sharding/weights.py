# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# (transformers and safetensors are annotated in part; the tests compare with from_pretrained)
"""Where the tensors of a model come from that is being cut: read one by one from its safetensors
files, or, if transformers has to convert them first, from the loaded model.

Both give each tensor in the dtype in which `from_pretrained(dtype=…)` would have it, bit for bit.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

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


@dataclass
class _Place:
    file: Any  # an open safetensors file
    key: str


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
        place = self.places[self.first_name(name)]
        tensor: Tensor = place.file.get_tensor(place.key)
        return tensor.to(self.dtypes[name]).contiguous()


def open_weights(
    source: Path, skeleton: Any, dtype: torch.dtype, opened: ExitStack
) -> StoredWeights | None:
    """Open the checkpoint of a model, whose `skeleton` is on the meta device with this dtype.

    None if its tensors are not those of the model: then transformers has to load and convert them.
    The files stay open with `opened`. Raises Unsuitable, OSError.
    """
    state: dict[str, Tensor] = skeleton.state_dict(keep_vars=True)
    places = _find_places(skeleton, state, _open_files(source, opened))
    if places is None:
        return None
    found = StoredWeights(
        places,
        {name: _dtype_of(skeleton, name, tensor, dtype) for name, tensor in state.items()},
        {name: tensor.numel() for name, tensor in state.items()},
    )
    for names in names_by_tensor(state).values():
        here = [name for name in names if name in places]
        if not here:
            return None  # a buffer that the model makes itself, or nothing at all: it will say so
        for name in names:
            if name not in places or (name != here[0] and _is_equal(places[name], places[here[0]])):
                found.aliases.setdefault(name, here[0])
    found.aliases = {alias: name for alias, name in found.aliases.items() if alias != name}
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
    skeleton: Any, state: dict[str, Tensor], files: Iterable[Any]
) -> dict[str, _Place] | None:
    """Find each tensor by the name that transformers would give it; None if it would convert it."""
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    places: dict[str, _Place] = {}
    for file in files:
        for key in sorted(file.keys()):
            name, conversion = rename_source_key(
                key, renamings, converters, skeleton.base_model_prefix, state
            )
            if conversion is not None or (name not in state and key in state) or name in places:
                return None
            if name not in state:
                continue  # from_pretrained leaves it out as well
            shape, wanted = file.get_slice(key).get_shape(), list(state[name].shape)
            if shape != wanted:
                raise Unsuitable(f"{key} is {shape}; the configuration wants {wanted}")
            places[name] = _Place(file, key)
    return places


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


def _is_equal(a: _Place, b: _Place) -> bool:
    return torch.equal(a.file.get_tensor(a.key), b.file.get_tensor(b.key))
