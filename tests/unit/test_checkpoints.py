"""Checkpoints: whole or not at all, the one before as a fallback, written when it is time."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest
import trio
from safetensors.numpy import load_file
from trio.testing import MockClock

from node.checkpoints import (
    Checkpoints,
    Layout,
    Shape,
    Slice,
    export_state,
    lane_path,
    load_checkpoint,
    map_checkpoint,
    save_checkpoint,
    save_layout,
)
from node.tensor_file import BadFile, NamedTensor, Vector, backup_of, write_tensors
from protocols.modelsync import wire
from protocols.modelsync.state import CHUNK_ELEMENTS, State, state_root
from protocols.modelsync.wire import Certificate
from tests.sim.training import in_place
from wire.errors import NotFound, UsageError
from wire.ids import Signer

T = TypeVar("T")
ELEMENTS = CHUNK_ELEMENTS + 1000
ME = Signer(b"m" * 32)


def certificate(round_: int, *, lane: int = 0, run: str = "run") -> Certificate:
    body = Certificate(
        run, round_, 0, ME.peer, [ME.peer], [ME.peer], [1.0], "int8", bytes(32), bytes(32), lane
    )
    signature = ME.sign(wire.CERTIFICATE_TAG, body.body())
    return msgspec.structs.replace(body, signatures=(signature,))


def state(round_: int, *, lane: int = 0, elements: int = ELEMENTS) -> State:
    random = np.random.default_rng((round_, lane))
    vector = random.standard_normal(elements, dtype=np.float32)
    before = certificate(round_ - 1, lane=lane) if round_ else None
    return State(round_, state_root(vector), vector, before)


def test_what_is_saved_comes_back_with_its_certificate(tmp_path: Path) -> None:
    saved, target = state(5, lane=3), np.zeros(ELEMENTS, np.float32)
    save_checkpoint(tmp_path, 3, saved)
    found = load_checkpoint(tmp_path, "run", 3, target)
    assert found is not None
    assert (found.round, found.root, found.certificate) == (5, saved.root, saved.certificate)
    assert state_root(target) == saved.root
    assert np.array_equal(map_checkpoint(tmp_path, 3), saved.vector)
    assert load_checkpoint(tmp_path, "run", 4, target) is None


def test_of_a_torn_file_nothing_is_taken_and_the_one_before_is(tmp_path: Path) -> None:
    for round_ in (5, 6):
        save_checkpoint(tmp_path, 0, state(round_))
    path, target = lane_path(tmp_path, 0), np.zeros(ELEMENTS, np.float32)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    found = load_checkpoint(tmp_path, "run", 0, target)
    assert found is not None
    assert found.round == 5
    assert state_root(target) == found.root == state(5).root


def test_after_a_crash_between_two_renames_the_one_before_is_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, state(5))
    lane_path(tmp_path, 0).rename(backup_of(lane_path(tmp_path, 0)))
    found = load_checkpoint(tmp_path, "run", 0, np.zeros(ELEMENTS, np.float32))
    assert found is not None
    assert found.round == 5


def test_if_no_file_can_be_used_the_error_says_what_to_do_and_the_target_is_unchanged(
    tmp_path: Path,
) -> None:
    path, target = lane_path(tmp_path, 0), np.ones(ELEMENTS, np.float32)
    save_checkpoint(tmp_path, 0, state(5))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadFile, match="no checkpoint of run run") as caught:
        load_checkpoint(tmp_path, "run", 0, target)
    assert "move" in caught.value.hint
    assert np.all(target == 1)


@pytest.mark.parametrize(
    ("round_", "found"),
    [
        (5, None),
        (5, certificate(5)),
        (5, certificate(4, lane=1)),
        (5, certificate(4, run="other")),
        (0, certificate(0)),
        (5, msgspec.structs.replace(certificate(4), result=b"x" * 32)),
        (wire.ROUNDS_MAX + 1, certificate(4)),
    ],
)
def test_a_state_without_the_certificate_of_the_round_before_is_not_taken(
    tmp_path: Path, round_: int, found: Certificate | None
) -> None:
    good = state(5)
    save_checkpoint(tmp_path, 0, State(round_, good.root, good.vector, found))
    with pytest.raises(BadFile):
        load_checkpoint(tmp_path, "run", 0, np.zeros(ELEMENTS, np.float32))


def test_a_checkpoint_of_another_size_is_not_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, state(5))
    with pytest.raises(BadFile, match="elements"):
        load_checkpoint(tmp_path, "run", 0, np.zeros(ELEMENTS - 1, np.float32))


@pytest.mark.parametrize("texts", [{}, {"round": "x"}, {"round": "0", "root": "zz"},
                                   {"round": "1", "root": "", "certificate": "ff"}])  # fmt: skip
def test_texts_that_are_no_checkpoint_are_refused(tmp_path: Path, texts: dict[str, str]) -> None:
    path = lane_path(tmp_path, 0)
    path.parent.mkdir()
    write_tensors(path, [NamedTensor("state", (2,), np.zeros(2, np.float32))], texts)
    with pytest.raises(BadFile):
        load_checkpoint(tmp_path, "run", 0, np.zeros(2, np.float32))


def test_a_state_that_changed_while_it_was_copied_is_not_written(tmp_path: Path) -> None:
    torn = state(5)
    torn.vector[7] += 1
    with pytest.raises(BadFile, match="changed"):
        save_checkpoint(tmp_path, 0, torn)
    assert load_checkpoint(tmp_path, "run", 0, np.zeros(ELEMENTS, np.float32)) is None


async def test_a_lane_is_written_at_most_so_often_and_the_latest_state_of_it(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    checkpoints = Checkpoints(tmp_path, off_loop=in_place, every_s=60)
    await nursery.start(checkpoints.run)

    async def rounds_on_disk(after_s: float) -> list[int]:
        await trio.sleep(after_s)
        found = [load_checkpoint(tmp_path, "run", lane, target) for lane in (0, 1)]
        return [checkpoint.round if checkpoint else -1 for checkpoint in found]

    target: Vector = np.zeros(10, np.float32)
    checkpoints.offer(0, state(1, elements=10))
    assert await rounds_on_disk(1) == [1, -1]
    checkpoints.offer(0, state(2, elements=10))
    checkpoints.offer(1, state(1, lane=1, elements=10))
    assert await rounds_on_disk(50) == [1, 1]
    checkpoints.offer(0, state(3, elements=10))
    assert await rounds_on_disk(8) == [1, 1]
    assert await rounds_on_disk(2) == [3, 1]
    checkpoints.offer(1, state(4, lane=1, elements=10))
    await checkpoints.flush()
    assert await rounds_on_disk(0) == [3, 4]


async def test_a_trainer_that_is_faster_than_the_disk_is_copied_from_then_on(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    one, is_slow = state(1, elements=10), True

    async def disk(work: Callable[[], T]) -> T:
        if is_slow:
            one.vector[0] += 1  # the announce after next
        return work()

    checkpoints = Checkpoints(tmp_path, off_loop=disk, every_s=60)
    await nursery.start(checkpoints.run)
    checkpoints.offer(0, one)
    await trio.sleep(1)
    target = np.zeros(10, np.float32)
    assert load_checkpoint(tmp_path, "run", 0, target) is None
    is_slow = False
    checkpoints.offer(0, two := state(2, elements=10))
    await trio.sleep(61)
    assert load_checkpoint(tmp_path, "run", 0, target) is not None
    assert np.array_equal(target, two.vector)


async def test_a_flush_also_waits_for_what_is_being_written(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async def slow_disk(work: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):  # as a thread that cannot be stopped
            await trio.sleep(5)
        return work()

    checkpoints = Checkpoints(tmp_path, off_loop=slow_disk, every_s=60)
    await nursery.start(checkpoints.run)
    checkpoints.offer(0, state(1, elements=10))
    await trio.sleep(1)
    await checkpoints.flush()
    assert load_checkpoint(tmp_path, "run", 0, np.zeros(10, np.float32)) is not None


async def test_a_folder_that_cannot_be_written_costs_a_checkpoint_and_nothing_else(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    (tmp_path / "file").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path / "file", off_loop=in_place, every_s=60)
    await nursery.start(checkpoints.run)
    checkpoints.offer(0, state(1, elements=10))
    await trio.sleep(1)


def test_a_model_is_exported_with_its_own_names_and_shapes(tmp_path: Path) -> None:
    model = np.arange(20, dtype=np.float32)
    tensors = [Shape("layer.weight", [3, 4]), Shape("layer.bias", [8])]
    save_layout(tmp_path, Layout(tensors, [Slice(0, 10), Slice(10, 20)]))
    for lane, (start, stop) in enumerate(((0, 10), (10, 20))):
        vector = np.concatenate([model[start:stop], np.full(10, 9, np.float32)])  # and momentum
        before = certificate(lane, lane=lane)
        save_checkpoint(tmp_path, lane, State(lane + 1, state_root(vector), vector, before))
    exported = export_state(tmp_path, "run", tmp_path / "model.safetensors")
    found = load_file(exported.path)
    assert np.array_equal(found["layer.weight"], model[:12].reshape(3, 4))
    assert np.array_equal(found["layer.bias"], model[12:])
    assert (exported.rounds, exported.tensors) == ([1, 2], 2)


def test_without_checkpoints_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        export_state(tmp_path, "run", tmp_path / "x")
    save_layout(tmp_path, Layout([Shape("a", [10])], [Slice(0, 10)]))
    with pytest.raises(NotFound, match="lane 0"):
        export_state(tmp_path, "run", tmp_path / "x")


@pytest.mark.parametrize("lanes", [[Slice(0, 5), Slice(6, 10)], [Slice(0, 9)], [Slice(0, 11)],
                                   [Slice(1, 10)]])  # fmt: skip
def test_a_layout_that_contradicts_itself_is_refused(tmp_path: Path, lanes: list[Slice]) -> None:
    with pytest.raises(UsageError):
        save_layout(tmp_path, Layout([Shape("a", [10])], lanes))
