"""Memory that a trainer shares with its daemon: both see it, nobody else does, nothing is left."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from node.segments import map_segment, unlink_segment
from shoal.shared import SharedVector
from shoal.trainer import flatten, load_vector
from wire.errors import UsageError


def test_both_sides_see_the_same_numbers_also_after_the_name_is_gone() -> None:
    ours = SharedVector(1000)
    theirs = map_segment(ours.name, 1000)
    ours.unlink()
    assert not Path("/dev/shm", ours.name).exists()
    ours.array[:] = np.arange(1000)
    assert theirs[999] == 999
    theirs[0] = 5
    assert ours.array[0] == 5
    del ours
    assert theirs[0] == 5


def test_it_is_private_and_can_be_unlinked() -> None:
    vector = SharedVector(10)
    path = Path("/dev/shm", vector.name)
    assert path.stat().st_mode & 0o777 == 0o600
    vector.unlink()
    assert not path.exists()


def test_a_view_outlives_the_vector_and_its_name() -> None:
    vector = SharedVector(10)
    view = vector.array[2:]
    unlink_segment(vector.name)
    unlink_segment(vector.name)
    vector.unlink()
    del vector
    view[0] = 1
    assert view[0] == 1


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "shoal-xyz", "shoal-", "psm_1234abcd"])
def test_only_a_trainers_segment_is_mapped(name: str) -> None:
    with pytest.raises(UsageError):
        map_segment(name, 1)


def test_a_segment_that_is_missing_too_small_or_readable_by_others_is_refused() -> None:
    with pytest.raises(UsageError, match="No such file"):
        map_segment("shoal-0123456789abcdef", 1)
    vector = SharedVector(10)
    with pytest.raises(UsageError, match="has 40 B, not 40000 B"):
        map_segment(vector.name, 10_000)
    os.chmod(f"/dev/shm/{vector.name}", 0o644)
    with pytest.raises(UsageError, match="ours alone"):
        map_segment(vector.name, 10)
    vector.unlink()


def test_a_link_in_place_of_a_segment_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(bytes(400))
    target.chmod(0o600)
    link = Path("/dev/shm/shoal-00000000feedbeef")
    link.symlink_to(target)
    try:
        with pytest.raises(UsageError):
            map_segment(link.name, 10)
    finally:
        link.unlink()


def test_a_model_is_flattened_and_loaded_back_without_what_is_frozen() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    frozen = model[0].bias
    frozen.requires_grad_(False)
    kept = frozen.detach().clone()
    vector = flatten(model)
    assert vector.dtype == np.float32
    assert vector.shape == (12 + 8 + 2,)
    load_vector(model, vector + 1)
    assert flatten(model).tobytes() == (vector + 1).tobytes()
    assert torch.equal(frozen, kept)


def test_tied_parameters_are_sent_once() -> None:
    layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(2)]
    model = torch.nn.Sequential(*layers)
    model[1].weight = model[0].weight
    assert len(flatten(model)) == 16
