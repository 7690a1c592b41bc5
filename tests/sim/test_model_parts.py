"""Parts of models as real blobs: one copy on disk, mended chunk by chunk from other nodes."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from node import model_library
from node.model_library import Library
from protocols.blobs.service import BlobService
from protocols.blobs.wire import CHUNK_BYTES
from protocols.sharding.manifest import BLOCK, part_name
from protocols.sharding.splitting import Cut, Split
from shoal.library import AddModel, LibraryProgress, PinModel
from tests.sim.blob_peers import Peers
from tests.sim.boards import Board, SharedStore
from tests.sim.net import Net
from wire.clock import SystemClock
from wire.ids import PeerId

SIZE = 3 * CHUNK_BYTES + 1000
FILES = [
    Cut(BLOCK, 0, part_name(BLOCK, 0)),
    *(Cut(role, -1, part_name(role)) for role in ("embed", "head", "shared")),
    Cut("config", -1, "config.json"),
]


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a source be cut by nobody: one part has several chunks."""

    async def parts_of(_: str, __: str, scratch: Path, *___: object) -> Split:
        for at, each in enumerate(FILES):
            size = SIZE if each.role == BLOCK else 100
            (scratch / each.name).write_bytes(bytes([at]) + os.urandom(size - 1))
        await trio.lowlevel.checkpoint()
        return Split("", "llama", "float32", 1, 32, 97, 128, 3000, [], FILES)

    monkeypatch.setattr(model_library, "parts_of", parts_of)


class Two:
    """Two nodes that are connected."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        net = Net(nursery, latency_s=0.0)
        self.nursery, self.folder, self.board = nursery, folder, Board()
        self.peers = Peers(net, folder / "blobs")
        self.blobs: dict[str, BlobService] = {}
        (folder / "blobs").mkdir()

    async def add(self, name: str) -> Library:
        peer = PeerId(name)
        self.blobs[name] = self.peers.make(peer)
        library = Library(
            self.folder / "models" / name,
            store=SharedStore(self.board, peer),
            blobs=self.blobs[name],
            peer=peer,
            clock=SystemClock(),
        )
        await self.nursery.start(library.run)
        return library

    def block(self, name: str) -> Path:
        return next((self.folder / "models" / name).glob(f"*/{part_name(BLOCK, 0)}"))


async def last(steps: AsyncGenerator[LibraryProgress]) -> list[LibraryProgress]:
    async with aclosing(steps):
        return [step async for step in steps]


async def test_parts_have_one_copy_are_mended_by_the_chunk_and_leave_nothing(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    two = Two(nursery, tmp_path)
    a, b = await two.add("a"), await two.add("b")
    await last(a.add(AddModel("org/tiny")))
    steps = await last(b.pin("tiny", PinModel()))
    assert steps[-1].done_bytes == steps[-1].total_bytes == SIZE + 400
    assert two.block("b").stat().st_nlink == 2  # ours and the blob store's: one file
    assert two.block("a").read_bytes() == two.block("b").read_bytes()

    good = two.block("b").read_bytes()
    with two.block("b").open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(bytes([good[CHUNK_BYTES + 5] ^ 1]))
    before = two.blobs["b"].counters.bytes_in
    done = (await last(b.verify("tiny")))[-1]
    assert [(bad.name, bad.repaired) for bad in done.bad] == [(part_name(BLOCK, 0), True)]
    assert two.block("b").read_bytes() == good
    assert two.blobs["b"].counters.bytes_in - before == CHUNK_BYTES  # only what was wrong
    assert (await last(b.verify("tiny")))[-1].bad == []

    removed = await a.remove("tiny")
    assert removed.freed_bytes == SIZE + 400
    usage = two.blobs["a"].store.space.usage()
    assert usage.held_bytes < 2000  # the manifest, which others may ask for
    two.blobs["b"].store.space.collect()
    assert (await last(b.verify("tiny")))[-1].checked == len(FILES)
    assert two.block("b").stat().st_nlink == 2
    nursery.cancel_scope.cancel()
