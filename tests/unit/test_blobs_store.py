"""Objects on disk: whole or absent, named by their hash and by nothing else."""

import hashlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.blobs.store import BlobStore
from protocols.blobs.wire import (
    CHUNK_BYTES,
    CHUNKS_MAX,
    Manifest,
    cid_of,
    decode_manifest,
    hash_of,
    parse_cid,
)
from wire import codec
from wire.errors import BadMessage, NotFound, UsageError


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def put_blob(store: BlobStore, data: bytes) -> bytes:
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    manifest = Manifest(1, len(data), [store.put(piece) for piece in pieces])
    return store.put(codec.encode(manifest))


def test_an_object_is_a_file_named_by_its_hash(store: BlobStore, tmp_path: Path) -> None:
    name = hashlib.sha256(b"fish").hexdigest()
    assert store.put(b"fish").hex() == name
    assert (tmp_path / "blobs" / name[:2] / name[2:]).read_bytes() == b"fish"
    assert store.get(bytes.fromhex(name)) == b"fish"


def test_a_decayed_object_is_absent_from_then_on(store: BlobStore) -> None:
    hash_ = store.put(b"fish")
    store.path_of(hash_).write_bytes(b"fisH")
    assert store.has(hash_, 4)
    assert store.get(hash_) is None
    assert not store.has(hash_, 4)
    store.put(b"fish")
    assert store.get(hash_) == b"fish"


def test_a_truncated_object_is_not_there(store: BlobStore) -> None:
    hash_ = store.put(b"fish")
    store.path_of(hash_).write_bytes(b"fis")
    assert not store.has(hash_, 4)
    store.put(b"fish")
    assert store.get(hash_) == b"fish"


def test_what_was_not_asked_for_is_not_kept(store: BlobStore) -> None:
    assert not store.put_verified(hash_of(b"fish"), 4, b"fisH")
    assert not store.put_verified(hash_of(b"fish"), 5, b"fish")
    assert store.get(hash_of(b"fish")) is None
    assert store.put_verified(hash_of(b"fish"), 4, b"fish")
    assert store.put_verified(hash_of(b"sea"), None, b"sea")


def test_a_crash_leaves_nothing_that_counts(store: BlobStore, tmp_path: Path) -> None:
    left = tmp_path / "blobs" / "tmp" / "half"
    left.write_bytes(b"fi")
    again = BlobStore(tmp_path / "blobs")
    assert not left.exists()
    assert again.get(hash_of(b"fi")) is None


def test_a_failed_write_leaves_nothing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.put(b"fish")
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7])
def test_a_blob_reads_and_exports_as_it_was_put(
    store: BlobStore, tmp_path: Path, size: int
) -> None:
    data = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
    hash_ = put_blob(store, data)
    with store.open(hash_) as file:
        assert file.read() == data
        file.seek(max(0, size - 5))
        assert file.read(100) == data[max(0, size - 5) :]
        file.seek(size // 2)
        assert file.read(3) == data[size // 2 : size // 2 + 3]
    store.export(hash_, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "out"]


def test_an_incomplete_blob_is_neither_read_nor_exported(store: BlobStore, tmp_path: Path) -> None:
    hash_ = put_blob(store, b"fish")
    store.path_of(hash_of(b"fish")).unlink()
    assert not store.is_whole(hash_)
    with pytest.raises(NotFound, match="lacks 1 of its 1 chunks"):
        store.open(hash_)
    with pytest.raises(NotFound):
        store.export(hash_, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_chunk_is_not_a_blob(store: BlobStore) -> None:
    hash_ = store.put(b"fish")
    assert not store.is_whole(hash_)
    with pytest.raises(NotFound, match="is not a blob"):
        store.open(hash_)


@pytest.mark.parametrize(
    "text",
    ["", "..", "../" * 21 + "a", "/etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 63 + "\n",
     "a" * 63 + "\0", "٣" * 64, "ab" * 32 + "/.."],
)  # fmt: skip
def test_only_hex_digits_name_a_blob(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cid(text)


@given(st.text(max_size=70))
def test_any_text_is_a_cid_or_refused(text: str) -> None:
    try:
        hash_ = parse_cid(text)
    except UsageError:
        return
    assert cid_of(hash_) == text


def test_a_manifest_has_one_form() -> None:
    good = codec.encode(Manifest(1, 5, [bytes(32)]))
    assert good == msgpack.packb([1, 5, [bytes(32)]])
    assert decode_manifest(good).chunks == [bytes(32)]
    longer_integer = b"\x93\x01\xcd\x00\x05\x91\xc4\x20" + bytes(32)
    assert msgpack.unpackb(longer_integer) == msgpack.unpackb(good)
    with pytest.raises(BadMessage, match="canonical"):
        decode_manifest(longer_integer)


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(2, 5, [bytes(32)]),
        Manifest(1, 0, [bytes(32)]),
        Manifest(1, 5, []),
        Manifest(1, CHUNK_BYTES + 1, [bytes(32)]),
        Manifest(1, -1, []),
        Manifest(1, 5, [bytes(31)]),
        Manifest(1, (CHUNKS_MAX + 1) * CHUNK_BYTES, [bytes(32)] * (CHUNKS_MAX + 1)),
    ],
)
def test_an_inconsistent_manifest_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BadMessage):
        decode_manifest(codec.encode(manifest))


def test_the_largest_manifest_is_an_object() -> None:
    largest = Manifest(1, CHUNKS_MAX * CHUNK_BYTES, [bytes(32)] * CHUNKS_MAX)
    assert len(codec.encode(largest)) <= CHUNK_BYTES


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_bad(data: bytes) -> None:
    try:
        manifest = decode_manifest(data)
    except BadMessage:
        return
    assert codec.encode(manifest) == data
