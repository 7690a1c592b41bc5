"""A model's trainable parameters as one flat float32 vector, in and out of host memory.

Parameters of bfloat16 or float16 models are averaged in float32. On CUDA the host side is pinned:
a read copies to a tensor on the device at once, and from there on a stream of its own, so that the
next step may begin before the host has the numbers; a write does not wait for the device either.
Sharded parameters (FSDP2's DTensor) are gathered to read and cut again to write: then every process
of the group must call, in the same order.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# torch's annotations are incomplete; what it hands us ends in numpy arrays at once.

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from shoal.errors import ClientError
from shoal.learn.strategy import Part, Vector


class TrainingError(ClientError):
    """The model or the settings do not fit the run."""


class Staging:
    """Reads and writes slices of the flat vector; the order is that of `model.parameters()`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        _reshard(model)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise TrainingError("the model has no trainable parameters")
        self.parts: list[Part] = []
        start = 0
        for name, parameter in named:
            stop = start + parameter.numel()
            shape = tuple(parameter.shape)
            self.parts.append(Part(name.removeprefix("module."), shape, start, stop))
            start = stop
        self.elements = start
        self._parameters = [parameter for _, parameter in named]
        self.is_sharded = any(isinstance(p, DTensor) for p in self._parameters)
        self._device = self._parameters[0].device
        is_cuda = self._device.type == "cuda"
        self._side = torch.cuda.Stream(self._device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._in = torch.empty(start, dtype=torch.float32, pin_memory=is_cuda)
        self._out = torch.empty(start, dtype=torch.float32, pin_memory=True) if is_cuda else None
        self._written = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def read(self, start: int, stop: int) -> Callable[[], Vector]:
        """Copy elements as they are now; the result waits for the copy and returns it.

        It may be called in another thread, and is valid until the same elements are read again.
        Raises TrainingError if the model has changed its shape.
        """
        host = self._in[start:stop]
        side = self._side
        if side is None:
            self._gather(start, stop, host)
            return host.numpy
        flat = torch.empty(stop - start, dtype=torch.float32, device=self._device)
        self._gather(start, stop, flat)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            host.copy_(flat, non_blocking=True)
            copied = side.record_event()
        flat.record_stream(side)

        def wait() -> Vector:
            copied.synchronize()
            return host.numpy()

        return wait

    def write(self, start: int, values: Vector) -> None:
        """Set elements from `start` on. `values` may change after the call."""
        flat = torch.from_numpy(values)
        if self._out is not None and self._written is not None:
            self._written.synchronize()  # the device may still read what was written last
            host = self._out[start : start + len(values)]
            host.copy_(flat)
            flat = host.to(self._device, non_blocking=True)
        self._scatter(start, flat)
        if self._written is not None:
            self._written.record()

    def finish(self) -> None:
        """Wait until the device has done what it was given."""
        if self._side is not None:
            torch.cuda.synchronize(self._device)

    def scratch(self, elements: int) -> Vector:
        """Return host memory for values that are about to be written; valid until a read."""
        return self._in[:elements].numpy()

    @torch.no_grad()
    def _gather(self, start: int, stop: int, flat: torch.Tensor) -> None:
        for parameter, inside, outside in self._pieces(start, stop):
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            flat[outside].copy_(full.detach().reshape(-1)[inside])

    @torch.no_grad()
    def _scatter(self, start: int, flat: torch.Tensor) -> None:
        for parameter, inside, outside in self._pieces(start, start + len(flat)):
            if isinstance(parameter, DTensor):
                _set_shard(parameter, inside, flat[outside])
            elif parameter.is_contiguous():
                parameter.view(-1)[inside].copy_(flat[outside])
            else:
                full = parameter.reshape(-1)
                full[inside].copy_(flat[outside])
                parameter.copy_(full.view_as(parameter))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[torch.nn.Parameter, slice, slice]]:
        """Yield each parameter that overlaps, its elements, and where they are in the slice."""
        self._check()
        for parameter, part in zip(self._parameters, self.parts, strict=True):
            low, high = max(start, part.start), min(stop, part.stop)
            if low < high:
                inside = slice(low - part.start, high - part.start)
                yield parameter, inside, slice(low - start, high - start)

    def _check(self) -> None:
        if self.is_sharded:
            _reshard(self._model)
            return
        now = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        if now != self.elements:
            raise TrainingError(
                f"the model has {now} trainable parameters, it joined with {self.elements}"
            )


def _reshard(model: torch.nn.Module) -> None:
    """Let FSDP2 give back what it has gathered: its root stays gathered after a forward."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _set_shard(parameter: DTensor, inside: slice, piece: torch.Tensor) -> None:
    """Set a part of a sharded parameter; all processes have the same `piece`."""
    if inside.stop - inside.start == parameter.numel():
        full = piece.to(parameter.device, parameter.dtype)
    else:
        full = parameter.full_tensor().reshape(-1).clone()
        full[inside].copy_(piece)
    shape, mesh, places = parameter.shape, parameter.device_mesh, parameter.placements
    parameter.copy_(distribute_tensor(full.view(shape), mesh, places, src_data_rank=None))


def flatten(model: torch.nn.Module) -> Vector:
    """Copy a model's trainable parameters into one float32 vector, in the model's order."""
    staging = Staging(model)
    return staging.read(0, staging.elements)().copy()


def load_vector(model: torch.nn.Module, vector: Vector) -> None:
    """Copy a vector that `flatten` made into a model of the same shape."""
    Staging(model).write(0, np.ascontiguousarray(vector))
