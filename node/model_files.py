"""The files of models on this node: folder `models/`, one folder per model, of links to blobs.

A blob that has a link here is not collected (protocols/blobs/space.py). Which files are needed is
the library's to say (model_library.py).
"""

import os
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import structlog
import trio

from protocols.blobs.adding import cid_of
from protocols.blobs.progress import Report, Transfer
from protocols.sharding.manifest import (
    MANIFEST_MAX,
    Manifest,
    Part,
    decode_manifest,
    encode_manifest,
    model_id,
)
from protocols.sharding.records import ModelRecord
from protocols.sharding.splitting import Split, missing_room
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId

MANIFEST = "manifest"  # its file in a model's folder
LINGER_S = 600.0  # seconds that a part stays after its last use: whoever takes over fetches it
Progress = Callable[[int], object]  # bytes done

_log = structlog.get_logger("models")


class Blobs(Protocol):
    """What models need of `protocols.blobs`."""

    async def put_file(self, path: Path, /, *, mode: Literal["take"], name: str) -> str:
        """Store a file, which is given away; return its CID."""
        ...

    async def fetch(
        self,
        cid: str,
        providers: list[PeerId],
        /,
        *,
        limit_bytes: int | None,
        name: str,
        report: Report,
    ) -> object:
        """Make a blob whole here, from any of the providers; refuse one over the limit."""
        ...

    async def place(self, cid: str, path: Path, /) -> object:
        """Have a whole blob at a path too, on the same disk without a second copy."""
        ...

    async def check(self, cid: str, /) -> bool:
        """Hash a blob; whether it is whole. What is wrong of it is gone, and can be fetched."""
        ...

    async def release(self, cids: Iterable[str], /) -> int:
        """Throw blobs away, those that are neither pinned nor in use; return the bytes freed."""
        ...


class Refused(ShoalError):
    """This node does not take what it was given."""

    code = "refused"


