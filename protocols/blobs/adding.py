"""From files and folders to blobs, and back. Blocking, in steps: each generator yields the bytes
done so far, so that whoever drives it on a thread can show progress, and stop.

What is written outside of the store is a new file or a new folder that appears when it is whole:
in a new folder there is no link of somebody else's that a path could follow.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from protocols.blobs.files import DiskError, open_source, read_chunk, sync_file, write_at
from protocols.blobs.index import Row, fresh_row
from protocols.blobs.manifest import (
    ENTRIES_MAX,
    PATH_MAX,
    SIZE_MAX,
    Entry,
    File,
    Tree,
    check_path,
    make_tree,
)
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import CHUNK_BYTES, Cid, hash_of, manifest_cid, raw_cid
from wire import codec
from wire.errors import BadMessage, NotFound, UsageError

STEP_CHUNKS = 8  # hashed at a time: 8 MiB, 10 ms
FOLDERS_MAX = 10_000  # looked into for one tree

Mode = Literal["copy", "reference", "take"]
Adding = Generator[int, None, Row]


def add_file(
    store: BlobStore,
    path: Path,
    *,
    mode: Mode = "copy",
    name: str = "",
    is_root: bool = True,
    pin: bool = False,
    follow: bool = True,
) -> Adding:
    """Make a blob of a file: a copy of it, a reference to it, or (take) the file itself, which
    the caller gives away. Raises UsageError, QuotaError or DiskError.
    """
    fd, found = open_source(path, follow=follow)
    scratch: Path | None = None
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        if found.st_size > SIZE_MAX:
            raise UsageError(f"{path} has {found.st_size} B; a blob has up to {SIZE_MAX}")
        try:
            out = -1
            if mode != "reference":
                stack.enter_context(store.space.room(found.st_size))
                out, text = tempfile.mkstemp(dir=store.scratch)
                scratch = Path(text)
                stack.callback(os.close, out)
                stack.callback(scratch.unlink, missing_ok=True)
            hashes, size_bytes = bytearray(), 0
            for index in range(-(-found.st_size // CHUNK_BYTES)):
                data = read_chunk(fd, index)
                hashes += hash_of(data)
                size_bytes += len(data)
                if mode == "copy":
                    write_at(out, data, index * CHUNK_BYTES)
                if index % STEP_CHUNKS == STEP_CHUNKS - 1:
                    yield size_bytes
            yield size_bytes
            if not _is_same(found, os.fstat(fd)) or size_bytes != found.st_size:
                raise UsageError(f"{path} changed while it was being added", hint="try again")
            if os.pread(fd, 1, size_bytes):  # in /proc sizes are 0
                hint = "`cat` it, and `shoal add -` takes what it prints"
                raise UsageError(f"{path} has more in it than its size says", hint=hint)
            cid, manifest = _named(size_bytes, bytes(hashes))
            ours = mode != "reference"  # the user may throw the file away
            row = store.known(cid, name=name, is_root=is_root, pin=pin, ours=ours)
            if row is not None:
                return row
            if scratch is None:
                return _refer(store, path, found, cid, manifest, name, is_root=is_root, pin=pin)
            if mode == "take":
                _link_or_copy(path, scratch)
            if is_root:  # else the folder settles it
                sync_file(scratch)
            row = fresh_row(cid, size_bytes, name=name, is_root=is_root, pin=pin)
            store.settle(scratch, row, manifest)
            return row
        except OSError as error:
            raise DiskError.of(error) from error


def add_tree(
    store: BlobStore, root: Path, *, mode: Mode = "copy", name: str = "", pin: bool = False
) -> Adding:
    """Make a blob of a folder and all files below it. Raises what `add_file` raises, and UsageError
    for a link or anything else that is neither file nor folder, or for names that clash.
    """
    entries: list[Entry] = []
    done = 0
    with ExitStack() as kept:
        for path in sorted(_walk(root)):
            adding = add_file(store, root / path, mode=mode, is_root=False, follow=False)
            row = yield from _shifted(adding, done)
            kept.enter_context(store.keep([row.cid]))
            is_executable = _is_executable(root / path)
            entries.append(Entry(path, row.cid, row.size_bytes, is_executable))
            done += row.size_bytes
        data = codec.encode(make_tree(entries))
        store.settle_all({Cid(entry.cid) for entry in entries})
        with store.space.room(len(data)):
            row = fresh_row(manifest_cid(data), 0, name=name, is_root=True, pin=pin)
            store.put_manifest(data, row)
    found = store.index.get(row.cid)
    assert found is not None, "it has just been stored"
    return found


def size_of(path: Path) -> int:
    """Return how much is to be read, for the progress. Raises UsageError."""
    try:
        if path.is_dir():
            return sum(os.lstat(path / each).st_size for each in _walk(path))
        return path.stat().st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot add {str(path)!r}: {reason}") from error


def export_file(store: BlobStore, cid: Cid, path: Path, *, is_fresh: bool) -> Iterator[int]:
    """Write a whole file to `path`, replacing a file there when it is complete."""
    check_place(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"name the file: -o {path}/NAME")
    scratch = _beside(path)
    try:
        with store.open(cid) as file:
            yield from file.copy_to(scratch, is_fresh=is_fresh)
        scratch.replace(path)
    except OSError as error:
        raise DiskError.of(error, str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def export_tree(store: BlobStore, cid: Cid, path: Path, *, is_fresh: bool) -> Iterator[int]:
    """Write a whole tree to a new folder `path`. Raises UsageError if something is there."""
    tree = store.manifest(cid)
    if not isinstance(tree, Tree):
        raise NotFound(f"folder {cid} is not here")
    check_place(path)
    if path.is_file():
        raise UsageError(f"{path} exists", hint="name another place with -o")
    scratch = _beside(path)
    try:
        scratch.mkdir(mode=0o777)
        done = 0
        for entry in tree.entries:
            target = scratch / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.open(Cid(entry.cid)) as file:
                copy = file.copy_to(target, is_fresh=is_fresh, is_executable=entry.is_executable)
                for copied in copy:
                    yield done + copied
            done += entry.size_bytes
        scratch.replace(path)
    except OSError as error:
        raise DiskError.of(error, str(path)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_place(path: Path) -> None:
    """Refuse a path at which neither a file nor a folder can be written, so that nothing need be
    fetched to learn it. Raises UsageError.
    """
    elsewhere = "name another place with -o"
    try:
        if not path.parent.is_dir() or not path.name:
            raise UsageError(f"there is no folder {path.parent} to write to", hint=elsewhere)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise UsageError(f"{path.parent} may not be written to", hint=elsewhere)
        if not os.path.lexists(path):
            return
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode) and any(path.iterdir()):
            raise UsageError(f"{path} exists, and is not empty", hint=f"{elsewhere}: {path}/NAME")
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):  # a link is not followed
            raise UsageError(f"{path} is in the way: it is no plain file", hint=elsewhere)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint=elsewhere) from error


def _beside(path: Path) -> Path:
    """Return a new name in the same folder: two may write to one path at once."""
    return path.with_name(f".shoal-{secrets.token_hex(8)}.part")


def _walk(root: Path) -> Iterator[str]:
    """Yield the files below a folder, as relative paths; refuse what is neither file nor folder."""
    folders, count = [""], 0
    for folders_seen, folder in enumerate(_draining(folders)):
        if folders_seen >= FOLDERS_MAX or len(folder) > PATH_MAX:
            raise UsageError(f"{root} has more than {FOLDERS_MAX} folders, or too deep ones")
        try:
            with os.scandir(root / folder) as found:
                inside = list(found)
        except OSError as error:
            raise UsageError(f"cannot read {root / folder}: {error.strerror}") from error
        for each in inside:
            path = f"{folder}/{each.name}" if folder else each.name
            _check_name(root, path)
            if each.is_dir(follow_symlinks=False):
                folders.append(path)
            elif each.is_file(follow_symlinks=False):
                count += 1
                if count > ENTRIES_MAX:
                    raise UsageError(f"{root} has more than {ENTRIES_MAX} files")
                yield path
            else:
                what = "a link" if each.is_symlink() else "neither file nor folder"
                raise UsageError(
                    f"cannot add {str(root / path)!r}: it is {what}", hint="leave it out"
                )


def _is_executable(path: Path) -> bool:
    try:
        return bool(os.lstat(path).st_mode & stat.S_IXUSR)
    except OSError as error:  # it was here a moment ago
        raise UsageError(f"cannot add {str(path)!r}: {error.strerror}", hint="try again") from error


def _check_name(root: Path, path: str) -> None:
    try:
        check_path(path)
    except BadMessage as error:
        raise UsageError(f"cannot add {str(root)!r}: {error}", hint="rename it") from error


def _draining(folders: list[str]) -> Iterator[str]:
    while folders:
        yield folders.pop()


def _shifted(adding: Adding, by: int) -> Adding:
    """Add `by` to the bytes done that a generator yields."""
    while True:
        try:
            yield by + next(adding)
        except StopIteration as stop:
            row: Row = stop.value
            return row


def cid_of(path: Path) -> Cid:
    """Return the name of a file's bytes as they are now, stored or not. Raises OSError."""
    hashes, size_bytes = bytearray(), 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            hashes += hash_of(data)
            size_bytes += len(data)
    return _named(size_bytes, bytes(hashes))[0]


def _named(size_bytes: int, hashes: bytes) -> tuple[Cid, bytes | None]:
    if size_bytes > CHUNK_BYTES:
        manifest = codec.encode(File(size_bytes, hashes))
        return manifest_cid(manifest), manifest
    return raw_cid(hashes or hash_of(b"")), None


def _refer(
    store: BlobStore,
    path: Path,
    found: os.stat_result,
    cid: Cid,
    manifest: bytes | None,
    name: str,
    *,
    is_root: bool,
    pin: bool,
) -> Row:
    store.space.check_count()
    fresh = fresh_row(cid, found.st_size, name=name, is_root=is_root, pin=pin)
    row = replace(fresh, held_bytes=0, path=str(path), mtime_ns=found.st_mtime_ns)
    store.refer(row, manifest)
    return store.index.get(cid) or row


def _link_or_copy(path: Path, scratch: Path) -> None:
    scratch.unlink()
    try:
        os.link(path, scratch)
    except OSError:  # on another disk
        shutil.copyfile(path, scratch)


def _is_same(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_size, a.st_mtime_ns, a.st_ino) == (b.st_size, b.st_mtime_ns, b.st_ino)
