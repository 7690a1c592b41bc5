"""Names, manifests and folders: one form each, and nothing is written outside of the target."""

import os
import random
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.blobs.adding import add_tree, export_tree
from protocols.blobs.index import Row, fresh_row
from protocols.blobs.manifest import (
    ENTRIES_MAX,
    Entry,
    File,
    Tree,
    check_path,
    decode_manifest,
    make_tree,
)
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import (
    CHUNK_BYTES,
    CHUNKS_MAX,
    MANIFEST_MAX,
    hash_in,
    hash_of,
    is_raw,
    manifest_cid,
    parse_cid,
    raw_cid,
)
from tests.unit.test_blobs_store import drive
from wire import codec
from wire.errors import BadMessage, UsageError

FISH = raw_cid(hash_of(b"fish"))
BIG = manifest_cid(b"big")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs")
    store.put_small(b"fish", is_root=True)
    return store


# --- names -----------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_a_name_tells_hash_and_kind(data: bytes) -> None:
    for make, is_chunk in ((raw_cid(hash_of(data)), True), (manifest_cid(data), False)):
        assert parse_cid(make) == make
        assert hash_in(make) == hash_of(data)
        assert is_raw(make) == is_chunk


@pytest.mark.parametrize(
    "text",
    ["", "..", "/etc/passwd", FISH.upper(), FISH[:-1], FISH + "a", FISH + "\n", FISH[:-1] + "\0",
     "b" + "a" * 58, "b" + "7" * 58, "z" + FISH[1:], FISH[:-1] + "b", "ab" * 32, "b" + "٣" * 58],
)  # fmt: skip
def test_nothing_else_is_a_name(text: str) -> None:
    with pytest.raises(UsageError, match="not a CID"):
        parse_cid(text)


@given(st.text("bafkreidgqzw234567", min_size=55, max_size=64))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        cid = parse_cid(text)
    except UsageError:
        return
    assert cid == text


# --- manifests -------------------------------------------------------------------------------


def test_a_manifest_has_one_form() -> None:
    good = codec.encode(File(CHUNK_BYTES + 1, bytes(64)))
    assert good == msgpack.packb(["file", CHUNK_BYTES + 1, bytes(64)])
    assert decode_manifest(good) == File(CHUNK_BYTES + 1, bytes(64))
    longer_integer = good.replace(b"\xce\x00\x10\x00\x01", b"\xcf\x00\x00\x00\x00\x00\x10\x00\x01")
    assert msgpack.unpackb(longer_integer) == msgpack.unpackb(good)
    with pytest.raises(BadMessage, match="canonical"):
        decode_manifest(longer_integer)


@pytest.mark.parametrize(
    "file",
    [
        File(0, b""),
        File(CHUNK_BYTES, bytes(32)),
        File(CHUNK_BYTES + 1, bytes(32)),
        File(CHUNK_BYTES + 1, bytes(96)),
        File(CHUNK_BYTES + 1, bytes(63)),
        File(CHUNKS_MAX * CHUNK_BYTES + 1, bytes(32 * CHUNKS_MAX)),
    ],
)
def test_an_inconsistent_file_is_refused(file: File) -> None:
    with pytest.raises(BadMessage):
        decode_manifest(codec.encode(file))


def test_the_largest_file_fits() -> None:
    data = codec.encode(File(CHUNKS_MAX * CHUNK_BYTES, bytes(32 * CHUNKS_MAX)))
    assert len(data) <= MANIFEST_MAX
    decode_manifest(data)


def test_a_tree_as_another_program_writes_it() -> None:
    entry = ["dir/run", str(FISH), 4, True]
    data = msgpack.packb(["tree", [entry]])
    assert decode_manifest(data) == Tree([Entry("dir/run", FISH, 4, True)])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_bad(data: bytes) -> None:
    try:
        manifest = decode_manifest(data)
    except BadMessage:
        return
    assert codec.encode(manifest) == data


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["b", "a"], "order"),
        (["a", "a"], "order"),
        (["a", "a/b"], "a file and a folder"),
        (["A", "a"], "same name"),
        (["D/x", "d/y"], "same name"),
        (["e\u0301", "\u00e9"], "same name"),  # decomposed and composed
    ],
)
def test_paths_that_clash_are_refused(paths: list[str], reason: str) -> None:
    tree = Tree([Entry(path, FISH, 4, False) for path in paths])
    with pytest.raises(BadMessage, match=reason):
        decode_manifest(codec.encode(tree))


def test_an_entry_has_the_name_of_its_size() -> None:
    for cid, size in ((FISH, CHUNK_BYTES + 1), (BIG, 5)):
        with pytest.raises(BadMessage, match="another size"):
            decode_manifest(codec.encode(Tree([Entry("a", cid, size, False)])))


def test_a_tree_is_bounded() -> None:
    entries = [Entry(f"{number:06}", FISH, 4, False) for number in range(ENTRIES_MAX)]
    data = codec.encode(make_tree(entries))
    assert len(decode_manifest(data).entries) == ENTRIES_MAX  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="up to 30000 files"):
        make_tree([*entries, Entry("x", FISH, 4, False)])
    with pytest.raises(UsageError, match="too long together"):
        make_tree([Entry(f"{n:06}" + "x" * 200, FISH, 4, False) for n in range(ENTRIES_MAX)])


