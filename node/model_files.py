"""The files of served models on this node: split here, or fetched from other nodes as blobs."""

import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, Protocol

import structlog
import trio

from node.model_workers import last_line, python, run_to_end
from protocols.sharding.manifest import (
    MANIFEST_MAX,
    Manifest,
    Part,
    decode_manifest,
    encode_manifest,
    model_id,
)
from protocols.sharding.records import ModelRecord
from protocols.sharding.splitting import RESULT, Split, read_split
from wire.errors import ShoalError, UsageError
from wire.ids import PeerId

SPLIT_S = 1800.0  # seconds to split a model: it is read and written once
DISK_RESERVE_BYTES = 1 << 30  # never filled with parts: the store, the logs and others need it
Progress = Callable[[int], object]  # bytes done

_log = structlog.get_logger("models")


class Blobs(Protocol):
    """What models need of `protocols.blobs`."""

    async def put_file(self, path: Path, /, *, mode: Literal["take"], name: str) -> str:
        """Store a file, which is given away; return its CID."""
        ...

    async def fetch(
        self, cid: str, providers: list[PeerId], /, *, limit_bytes: int | None, name: str
    ) -> object:
        """Make a blob whole here, from any of the providers; refuse one over the limit."""
        ...

    async def place(self, cid: str, path: Path, /) -> object:
        """Have a whole blob at a path too, on the same disk without a second copy."""
        ...


class Refused(ShoalError):
    """This node does not take what it was given."""

    code = "refused"


class ModelFiles:
    """Folder `models/`: one folder per model, with the parts that this node uses."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self.folder = folder
        self._blobs = blobs
        self._lock = trio.Lock()  # one part at a time: two users of a model share its folder

    def log_path(self, name: str) -> Path:
        """Return where the children of a model write what they say."""
        return self.folder / "logs" / f"{name}.log"

    async def split(self, source: Path, name: str) -> tuple[Path, Split]:
        """Cut a model into parts in a child process. Raises UsageError with its reason."""
        scratch = self.folder / "split" / name
        await trio.to_thread.run_sync(_remove, scratch)
        log_path = self.log_path(name)
        argv = python("protocols.sharding.split", str(source), str(scratch))
        with trio.move_on_after(SPLIT_S):
            status = await run_to_end(argv, log_path=log_path)
            result = scratch / RESULT
            if not result.exists():
                raise ShoalError(f"splitting ended with status {status}: {last_line(log_path)}")
            split = read_split(result.read_bytes())
            if split.error:
                raise UsageError(split.error)
            return scratch, split
        raise ShoalError(f"splitting took more than {SPLIT_S:.0f} s")

    async def store(self, scratch: Path, name: str, split: Split) -> tuple[Manifest, str, str]:
        """Make blobs of the parts; return the manifest, its model id and its CID."""
        parts: list[Part] = []
        for cut in split.cuts:
            path = scratch / cut.name
            size_bytes = path.stat().st_size
            cid = await self._blobs.put_file(path, mode="take", name=f"{name}/{cut.name}")
            parts.append(Part(cut.role, cut.block, cut.name, cid, size_bytes))
        manifest = Manifest(
            version=1,
            name=name,
            family=split.family,
            dtype="float32",
            n_layers=split.n_layers,
            hidden_size=split.hidden_size,
            vocab_size=split.vocab_size,
            context=split.context,
            parameters=split.parameters,
            eos=split.eos,
            parts=parts,
        )
        data = encode_manifest(manifest)
        path = scratch / "manifest"
        path.write_bytes(data)
        cid = await self._blobs.put_file(path, mode="take", name=f"{name}/manifest")
        await trio.to_thread.run_sync(_remove, scratch)
        await self.bring(model_id(data), parts, [], lambda _: None)  # so they are not collected
        return decode_manifest(data, model_id(data)), model_id(data), cid

    async def manifest(self, record: ModelRecord, providers: list[PeerId]) -> Manifest:
        """Return a model's manifest, fetched if need be. Raises BadMessage if it is not that."""
        path = self.folder / record.model / "manifest"
        async with self._lock:
            await self._bring(record.manifest, path, providers, limit_bytes=MANIFEST_MAX)
        return decode_manifest(path.read_bytes(), record.model)

    async def bring(
        self, model: str, parts: list[Part], providers: list[PeerId], progress: Progress
    ) -> Path:
        """Have these parts in the model's folder; return the folder.

        Raises BadMessage if a part is larger than its manifest says, Refused if the disk is full.
        """
        folder = self.folder / model
        done = 0
        for part in parts:
            async with self._lock:
                path, limit_bytes = folder / part.name, part.size_bytes
                await self._bring(part.cid, path, providers, limit_bytes=limit_bytes)
            done += part.size_bytes
            progress(done)
        return folder

    def missing_bytes(self, model: str, parts: list[Part]) -> int:
        """Return the size of the parts that are not in the model's folder."""
        folder = self.folder / model
        return sum(part.size_bytes for part in parts if not (folder / part.name).exists())

    def check_room(self, size_bytes: int) -> None:
        """Raise Refused if so much cannot be fetched: the disk has to have room for it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        free_bytes = max(0, shutil.disk_usage(self.folder).free - DISK_RESERVE_BYTES)
        if size_bytes > free_bytes:
            needed = f"{size_bytes >> 20} MiB of disk are needed"
            raise Refused(f"{needed}, {free_bytes >> 20} MiB can be had here")

    async def sweep(self, served: Callable[[], Collection[str]]) -> None:
        """Delete the folders of models that are served no more. Their blobs may then go."""
        async with self._lock:  # asked inside of it: no part of a new model is brought until then
            await trio.to_thread.run_sync(_sweep, self.folder, served())

    async def _bring(
        self, cid: str, path: Path, providers: list[PeerId], *, limit_bytes: int
    ) -> None:
        if await trio.Path(path).exists():
            return
        self.check_room(limit_bytes)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{path.parent.name[:12]}/{path.name}"
        await self._blobs.fetch(cid, providers, limit_bytes=limit_bytes, name=name)
        await self._blobs.place(cid, path)


def _sweep(folder: Path, keep: Collection[str]) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        if re.fullmatch("[0-9a-f]{64}", path.name) and path.name not in keep:
            _remove(path)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