class ModelFiles:
    """Brings parts, checks them, and throws away what is needed no more."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self.folder = folder
        self._blobs = blobs
        self._turns: dict[Path, trio.Lock] = {}  # two users of a part fetch it once
        self._used_s: dict[Path, float] = {}

    def log_path(self, name: str) -> Path:
        """Return where the children of a model write what they say."""
        return self.folder / "logs" / f"{name}.log"

    @asynccontextmanager
    async def scratch(self, name: str) -> AsyncGenerator[Path]:
        """Have an empty folder for the length of the block, one of its own: who gives up and begins
        again does so while the first attempt still ends its child.
        """
        place = self.folder / "split"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
        try:
            yield path
        finally:
            with trio.CancelScope(shield=True):  # moments: links and names, mostly
                await trio.to_thread.run_sync(_remove, path)

    async def tidy(self) -> None:
        """Remove what an earlier life of this node has left half done."""
        await trio.to_thread.run_sync(_remove, self.folder / "split")
        await trio.to_thread.run_sync(_remove, self._bin)

    async def store(
        self, scratch: Path, name: str, split: Split, progress: Progress
    ) -> tuple[Manifest, str, str]:
        """Make blobs of the parts; return the manifest, its model id and its CID."""
        parts: list[Part] = []
        done = 0
        for cut in split.cuts:
            path = scratch / cut.name
            size_bytes = path.stat().st_size
            cid = await self._blobs.put_file(path, mode="take", name=f"{name}/{cut.name}")
            parts.append(Part(cut.role, cut.block, cut.name, cid, size_bytes))
            done += size_bytes
            progress(done)
        manifest = Manifest(
            version=2,
            name=name,
            family=split.family,
            dtype=split.dtype,
            n_layers=split.n_layers,
            hidden_size=split.hidden_size,
            vocab_size=split.vocab_size,
            context=split.context,
            parameters=split.parameters,
            eos=split.eos,
            parts=parts,
        )
        data = encode_manifest(manifest)
        decode_manifest(data, model_id(data))  # what others would refuse is refused here
        path = scratch / MANIFEST
        path.write_bytes(data)
        cid = await self._blobs.put_file(path, mode="take", name=f"{name}/{MANIFEST}")
        return manifest, model_id(data), cid

    def manifest_here(self, model: str) -> Manifest | None:
        """Return a model's manifest if it is in its folder, and is what it should be."""
        try:
            return decode_manifest((self.folder / model / MANIFEST).read_bytes(), model)
        except (FileNotFoundError, BadMessage):
            return None

    async def manifest(self, record: ModelRecord, providers: list[PeerId]) -> Manifest:
        """Return a model's manifest, fetched if need be. Raises BadMessage if it is not that."""
        path = self.folder / record.model / MANIFEST
        await self._bring(record.manifest, path, providers, MANIFEST_MAX, lambda _: None)
        try:
            return decode_manifest(path.read_bytes(), record.model)
        except BadMessage:
            self._discard(path)  # decayed, or the record was wrong: not to be met again
            raise

    async def bring(
        self, model: str, parts: list[Part], providers: list[PeerId], progress: Progress
    ) -> Path:
        """Have these parts in the model's folder; return the folder.

        Raises BadMessage if a part is larger than its manifest says, Refused if the disk is full.
        """
        folder = self.folder / model
        self.check_room(self.missing_bytes(model, parts))
        done = 0
        for part in parts:
            await self._bring(
                part.cid,
                folder / part.name,
                providers,
                part.size_bytes,
                partial(_tell, progress, done, part.size_bytes),
            )
            done += part.size_bytes
            progress(done)
        return folder

    def names_here(self, model: str) -> set[str]:
        """Return the names of a model's files in its folder."""
        try:
            return {entry.name for entry in os.scandir(self.folder / model)}
        except FileNotFoundError:
            return set()

    def missing_bytes(self, model: str, parts: list[Part]) -> int:
        """Return the size of the parts that are not in the model's folder."""
        here = self.names_here(model)
        return sum(part.size_bytes for part in parts if part.name not in here)

    def check_room(self, size_bytes: int) -> None:
        """Raise Refused if so much cannot be fetched: the disk has to have room for it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if lack := missing_room(size_bytes, shutil.disk_usage(self.folder).free):
            raise Refused(lack)

    async def is_good(self, model: str, part: Part) -> bool:
        """Hash a part that is here: whether it is what its CID says."""
        path = self.folder / model / part.name
        try:
            return await trio.to_thread.run_sync(cid_of, path, abandon_on_cancel=True) == part.cid
        except OSError:  # a disk that cannot read it, either
            return False

    async def repair(self, model: str, part: Part, providers: list[PeerId]) -> None:
        """Have a part anew that was not good. Raises ShoalError."""
        self._discard(self.folder / model / part.name)
        await trio.to_thread.run_sync(_remove, self._bin)
        await self._blobs.check(part.cid)  # only what is wrong of it is fetched
        await self.bring(model, [part], providers, lambda _: None)
        if not await self.is_good(model, part):
            raise ShoalError("the disk does not keep what is written to it")

    async def release(self, parts: list[Part]) -> None:
        """Throw away the blobs of parts that nothing here has."""
        await self._blobs.release([part.cid for part in parts])

    # --- throwing away -------------------------------------------------------------------------

    async def sweep(self, keep: set[str], needed: Mapping[str, set[str]]) -> int:
        """Throw away models that are not to be kept, and of the others files that have not been
        needed for `LINGER_S`; return the bytes of blobs that are freed with them.

        needed: file names by model; of a model that is not in it, whatever is here.
        """
        gone: list[str] = []
        for folder in list(self.folder.iterdir()) if self.folder.exists() else ():
            model = folder.name
            if not re.fullmatch("[0-9a-f]{64}", model):
                continue
            names = self.names_here(model)
            if model in keep:
                kept = needed.get(model, names)
                names = {n for n in names if self._is_idle(folder / n, is_needed=n in kept)}
            manifest = self.manifest_here(model) if names else None
            cids = {part.name: part.cid for part in manifest.parts} if manifest else {}
            gone += [cids[name] for name in names if name in cids]
            for path in [folder / name for name in names] if model in keep else [folder]:
                self._discard(path)
        self._used_s = {path: at for path, at in self._used_s.items() if path.exists()}
        await trio.to_thread.run_sync(_remove, self._bin)
        return await self._blobs.release(gone) if gone else 0

    def _is_idle(self, path: Path, *, is_needed: bool) -> bool:
        now = trio.current_time()
        if is_needed or path not in self._used_s:
            self._used_s[path] = now
        return now - self._used_s[path] > LINGER_S

    @property
    def _bin(self) -> Path:
        return self.folder / "bin"

    def _discard(self, path: Path) -> None:
        """Take a file or folder away at once; it is deleted with the next sweep, off the loop."""
        self._bin.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            path.rename(self._bin / os.urandom(8).hex())

    # --- fetching ------------------------------------------------------------------------------

    async def _bring(
        self, cid: str, path: Path, providers: list[PeerId], limit_bytes: int, report: Report
    ) -> None:
        async with self._alone(path):
            self._used_s[path] = trio.current_time()
            if await trio.Path(path).exists():
                return
            self.check_room(limit_bytes)
            name = f"{path.parent.name[:12]}/{path.name}"
            await self._blobs.fetch(
                cid, providers, limit_bytes=limit_bytes, name=name, report=report
            )
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            await self._blobs.place(cid, path)

    @asynccontextmanager
    async def _alone(self, path: Path) -> AsyncGenerator[None]:
        turn = self._turns.setdefault(path, trio.Lock())
        try:
            async with turn:
                yield
        finally:
            if not turn.locked() and self._turns.get(path) is turn:
                del self._turns[path]


def _tell(progress: Progress, done_bytes: int, size_bytes: int, transfer: Transfer) -> None:
    progress(done_bytes + min(transfer.done_bytes, size_bytes))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