# --- hostile names ---------------------------------------------------------------------------

PARTS = (
    "..", ".", "", "/", "\0", "\\", "C:", "~", "-rf", "a", "b", "é", "\u202e", "\n", "\x1b[2J",
    "x" * 255, "x" * 256, "ü" * 128, "con", "$HOME", "*", " ", "out", "link",
)  # fmt: skip


def hostile_names() -> list[str]:
    dice = random.Random(5)
    fixed = [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "..",
        ".",
        "",
        "a//b",
        "a/",
        "/a",
        "link/x",
        "a\0b",
    ]
    made = ["/".join(dice.choices(PARTS, k=dice.randint(1, 5))) for _ in range(10_000)]
    return fixed + made


def test_ten_thousand_hostile_names_write_nothing_outside(store: BlobStore, tmp_path: Path) -> None:
    """Each is put into a manifest as a hostile peer would, past our own checks."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    passed = list[bytes]()
    for name in hostile_names():
        data = msgpack.packb(["tree", [[name, str(FISH), 4, False]]])
        try:
            decode_manifest(data)
        except BadMessage:
            continue
        passed.append(data)
    assert 1000 < len(passed) < 5000
    for number, data in enumerate(passed[:: len(passed) // 200]):  # each costs a few syncs
        cid = manifest_cid(data)
        store.put_manifest(data, fresh_row(cid, 0, is_root=True))
        out = target / f"out{number}"
        drive(_none(export_tree(store, cid, out, is_fresh=True)))
        inside = [path for path in out.rglob("*") if path.is_file()]
        assert [path.read_bytes() for path in inside] == [b"fish"]
        assert inside[0].resolve().is_relative_to(out.resolve())
        shutil.rmtree(out)
        store.space.remove(cid)
    assert sorted(tmp_path.rglob("*")) == before


def _none(steps: Iterator[int]) -> Generator[int, None, None]:
    yield from steps


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_a_good_path_stays_below(path: str) -> None:
    try:
        check_path(path)
    except BadMessage:
        return
    assert os.path.normpath(os.path.join("/base", path)) == f"/base/{path}"
    assert path.isprintable()


# --- folders ---------------------------------------------------------------------------------


def make(root: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_the_same_folder_has_the_same_name_whatever_its_own(
    store: BlobStore, tmp_path: Path
) -> None:
    files = {"a": b"1", "sub__b": b"2", "sub__c": b"3"}
    one = drive(add_tree(store, make(tmp_path / "one", **files), name="one"))
    two = drive(add_tree(store, make(tmp_path / "two", **dict(reversed(files.items())))))
    assert one.cid == two.cid
    (tmp_path / "two" / "a").chmod(0o755)
    assert drive(add_tree(store, tmp_path / "two")).cid != one.cid
    (tmp_path / "empty").mkdir()
    assert drive(add_tree(store, tmp_path / "empty")).size_bytes == 0


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: (root / "link").symlink_to("/etc/passwd"), "it is a link"),
        (lambda root: (root / "link").symlink_to("."), "it is a link"),
        (lambda root: os.mkfifo(root / "pipe"), "neither file nor folder"),
        (lambda root: (root / "A").write_bytes(b""), "same name"),
        (lambda root: (root / "new\nline").write_bytes(b""), "unsafe path"),
        (lambda root: Path(os.fsdecode(bytes(root) + b"/\xff")).write_bytes(b""), "not UTF-8"),
    ],
)
def test_what_cannot_be_in_a_tree_is_named(
    store: BlobStore, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    root = make(tmp_path / "in", a=b"1")
    spoil(root)
    with pytest.raises(UsageError, match=reason):
        drive(add_tree(store, root))


def test_a_folder_is_written_only_where_nothing_is(store: BlobStore, tmp_path: Path) -> None:
    row: Row = drive(add_tree(store, make(tmp_path / "in", a=b"1", sub__b=b"2")))
    make(tmp_path / "taken", mine=b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in ("taken", "link"):
        with pytest.raises(UsageError, match=r"exists|in the way"):
            drive(_none(export_tree(store, row.cid, tmp_path / path, is_fresh=True)))
    (tmp_path / "empty").mkdir()
    drive(_none(export_tree(store, row.cid, tmp_path / "empty", is_fresh=True)))
    assert (tmp_path / "empty" / "sub" / "b").read_bytes() == b"2"
    assert not (tmp_path / "elsewhere").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_folder_by_reference_has_no_second_copy(store: BlobStore, tmp_path: Path) -> None:
    root = make(tmp_path / "in", a=b"1" * 1000, sub__b=b"2" * 3 * CHUNK_BYTES)
    before = {path.name for path in store.data.iterdir()}
    row = drive(add_tree(store, root, mode="reference"))
    assert {path.name for path in store.data.iterdir()} == before
    assert store.is_whole(row.cid)
    (root / "a").write_bytes(b"3" * 1000)
    assert not store.is_whole(row.cid)
