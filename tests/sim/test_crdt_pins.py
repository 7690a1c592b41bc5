"""Blobs that entries refer to: pinned as long as an entry of ours needs them, and no longer."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from crdt.batch import StoreFull
from crdt.service import StoreService
from tests.sim.replicas import Flood, Links, SimClock, Wire, in_place, signer
from wire.errors import NotFound


class FakeBlobs:
    """Blobs by a name that says what is in them; and which are pinned."""

    def __init__(self) -> None:
        self.pinned: dict[str, bool] = {}

    async def put_bytes(self, data: bytes, *, name: str = "", pin: bool = False) -> str:
        await trio.lowlevel.checkpoint()
        cid = data.decode()
        self.pinned[cid] = pin or self.pinned.get(cid, False)
        return cid

    async def pin(self, cid: str, *, is_pinned: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        if cid not in self.pinned:
            raise NotFound(cid)
        self.pinned[cid] = is_pinned


@pytest.fixture
def blobs() -> FakeBlobs:
    return FakeBlobs()


def make(nursery: trio.Nursery, blobs: FakeBlobs, path: Path | str = ":memory:") -> StoreService:
    links, peer = Links(), signer(1).peer
    return StoreService(
        Wire(links, peer),
        Flood(links, peer, nursery),
        SimClock(),
        signer(1),
        path,
        peers=list,
        blobs=blobs,
        off_loop=in_place,
        rng=random.Random(1),
    )


async def settled(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not is_so():  # noqa: ASYNC110 - no event
            await trio.sleep(0.1)


async def test_a_blob_is_let_go_with_the_last_entry_that_needs_it(
    autojump_clock: MockClock, nursery: trio.Nursery, blobs: FakeBlobs
) -> None:
    store = make(nursery, blobs)
    await nursery.start(store.run)
    for key in ("a", "b"):
        await store.put_bytes("kv", key, b"shared")
    await store.put_bytes("kv", "c", b"other")
    await store.put("kv", "a", 1)
    await store.delete("kv", "c")
    await settled(lambda: not blobs.pinned["other"])
    assert blobs.pinned["shared"]
    await store.put_bytes("kv", "b", b"third")
    await settled(lambda: not blobs.pinned["shared"])
    assert blobs.pinned["third"]


async def test_a_blob_whose_entry_is_refused_is_let_go(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    blobs: FakeBlobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make(nursery, blobs)
    await nursery.start(store.run)
    await store.put_bytes("kv", "old", b"old")
    monkeypatch.setattr("crdt.spaces.ENTRIES_MAX", 0)
    for data in (b"new", b"old"):
        with pytest.raises(StoreFull):
            await store.put_bytes("kv", "key", data)
    await settled(lambda: not blobs.pinned["new"])
    assert blobs.pinned["old"]


async def test_a_blob_that_is_written_again_while_it_is_let_go_stays(
    autojump_clock: MockClock, nursery: trio.Nursery, blobs: FakeBlobs
) -> None:
    store = make(nursery, blobs)
    await nursery.start(store.run)
    for _ in range(20):
        await store.put_bytes("kv", "a", b"data")
        async with trio.open_nursery() as both:
            both.start_soon(store.delete, "kv", "a")
            both.start_soon(store.put_bytes, "kv", "b", b"data")
        await trio.sleep(0.5)
        assert blobs.pinned["data"]
        await store.delete("kv", "b")
        await settled(lambda: not blobs.pinned["data"])


async def test_what_was_pinned_before_a_restart_is_let_go_after_it(
    autojump_clock: MockClock, tmp_path: Path, blobs: FakeBlobs
) -> None:
    for is_first in (True, False):
        async with trio.open_nursery() as nursery:
            store = make(nursery, blobs, tmp_path / "store.db")
            await nursery.start(store.run)
            if is_first:
                await store.put_bytes("kv", "a", b"data")
            else:
                await trio.sleep(1)
                assert blobs.pinned["data"]
                await store.delete("kv", "a")
                await settled(lambda: not blobs.pinned["data"])
            nursery.cancel_scope.cancel()
