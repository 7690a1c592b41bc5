"""Nodes that share a store and blobs, for the tests of models as content."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import trio

from node.model_library import Library
from protocols.sharding.manifest import BLOCK, part_name
from protocols.sharding.splitting import Cut, Split
from shoal.library import AddModel, LibraryProgress
from tests.sim.boards import Board, SharedStore, Shelf
from wire.clock import SystemClock
from wire.ids import PeerId

LAYERS = 3
FILES = [
    *(Cut(BLOCK, i, part_name(BLOCK, i)) for i in range(LAYERS)),
    *(Cut(role, -1, part_name(role)) for role in ("embed", "head", "shared")),
    Cut("config", -1, "config.json"),
    Cut("tokenizer", -1, "tokenizer.json"),
]
SIZE = sum(100 + at for at in range(len(FILES)))


class Nodes:
    """Libraries over one board; each has blobs of its own."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.nursery, self.folder, self.board = nursery, folder, Board()
        self.shelves: dict[PeerId, Shelf] = {}
        self.lives: dict[str, trio.CancelScope] = {}

    async def add(self, name: str) -> Library:
        peer = PeerId(name)
        if peer not in self.shelves:
            self.shelves[peer] = Shelf(self.folder / name / "blobs", self.shelves)
        library = Library(
            self.folder / name / "models",
            store=SharedStore(self.board, peer),
            blobs=self.shelves[peer],
            peer=peer,
            clock=SystemClock(),
        )
        if name in self.lives:
            self.lives[name].cancel()
        self.lives[name] = trio.CancelScope()
        await self.nursery.start(self._run, name, library)
        return library

    async def _run(
        self,
        name: str,
        library: Library,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with self.lives[name]:
            await library.run(task_status=task_status)

    def files(self, name: str) -> list[str]:
        """Return the file names in the node's only model folder."""
        folders = [p for p in (self.folder / name / "models").iterdir() if len(p.name) == 64]
        return sorted(path.name for folder in folders for path in folder.iterdir())

    def path(self, name: str, file: str) -> Path:
        return next((self.folder / name / "models").glob(f"*/{file}"))


async def cut_at_once(
    source: str, dtype: str, scratch: Path, log: Path, report: Callable[[str, int, int], object]
) -> Split:
    """In place of `parts_of`: a few bytes for each part, which depend on the source's name."""
    del log
    for at, each in enumerate(FILES):
        (scratch / each.name).write_bytes(f"{source} {at} ".encode().ljust(100 + at, b"x"))
    report("splitting", SIZE, SIZE)
    await trio.lowlevel.checkpoint()
    kind = "float32" if dtype == "auto" else dtype
    return Split("", "llama", kind, LAYERS, 32, 97, 128, 3000, [2], FILES)


async def last(steps: AsyncGenerator[LibraryProgress]) -> LibraryProgress:
    async with aclosing(steps):
        found = [step async for step in steps]
    assert found[-1].state == "done"
    return found[-1]


async def add(library: Library, source: str = "org/tiny", **options: object) -> LibraryProgress:
    return await last(library.add(AddModel(source, **options)))  # type: ignore[arg-type]


async def until(is_so: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not is_so():  # noqa: ASYNC110 (files, and children of children)
            await trio.sleep(0.01)
