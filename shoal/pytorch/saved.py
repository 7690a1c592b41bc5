"""What a trainer alone has, in a file: inner optimizer, error feedback, counters of steps.

HOME/runs/NAME/checkpoint/trainer-PEER.safetensors, written beside the daemon's checkpoint of the
run's state and replaced at once. It names the rounds of the lanes that it belongs to: error
feedback is taken back only for these; Adam's moments, which no replica has alike, also for others.
Under FSDP each process writes the shards that it has.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# torch's optimizers and safetensors are only partly annotated.

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from shoal.learn.strategy import Vector

OPTIMIZER, OWN = "optimizer.", "strategy."


@dataclass(frozen=True)
class Counters:
    """Where the replica was: the next round of each lane, and steps as the run counts them."""

    rounds: list[int]
    steps: int


def save(
    path: Path,
    counters: Counters,
    own: dict[str, Vector],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Write all of it, atomically. Raises OSError, also for a full disk."""
    tensors = {OWN + name: torch.from_numpy(vector) for name, vector in own.items()}
    if optimizer is not None:
        tensors |= {OPTIMIZER + name: tensor for name, tensor in _tensors_of(optimizer).items()}
    path.parent.mkdir(exist_ok=True, mode=0o700)
    partial = path.with_suffix(".partial")
    metadata = {"rounds": counters.rounds, "steps": counters.steps}
    try:
        save_file(tensors, partial, {"trainer": json.dumps(metadata)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, path)


def load(
    path: Path, optimizer: torch.optim.Optimizer | None
) -> tuple[Counters, dict[str, Vector]] | None:
    """Read what `save` wrote and put the optimizer's tensors back; None if there is no such file.

    Raises ValueError if it is of another model or damaged; then nothing was changed.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:  # mapped: tensors are read one by one
            said = json.loads((file.metadata() or {})["trainer"])
            counters = Counters([int(n) for n in said["rounds"]], int(said["steps"]))
            names = list(file.keys())
            own = {
                name.removeprefix(OWN): file.get_tensor(name).numpy()
                for name in names
                if name.startswith(OWN)
            }
            moments = {
                name.removeprefix(OPTIMIZER): file.get_tensor(name)
                for name in names
                if name.startswith(OPTIMIZER)
            }
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if optimizer is not None and moments:
        _put_back(optimizer, moments)
    return counters, own


def _tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Name every tensor of an optimizer's state: NUMBER.KEY. Plain numbers become tensors."""
    found: dict[str, torch.Tensor] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                found[f"{number}.{key}"] = _here(value).detach().cpu().contiguous()
            elif isinstance(value, int | float):
                found[f"{number}.{key}"] = torch.tensor(value, dtype=torch.float64)
    return found


def _put_back(optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    now = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in moments.items():
        number, _, key = name.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            raise ValueError(f"the optimizer has no parameter {number[:16]}")
        parameter = parameters[int(number)]
        if tensor.dim():
            if tensor.shape != _here(parameter).shape:
                raise ValueError(f"{name} has the shape of another model: {list(tensor.shape)}")
            if isinstance(parameter, DTensor):
                mesh, places = parameter.device_mesh, parameter.placements
                tensor = DTensor.from_local(
                    tensor.to(parameter.device),
                    mesh,
                    places,
                    shape=parameter.shape,  # shards may be of unequal size
                    stride=parameter.stride(),
                )
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": now["param_groups"]})


def _here(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
