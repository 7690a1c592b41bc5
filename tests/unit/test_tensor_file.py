"""Our files of tensors: as the library of the format reads and writes them; nothing hostile in."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from node.tensor_file import BadFile, NamedTensor, backup_of, find_tensor, write_tensors

VECTOR = np.arange(12, dtype=np.float32)


def written(path: Path) -> Path:
    tensors = [NamedTensor("a.weight", (3, 4), VECTOR), NamedTensor("b", (), VECTOR[:1])]
    write_tensors(path, tensors, {"round": "7"})
    return path


def test_the_library_of_the_format_reads_what_we_write(tmp_path: Path) -> None:
    found = load_file(written(tmp_path / "x.safetensors"))
    assert set(found) == {"a.weight", "b"}
    assert np.array_equal(found["a.weight"], VECTOR.reshape(3, 4))
    assert found["b"].shape == ()


def test_we_read_what_the_library_of_the_format_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"one": VECTOR, "two": VECTOR[:5] + 1}, path, {"key": "text"})
    found, target = find_tensor(path, "two"), np.zeros(5, np.float32)
    found.read_into(target)
    assert np.array_equal(target, VECTOR[:5] + 1)
    assert np.array_equal(find_tensor(path, "one").mapped(), VECTOR)
    assert found.metadata == {"key": "text"}


def test_the_file_before_stays_as_backup_and_nothing_unfinished_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for value in (1.0, 2.0):
        tensor = NamedTensor("t", (3,), np.full(3, value, np.float32))
        write_tensors(path, [tensor], {}, backup=True)
    assert find_tensor(path, "t").mapped()[0] == 2.0
    assert find_tensor(backup_of(path), "t").mapped()[0] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors", "x.safetensors.bak"]


def raw(head: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return (len(head) if length is None else length).to_bytes(8, "little") + head + body


def entry(**changes: object) -> bytes:
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return json.dumps({"t": fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        raw(b"{}"),
        raw(entry(), bytes(7)),
        raw(entry(), bytes(8), length=1 << 40),
        raw(entry(dtype="F64"), bytes(8)),
        raw(entry(shape=[3]), bytes(16)),
        raw(entry(shape=[-1]), bytes(8)),
        raw(entry(shape=[1] * 17 + [2]), bytes(8)),
        raw(entry(data_offsets=[8, 0]), bytes(8)),
        raw(entry(data_offsets=[1 << 50, (1 << 50) + 8]), bytes(8)),
        raw(b'{"__metadata__": {"a": 1}, ' + entry()[1:], bytes(8)),
        raw(b"[" * 100_000, bytes(8)),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadFile):
        find_tensor(path, "t")


def test_a_file_that_is_not_there_is_not_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_tensor(tmp_path / "none", "t")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(at=st.integers(0, 160), bits=st.integers(1, 255), cut=st.integers(0, 200))
def test_damage_anywhere_is_found_or_harmless(tmp_path: Path, at: int, bits: int, cut: int) -> None:
    data = bytearray(written(tmp_path / "x.safetensors").read_bytes())
    data[min(at, len(data) - 1)] ^= bits
    path = tmp_path / "y.safetensors"
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        found = find_tensor(path, "a.weight")
    except BadFile:
        return
    target = np.zeros(found.elements, np.float32)
    found.read_into(target)
    assert found.offset + 4 * found.elements <= len(data)
