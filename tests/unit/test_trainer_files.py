"""What a trainer alone keeps: written whole or not at all, and read back as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.learn_torch import AccumAdamW
from shoal.pytorch.saved import Counters, load, save

Kind = type[torch.optim.AdamW] | type[AccumAdamW]


def trained(kind: Kind, steps: int) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = kind([weight])
    for step in range(steps):
        weight.grad = torch.full_like(weight, 1.0 + step)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, AccumAdamW])
def test_an_optimizer_goes_on_as_if_nothing_had_been(tmp_path: Path, kind: Kind) -> None:
    path, own = tmp_path / "trainer-x.safetensors", {"residual-000": np.arange(3, dtype="f4")}
    before, after = trained(kind, 5), trained(kind, 0)
    save(path, Counters([3, 4], 17), own, before)
    found = load(path, after)
    assert found is not None
    assert found[0] == Counters([3, 4], 17)
    assert found[1]["residual-000"].tolist() == [0, 1, 2]
    moved: list[torch.Tensor] = []
    for optimizer in (before, after):
        parameter = optimizer.param_groups[0]["params"][0]
        start = parameter.detach().clone()
        parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
        moved.append(parameter.detach() - start)
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-7)


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    """Which the trainer survives: as a full disk."""
    path = tmp_path / "trainer-x.safetensors"
    path.with_suffix(".partial").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        save(path, Counters([0], 0), {}, trained(torch.optim.AdamW, 1))
